"""Counterfactual prediction into AnnData layers."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scvi import REGISTRY_KEYS, settings
from scvi.module._constants import MODULE_KEYS

from scvci._version import __version__
from scvci.data import CellReader, resolve_indices
from scvci.data import _constants as keys
from scvci.module import (
    expect_with_residuals,
    sample_with_residuals,
    sample_with_totals,
)

from ._arms import NewArm
from ._layers import LayerCollector, Scale
from ._requests import RequestsMixin

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from anndata import AnnData


#: Draws that quantiles are computed from by default; the level of a quantile q then has a standard
#: error of sqrt(q (1 - q) / 100), 0.02 for q = 0.05.
_N_QUANTILE_DRAWS = 100


class PredictionMixin(RequestsMixin):
    """What would have been: counterfactual expression, and the latent state it rests on."""

    def predict_counterfactual(
        self,
        treatment: str | Sequence[str] | pd.DataFrame | None = None,
        adata: AnnData | None = None,
        indices: Sequence[int] | np.ndarray | None = None,
        layer_added: str | None = None,
        dose: float | str | None = None,
        target_key: str | None = None,
        batch: str | None = None,
        library_size: float | None = None,
        log1p: bool = False,
        n_samples: int | None = None,
        quantiles: Sequence[float] | float | None = None,
        keep_totals: bool = False,
        keep_residuals: bool = False,
        calibrated: bool = True,
        batch_size: int | None = None,
    ) -> list[str]:
        r"""Write each cell's expression under another treatment into layers.

        The cell's own expression, treatment and covariates give its latent state (the mean of
        q(z | y, x, t)); the layer holds the mean of p(y′ | z, t′). ``X`` is not touched.

        Parameters
        ----------
        treatment
            A treatment, several, or ``None`` for all that were measured, the control included. A
            combination, a dose or (with ``treatment_embeddings``) a treatment need not have been
            measured: see Notes. A data frame has a row for each request, in the columns
            ``treatment`` and, perhaps, ``dose``.
        adata
            Cells to predict for, by default the model's. Genes are aligned by name; genes that the
            model does not have become NaN.
        indices
            Rows, mask or names of the cells; rows outside are NaN.
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
            ``likelihood="normal"``, whose layers are on the scale of the data.
        log1p
            Whether to write the logarithm of one plus the expected counts, or of one plus their
            quantiles.
        n_samples
            Draw that many samples (latent state and expression) in place of the expectation:
            whole numbers as sparse layers, numbered from ``_1`` if there are several. Draws follow
            torch's generator: set ``scvi.settings.seed`` before the call to repeat them.
        quantiles
            Write these quantiles of the draws in place of the draws, such as ``(0.05, 0.95)`` to
            layers ending in ``_q05`` and ``_q95``: for each cell and gene, the smallest draw that
            this share of the draws does not exceed. ``n_samples`` is then 100 by default; time
            grows with it, and so does memory, but only that of one batch.
        keep_totals
            Draw counts (``n_samples``) that add up to the cell's own total, or to a whole
            ``library_size``: raw counts for a submission that is to have the totals of real cells.
        keep_residuals
            Move the cell's own counts from its treatment to the other, in place of replacing them
            by what its latent state says: a gene that the cell has more of than expected keeps
            the excess. Under the treatment that it received, the cell is then as it was
            measured. Not for ``likelihood="zinb"``. See Notes.
        calibrated
            Whether to apply the marginal calibration of the (stratum, treatment).
        batch_size
            Cells per step.

        Returns
        -------
        Names of the layers. ``adata.uns["scvci"]`` records treatment, dose, scale, likelihood,
        samples, quantile and version for each of them.

        Raises
        ------
        RuntimeError
            If the model is not trained.
        ValueError, KeyError
            If a treatment, level or gene is unknown; the message names it and the nearest ones.
            If a quantile does not lie in (0, 1) or has too few draws.
        TypeError
            If residuals are to be kept with ``likelihood="zinb"``.

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
        :meth:`predict_interval` does.

        Residuals (``keep_residuals``) are counting noise and what is particular to a gene of a
        cell. That they are the same in every world is a further assumption that no data test
        (:func:`scvci.module.expect_with_residuals` says which). It fits questions about the very
        molecules of a cell; for its expected expression, residuals are noise.

        References
        ----------
        Wu, McConnell and Iriondo, "Counterfactual Generative Modeling with Variational Causal
        Inference", ICLR 2025.
        """
        self._require_trained("predict counterfactuals")
        cells = self._cells_of(adata)
        targets, which = self._requests(cells, treatment, dose, target_key)
        if quantiles is not None:
            quantiles = tuple(float(q) for q in np.atleast_1d(quantiles))
            n_samples = _N_QUANTILE_DRAWS if n_samples is None else n_samples
        scale = Scale(library_size, log1p, n_samples, quantiles, keep_totals, keep_residuals)
        scale.check(self.module.likelihood.is_count)
        reader = CellReader.from_registry(cells, self.registry, self.gene_names_)
        rows = resolve_indices(cells, indices)
        labels = targets if target_key is None else [target_key]
        single = isinstance(treatment, str) or target_key is not None
        names = self._layer_names(labels, layer_added, single and len(labels) == 1, scale)
        self._warn_about_cells(reader, rows)
        arms = [self._arm(target) for target in targets]
        for k, (label, layers) in enumerate(names.items()):
            own = np.full(cells.n_obs, k) if which is None else which
            outputs = self._predict(
                reader, rows, arms, own, scale, calibrated, batch_size, self._batch_code(batch)
            )
            for i, (layer, values) in enumerate(zip(layers, outputs, strict=True)):
                cells.layers[layer] = values
                entry = (
                    self._describe_arm(label, arms[k])
                    if which is None
                    else {"treatment": f"obs[{label!r}]", "dose": "of each cell"}
                )
                entry |= {"scale": scale.describe(), "calibrated": calibrated}
                entry["batch"] = "of each cell" if batch is None else batch
                self._record(cells, layer, {**entry, **scale.sampling(i)})
        return [layer for layers in names.values() for layer in layers]

    def get_latent_representation(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | np.ndarray | None = None,
        give_mean: bool = True,
        batch_size: int | None = None,
        return_dist: bool = False,
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """Latent state of each cell.

        Parameters
        ----------
        adata, indices, batch_size
            See :meth:`predict_counterfactual`. Rows come in ascending order.
        give_mean
            Mean of q(z | y, x, t), or a draw from it.
        return_dist
            Return mean and variance instead.

        Returns
        -------
        Shape ``(n_cells, n_latent)``, or a tuple of two such arrays.
        """
        self._require_trained("compute latent states")
        cells = self._cells_of(adata)
        reader = CellReader.from_registry(cells, self.registry, self.gene_names_)
        rows = resolve_indices(cells, indices)
        means, variances, draws = [], [], []
        with torch.inference_mode():
            for _, tensors in reader.batches(rows, batch_size or settings.batch_size):
                inputs = self.module._get_inference_input(self._on_device(tensors))
                outputs = self.module.inference(**inputs, n_samples=0 if give_mean else 1)
                qz = outputs[MODULE_KEYS.QZ_KEY]
                means.append(qz.loc.cpu().numpy())
                variances.append(qz.variance.cpu().numpy())
                if not give_mean:
                    draws.append(outputs[MODULE_KEYS.Z_KEY][0].cpu().numpy())
        n_latent = self.module.config.architecture.n_latent
        stacked = [
            np.concatenate(part) if part else np.zeros((0, n_latent), dtype=np.float32)
            for part in (means, variances, draws)
        ]
        if return_dist:
            return stacked[0], stacked[1]
        return stacked[0] if give_mean else stacked[2]

    # -- arguments ------------------------------------------------------------------------------

    def _require_trained(self, action: str) -> None:
        if not self.is_trained_:
            raise RuntimeError(f"The model is not trained; call train() before you {action}.")

    def _cells_of(self, adata: AnnData | None) -> AnnData:
        cells = self.adata if adata is None else adata
        if cells is None:
            raise ValueError("The model was loaded without cells; pass adata=.")
        return cells

    @staticmethod
    def _layer_names(
        targets: list[str],
        layer_added: str | None,
        single: bool,
        scale: Scale,
    ) -> dict[str, list[str]]:
        names = {}
        for target in targets:
            base = layer_added if single and layer_added else None
            base = base or f"{layer_added or 'counterfactual'}_{target}".replace("/", "_")
            names[target] = [base + suffix for suffix in scale.suffixes()]
        flat = [layer for layers in names.values() for layer in layers]
        if len(set(flat)) < len(flat):
            raise ValueError(
                f"Two treatments would be written to the same layer ({sorted(flat)}); predict "
                "them one by one with layer_added=."
            )
        return names

    def _warn_about_cells(self, reader: CellReader, rows: np.ndarray) -> None:
        n_new = int((reader.stratum[rows] < 0).sum())
        if n_new:
            warnings.warn(
                f"{n_new} cells belong to combinations of covariate levels that training did not "
                "see. They are predicted without marginal calibration.",
                UserWarning,
                stacklevel=3,
            )
        if reader.columns is not None and reader.adata.n_vars > len(reader.columns):
            n_extra = reader.adata.n_vars - len(reader.columns)
            warnings.warn(
                f"{n_extra} genes of adata are not the model's; they are NaN in the layer.",
                UserWarning,
                stacklevel=3,
            )

    # -- prediction -----------------------------------------------------------------------------

    def _on_device(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        device = self.module.device
        return {name: tensor.to(device) for name, tensor in tensors.items()}

    @torch.inference_mode()
    def _predict(
        self,
        reader: CellReader,
        rows: np.ndarray,
        arms: Sequence[int | NewArm],
        which: np.ndarray,
        scale: Scale,
        calibrated: bool,
        batch_size: int | None,
        in_batch: int | None = None,
    ) -> list[Any]:
        """Layers (one, or one per sample) aligned with all rows and genes of the AnnData.

        Each cell gets the arm that ``which`` says, shape ``(n_obs,)``.
        """
        sampled = bool(scale.n_samples) and not scale.quantiles
        sparse_layers = sampled and self.module.likelihood.is_count
        collector = LayerCollector(reader, rows, len(scale.suffixes()), sparse_layers)
        for batch, tensors in reader.batches(rows, batch_size or settings.batch_size):
            if in_batch is not None:
                target = torch.full_like(tensors[keys.BATCH_KEY], in_batch)
                tensors[keys.TARGET_BATCH_KEY] = target
            parts = []
            for k in np.unique(which[batch]):
                own = torch.from_numpy(np.flatnonzero(which[batch] == k))
                cells = self._on_device({name: t[own] for name, t in tensors.items()})
                parts.append((own, self._values(cells, arms[k], scale, calibrated)))
            block = np.empty((len(parts[0][1]), len(batch), parts[0][1].shape[-1]), np.float32)
            for own, values in parts:
                block[:, own] = values
            collector.add(batch, block)
        return collector.layers()

    def _values(
        self,
        tensors: dict[str, torch.Tensor],
        arm: int | NewArm,
        scale: Scale,
        calibrated: bool,
    ) -> np.ndarray:
        """Return what layers hold of a batch, shape ``(n_layers, n_cells, n_genes)``."""
        z = self._states(tensors, scale.n_samples)
        px = self._decode(tensors, arm, scale, calibrated, z)
        if scale.keep_residuals:
            here = {k: v for k, v in tensors.items() if k != keys.TARGET_BATCH_KEY}
            received = tensors[keys.TREATMENT_KEY].long().squeeze(-1)
            own = self._decode(here, received, replace(scale, library_size=None), calibrated, z)
            couple = sample_with_residuals if scale.n_samples else expect_with_residuals
            values = couple(own, px, tensors[REGISTRY_KEYS.X_KEY])
        elif scale.keep_totals:
            totals = tensors[REGISTRY_KEYS.X_KEY].sum(dim=-1, keepdim=True)
            fixed = scale.library_size
            values = sample_with_totals(px, totals if fixed is None else 0 * totals + fixed)
        else:
            values = px.sample() if scale.n_samples else px.mean
        values = scale.quantiles_of(values) if scale.quantiles else values
        values = torch.log1p(values) if scale.log1p else values
        return values.cpu().numpy()

    def _states(self, tensors: dict[str, torch.Tensor], n_samples: int | None) -> torch.Tensor:
        """Latent states of a batch, ``(n_draws, n_cells, n_latent)``: draws, or the mean alone."""
        inputs = self.module._get_inference_input(tensors)
        outputs = self.module.inference(**inputs, n_samples=n_samples or 0)
        return outputs[MODULE_KEYS.Z_KEY] if n_samples else outputs[MODULE_KEYS.QZ_KEY].loc[None]

    def _decode(
        self,
        tensors: dict[str, torch.Tensor],
        code: int | torch.Tensor | NewArm,
        scale: Scale,
        calibrated: bool,
        z: torch.Tensor | None = None,
    ) -> torch.distributions.Distribution:
        """p(y′ | z, t′) of a batch, batch shape ``(n_draws, n_cells, n_genes)``.

        The latent states are each cell's own (draws, or its mean) where none are given.
        """
        module = self.module
        inputs = module._get_inference_input(tensors)
        z = self._states(tensors, scale.n_samples) if z is None else z
        size = inputs["size"]
        if scale.library_size is not None:
            size = torch.full_like(size, scale.library_size)
        stratum = tensors[keys.STRATUM_KEY].squeeze(-1)
        if isinstance(code, NewArm):
            treatment = code.code.expand(len(stratum), -1)
            shift = code.shift_of(stratum)
        else:
            treatment = torch.zeros_like(inputs["treatment"]) + code
            shift = module.calibration_shift(stratum, treatment)
        covariates = module.covariate_codes(tensors, counterfactual=True)
        outputs = module.generative(
            z, size, treatment, covariates, shift=shift if calibrated else None
        )
        return outputs[MODULE_KEYS.PX_KEY]

    def _record(self, cells: AnnData, layer: str, entry: dict[str, Any]) -> None:
        """Write what a layer holds, and which model wrote it, to ``uns``."""
        provenance = dict(cells.uns.get("scvci", {}))
        provenance[layer] = {
            **entry,
            "likelihood": self.module.config.likelihood,
            "model": type(self).__name__,
            "version": __version__,
            "seed": self.seed_,
        }
        if not self.module.likelihood.is_count:
            provenance[layer]["scale"] = "scale of the training data"
        cells.uns["scvci"] = provenance
