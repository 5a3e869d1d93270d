"""Counterfactual prediction: layers, means of pairs, or blocks."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import torch
from scipy import sparse
from scvi.module._constants import MODULE_KEYS
from sparse import GCXS

from scvci._names import unknown_name_message
from scvci._numbers import batch_size_or_default, positive_number, whole_number
from scvci.data._conditions import format_dose
from scvci.data._labels import as_names, encode, is_one_name, missing_key_message, read_labels

from ._base import VCIBase
from ._counterfactuals import Plan
from ._layers import Scale, layer_names, require_finite

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from anndata import AnnData

    from scvci.data import Cells
    from scvci.data._conditions import Condition

    from ._arms import Arm

    Indices = Sequence[int] | Sequence[str] | np.ndarray | slice | None

#: Draws that quantiles are computed from by default; the rank of a quantile q then has a standard
#: error of sqrt(q (1 - q) / 100), 0.02 for q = 0.05.
_N_QUANTILE_DRAWS = 100


class PredictionMixin(VCIBase):
    """What would have been: counterfactual expression, and the latent state it rests on."""

    def predict_counterfactual(
        self,
        treatment: str | Sequence[str] | pd.DataFrame | None = None,
        adata: AnnData | None = None,
        *,
        indices: Indices = None,
        layer_added: str | None = None,
        dose: float | str | None = None,
        target_key: str | None = None,
        batch: str | None = None,
        library_size: float | None = None,
        log1p: bool = False,
        n_samples: int | None = None,
        quantiles: Sequence[float] | float | None = None,
        keep_totals: bool = False,
        keep: Literal["rates", "state", "molecules"] = "rates",
        calibrated: bool = True,
        batch_size: int | None = None,
        output: Literal["layers", "means", "blocks"] = "layers",
    ) -> Any:
        r"""Predict each cell's expression under another treatment.

        The cell's own expression, treatment and covariates give its latent state (the mean of
        q(z | y, x, t)); the prediction is the mean of p(y′ | z, t′), moved towards what the cell
        shows of each gene beyond its state (``keep``). It is written into layers.
        Neither ``X`` nor anything else of the user's is touched.

        Parameters
        ----------
        treatment
            A treatment, several (any sequence, set, array or pandas object), or ``None`` for all
            that were measured, the control included. A combination, a dose or (with
            ``treatment_embeddings``) a treatment need not have been measured: see Notes. A data
            frame has a row for each request, in the columns ``treatment`` and, perhaps, ``dose``.
        adata
            Cells to predict for, by default the model's. Genes are aligned by name; genes that the
            model does not have become NaN.
        indices
            Rows, mask or names of the cells; rows outside are NaN, and need not be readable.
        layer_added
            Name of the layer, by default ``"counterfactual_<treatment>"`` (a ``/`` in a name
            becomes ``_``, as files cannot hold it). With several treatments it is the prefix.
        dose
            Dose of the treatments, in data with doses: a number, or one for each member
            (``"1.0+0.5"``). It can also be part of the name: ``"A@0.5"``.
        target_key
            Column of ``obs`` with a treatment for each cell, in place of ``treatment``; the layer
            is ``"counterfactual_<target_key>"``.
        batch
            Technical batch to predict in (``batch_key``), by default each cell's own.
        library_size
            Library size (or size factor) to predict at; by default each cell's own. Not for
            ``likelihood="normal"``, whose predictions are on the scale of the data.
        log1p
            Whether to return the logarithm of one plus the expected counts, or of one plus their
            quantiles.
        n_samples
            Draw that many samples (latent state and expression) in place of the expectation:
            whole numbers as sparse layers, numbered from ``_1`` if there are several. Draws follow
            torch's generator: set ``scvi.settings.seed`` before the call to repeat them.
        quantiles
            Return these quantiles of the draws in place of the draws, such as ``(0.05, 0.95)`` in
            layers ending in ``_q05`` and ``_q95``: for each cell and gene, the smallest draw that
            this share of the draws does not exceed. ``n_samples`` is then 100 by default; time
            grows with it, and so does memory, but only that of one batch.
        keep_totals
            Draw counts (``n_samples``) that add up to the cell's own total, or to a whole
            ``library_size``: raw counts for a submission that is to have the totals of real cells.
        keep
            What a cell keeps under the other treatment. ``"state"``: its latent state and nothing
            else. ``"rates"``: besides, half of what the overdispersion of each gene's counts says
            about the cell's own rate of that gene; a gene that the cell has more of than its
            state explains keeps some of the excess, the less so the fewer its counts.
            ``"molecules"``: its own counts, which are moved from its treatment to the other,
            counting noise included; under the treatment that it received, the cell is then as it
            was measured. Not for ``likelihood="zinb"``. See Notes.
        calibrated
            Whether to apply the marginal calibration of the (stratum, treatment).
        batch_size
            Cells per step, by default ``scvi.settings.batch_size``.
        output
            ``"layers"``: written to ``adata.layers``. For screens of many treatments, where a
            layer each would not fit, ``"means"``: the mean over the cells of each stratum, as an
            AnnData with a row for each (treatment, stratum); or ``"blocks"``: an iterator over
            :class:`~scvci.model.Block`, one for each treatment and step of cells, which are
            encoded once for all treatments. Both write nothing.

        Returns
        -------
        Names of the layers; ``adata.uns["scvci"]`` records treatment, dose, scale, likelihood,
        samples, quantile and version for each of them. Or means or blocks, see ``output``.

        Raises
        ------
        RuntimeError
            If the model is not trained.
        ValueError, KeyError
            If a treatment, level or gene is unknown; the message names it and the nearest ones.
            If the expression of a cell is not what the model was trained on (counts, or
            log-normalised). If a quantile does not lie in (0, 1) or has too few draws. If a layer
            holds something else.
        TypeError
            If molecules are to be kept with ``likelihood="zinb"``.

        Notes
        -----
        What was not measured is put together on the scale of the linear predictor: members of a
        combination add up, a dose lies between its neighbours, and a treatment without a cell is
        the weighted sum of the measured ones that its features say. The layer's record says which
        (``basis``). None of this is known from the data at hand: members that act on the same
        pathway do not add up.

        The individual counterfactual is identified only under assumptions. Data determine how
        expression is distributed in a stratum under each treatment, but not which cell would have
        been which: models that rotate the latent state of the treated cells fit equally well and
        disagree about every cell. Expectations, draws and quantiles of one cell are the model's.
        They can be too narrow, as nothing compares them with outcomes;
        :func:`scvci.tl.predict_interval` does.

        That what is particular to a gene of a cell (``keep``) is the same in every world is a
        further assumption that no data test; the page on the method says which. Half of it is the
        choice that costs least if it is wrong. ``"molecules"`` fits questions about the very
        molecules of a cell; for its expected expression, counting noise is noise.

        References
        ----------
        Wu, McConnell and Iriondo, "Counterfactual Generative Modeling with Variational Causal
        Inference", ICLR 2025.
        """
        self.require_trained("predict counterfactuals")
        if output not in ("layers", "means", "blocks"):
            raise ValueError(f"output={output!r} must be 'layers', 'means' or 'blocks'.")
        if quantiles is not None:
            quantiles = tuple(np.atleast_1d(quantiles).tolist())
            n_samples = _N_QUANTILE_DRAWS if n_samples is None else n_samples
        scale = Scale(library_size, log1p, n_samples, quantiles, keep_totals, keep)
        scale.check(self.is_count)
        plan = self._plan(
            treatment, adata, indices, dose, target_key, batch, scale, calibrated, batch_size
        )
        if output == "blocks":
            return plan.blocks()
        if output == "means":
            return plan.means()
        single = target_key is not None or (len(plan.arms) == 1 and is_one_name(treatment))
        labels = list(plan.arms) if target_key is None else [target_key]
        layers = layer_names(labels, layer_added, single, scale.suffixes())
        kind = "counterfactual" if target_key is None else "counterfactual by target_key"
        results = self.results(plan.cells.adata)
        for label, names in layers.items():
            for name in names:
                results.check("layers", name, kind, label)
        values = plan.layers()
        for label, condition in zip(labels, plan.conditions, strict=False):
            for i, name in enumerate(layers[label]):
                entry = (
                    self.describe_arm(condition, plan.arms[label])
                    if target_key is None
                    else {"treatment": target_key, "dose": "of each cell", "basis": "of each cell"}
                )
                entry |= {
                    "kind": kind,
                    "scale": scale.describe(self.is_count),
                    "keep": scale.keep,
                    "calibrated": calibrated,
                    "batch": "of each cell" if batch is None else str(batch),
                    **scale.sampling(i),
                }
                key = label if target_key is None else ""
                results.write("layers", name, values[key][i], self.describe(**entry))
        return [name for names in layers.values() for name in names]

    def get_latent_representation(
        self,
        adata: AnnData | None = None,
        indices: Indices = None,
        *,
        give_mean: bool = True,
        batch_size: int | None = None,
        return_dist: bool = False,
        dataloader: Iterator[dict[str, torch.Tensor]] | None = None,
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """Latent state of each cell.

        Parameters
        ----------
        adata, indices, batch_size
            See :meth:`predict_counterfactual`. Rows come in the order of ``indices``.
        give_mean
            Mean of q(z | y, x, t), or a draw from it.
        return_dist
            Return mean and variance instead.
        dataloader
            Batches of tensors under the model's registry keys, in place of ``adata``.

        Returns
        -------
        Shape ``(n_cells, n_latent)``, or a tuple of two such arrays.
        """
        self.require_trained("compute latent states")
        if dataloader is None:
            cells = self.cells(adata, indices)
            batches: Any = (t for _, t in cells.batches(batch_size_or_default(batch_size)))
        elif adata is not None or indices is not None:
            raise ValueError("Pass either dataloader= or adata= and indices=.")
        else:
            batches = dataloader
        n_latent = self.config.architecture.n_latent
        parts: dict[str, list[np.ndarray]] = {"mean": [], "variance": [], "draw": []}
        with torch.inference_mode():
            for tensors in batches:
                inputs = self.module._get_inference_input(self.on_device(tensors))
                outputs = self.module.inference(**inputs, n_samples=0 if give_mean else 1)
                qz = outputs[MODULE_KEYS.QZ_KEY]
                parts["mean"].append(qz.loc.cpu().numpy())
                parts["variance"].append(qz.variance.cpu().numpy())
                if not give_mean:
                    parts["draw"].append(outputs[MODULE_KEYS.Z_KEY][0].cpu().numpy())
        empty = np.zeros((0, n_latent), dtype=np.float32)
        stacked = {name: np.concatenate([empty, *part]) for name, part in parts.items()}
        if return_dist:
            return stacked["mean"], stacked["variance"]
        return stacked["mean"] if give_mean else stacked["draw"]

    def get_normalized_expression(
        self,
        adata: AnnData | None = None,
        indices: Indices = None,
        *,
        treatment: str | None = None,
        gene_list: Sequence[str] | None = None,
        library_size: float | None = 1.0,
        calibrated: bool = True,
        batch_size: int | None = None,
        return_numpy: bool = False,
    ) -> pd.DataFrame | np.ndarray:
        """Compute expected expression under the treatment that a cell received, or another.

        It is what the latent state says: ``predict_counterfactual(keep="state")``.

        Parameters
        ----------
        adata, indices, calibrated, batch_size
            See :meth:`predict_counterfactual`. Rows come in the order of ``indices``.
        treatment
            A treatment, measured or not; by default the one that each cell received.
        gene_list
            Genes to return, by default all.
        library_size
            Library size (or size factor) to scale to: 1 gives proportions; ``None`` each cell's
            own. Not used with ``likelihood="normal"``.
        return_numpy
            Whether to return an array in place of a data frame.

        Returns
        -------
        Shape ``(n_cells, n_genes)``, cells by genes.

        Raises
        ------
        ValueError
            If a treatment or gene is unknown.
        """
        self.require_trained("compute expected expression")
        genes, columns = self.genes, self._gene_columns(gene_list)
        arm = None
        if treatment is not None:
            [condition] = self.conditions(treatment)
            arm = self.arm(condition)
        if library_size is not None:
            library_size = positive_number("library_size", library_size)
        size = library_size if self.is_count else None
        cells = self.cells(adata, indices)
        blocks = [np.zeros((0, len(genes[columns])), dtype=np.float32)]
        with torch.inference_mode():
            for rows, tensors in cells.batches(batch_size_or_default(batch_size)):
                batch = self.on_device(tensors)
                px = (
                    self.reconstruct(batch, library_size=size, calibrated=calibrated)
                    if arm is None
                    else self.decode(batch, arm, library_size=size, calibrated=calibrated)
                )
                # Of few genes, only these are kept from each step.
                blocks.append(px.mean[0].cpu().numpy()[:, columns])
                require_finite(blocks[-1], cells.names, rows)
        values = np.concatenate(blocks)
        if return_numpy:
            return values
        return pd.DataFrame(values, index=cells.names[cells.rows], columns=genes[columns])

    def posterior_predictive_sample(
        self,
        adata: AnnData | None = None,
        indices: Indices = None,
        *,
        n_samples: int = 1,
        gene_list: Sequence[str] | None = None,
        batch_size: int | None = None,
    ) -> GCXS:
        """Draw expression of each cell under the treatment that it received.

        What :class:`scvi.criticism.PosteriorPredictiveCheck` compares with the data.

        Parameters
        ----------
        adata, indices, batch_size
            See :meth:`predict_counterfactual`. Rows come in the order of ``indices``.
        n_samples
            Number of draws.
        gene_list
            Genes to return, by default all.

        Returns
        -------
        Sparse array, shape ``(n_cells, n_genes)``, or with several draws
        ``(n_cells, n_genes, n_samples)``.

        Raises
        ------
        ValueError
            If a gene is unknown.
        """
        self.require_trained("draw from it")
        n_samples = whole_number("n_samples", n_samples)
        columns = self._gene_columns(gene_list)
        n_genes = len(self.genes[columns])
        cells = self.cells(adata, indices)
        blocks = [sparse.csr_matrix((0, n_genes * n_samples), dtype=np.float32)]
        with torch.inference_mode():
            for _, tensors in cells.batches(batch_size_or_default(batch_size)):
                batch = self.on_device(tensors)
                z = self.latent_states(batch, n_samples)
                drawn = self.reconstruct(batch, z).sample().cpu().numpy()
                drawn = drawn.transpose(1, 2, 0)[:, columns]
                blocks.append(sparse.csr_matrix(drawn.reshape(len(drawn), -1)))
        rows = sparse.vstack(blocks, format="csr")
        shape = (rows.shape[0], n_genes, n_samples)[: 2 if n_samples == 1 else 3]
        return GCXS((rows.data, rows.indices, rows.indptr), shape=shape, compressed_axes=(0,))

    def _gene_columns(self, gene_list: Sequence[str] | None) -> Any:
        """Columns of genes in the order asked for; by default all."""
        if gene_list is None:
            return slice(None)
        names, known = as_names(gene_list), self.genes.tolist()
        columns = encode(names, known)
        if (columns < 0).any():
            unknown = names[int(np.argmax(columns < 0))]
            raise ValueError(unknown_name_message("Gene", unknown, known))
        return columns

    # -- requests ---------------------------------------------------------------------------------

    def _plan(
        self,
        treatment: Any,
        adata: AnnData | None,
        indices: Indices,
        dose: Any,
        target_key: str | None,
        batch: str | None,
        scale: Scale,
        calibrated: bool,
        batch_size: int | None,
    ) -> Plan:
        """Read names, cells and arms before anything is predicted."""
        if target_key is not None and (treatment is not None or dose is not None):
            raise ValueError(
                f"target_key={target_key!r} gives each cell its own treatment; leave treatment= "
                "and dose= out (a dose can be part of the name: 'A@0.5')."
            )
        in_batch = self.batch_code(batch)
        which = None
        if target_key is None:
            conditions = self.conditions(treatment, dose)
            cells = self.cells(adata, indices)
        else:
            cells = self.cells(adata, indices)
            conditions, which = self._targets(cells, target_key)
        self.warn_about_cells(cells)
        arms = {self._arms.name(condition): self.arm(condition) for condition in conditions}
        for name, arm in arms.items():
            if "extrapolated dose" in arm.basis:
                warnings.warn(
                    f"{name!r} lies beyond the largest measured dose; its effect is extrapolated.",
                    UserWarning,
                    stacklevel=4,
                )
        size = batch_size_or_default(batch_size)
        return Plan(
            self, cells, arms, conditions, scale, calibrated, size, in_batch, target_key, which
        )

    def _targets(self, cells: Cells, target_key: str) -> tuple[list[Condition], np.ndarray]:
        """Conditions that cells are to get, and which of them each cell gets."""
        obs = cells.adata.obs
        if target_key not in obs:
            raise KeyError(missing_key_message(cells.adata, target_key, "target_key"))
        codes, labels = read_labels(obs[target_key], target_key, cells.rows)
        known, used = self.known_members, np.unique(codes[cells.rows])
        read = {code: self._arms.request(labels[code], None, known) for code in used}
        conditions = list(dict.fromkeys(read.values()))
        lookup = np.full(len(labels) + 1, -1, dtype=np.int64)
        for code, condition in read.items():
            lookup[code] = conditions.index(condition)
        return conditions, lookup[codes]

    def describe_arm(self, condition: Condition, arm: Arm) -> dict[str, Any]:
        """Treatment and dose of a result, and what they rest on.

        Parameters
        ----------
        condition
            Members and doses.
        arm
            Its arm.
        """
        doses = condition.doses or (0.0,)
        dose: Any = doses[0] if len(doses) == 1 else "+".join(map(format_dose, doses))
        return {"treatment": self._arms.name(condition), "dose": dose, "basis": arm.basis}

    @staticmethod
    def warn_about_cells(cells: Cells) -> None:
        """Warn of new strata and genes; see :meth:`predict_counterfactual`."""
        n_new = int((cells.stratum[cells.rows] < 0).sum())
        if n_new:
            warnings.warn(
                f"{n_new} cells belong to combinations of covariate levels that training did not "
                "see. They are predicted without marginal calibration.",
                UserWarning,
                stacklevel=4,
            )
        if cells.columns is not None and cells.adata.n_vars > len(cells.columns):
            n_extra = cells.adata.n_vars - len(cells.columns)
            warnings.warn(
                f"{n_extra} genes of adata are not the model's; they are NaN in the layer.",
                UserWarning,
                stacklevel=4,
            )
