"""Counterfactual prediction into AnnData layers."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy import sparse
from scvi import settings
from scvi.module._constants import MODULE_KEYS

from scvci._version import __version__
from scvci.data import CellReader, resolve_indices, unknown_name_message
from scvci.data import _constants as keys

from ._registry import RegistryMixin

if TYPE_CHECKING:
    from anndata import AnnData


@dataclass(frozen=True)
class _Scale:
    """On which scale a counterfactual is written."""

    library_size: float | None
    log1p: bool
    n_samples: int | None

    def describe(self) -> str:
        size = "own library size" if self.library_size is None else f"{self.library_size:g}"
        what = "sampled counts" if self.n_samples else "expected counts"
        return f"{'log1p of ' if self.log1p else ''}{what} at library size {size}".replace(
            "library size own library size", "own library size"
        )


class PredictionMixin(RegistryMixin):
    """What would have been: counterfactual expression, and the latent state it rests on."""

    def predict_counterfactual(
        self,
        treatment: str | Sequence[str] | None = None,
        adata: AnnData | None = None,
        indices: Sequence[int] | np.ndarray | None = None,
        layer_added: str | None = None,
        library_size: float | None = None,
        log1p: bool = False,
        n_samples: int | None = None,
        calibrated: bool = True,
        batch_size: int | None = None,
    ) -> list[str]:
        r"""Write each cell's expression under another treatment into layers.

        The cell's own expression, treatment and covariates give its latent state (the mean of
        q(z | y, x, t)); the layer holds the mean of p(y′ | z, t′). ``X`` is not touched.

        Parameters
        ----------
        treatment
            A treatment, several, or ``None`` for all, the control included.
        adata
            Cells to predict for, by default the model's. Genes are aligned by name; genes that the
            model does not have become NaN.
        indices
            Rows, mask or names of the cells; rows outside are NaN.
        layer_added
            Name of the layer, by default ``"counterfactual_<treatment>"`` (a ``/`` in a name
            becomes ``_``, as files cannot hold it). With several treatments it is the prefix.
        library_size
            Library size (or size factor) to predict at; by default each cell's own. Not for
            ``likelihood="normal"``, whose layers are on the scale of the data.
        log1p
            Whether to write the logarithm of one plus the expected counts.
        n_samples
            Draw that many samples (latent state and expression) in place of the expectation:
            whole numbers as sparse layers, numbered from ``_1`` if there are several.
        calibrated
            Whether to apply the marginal calibration of the (stratum, treatment).
        batch_size
            Cells per step.

        Returns
        -------
        Names of the layers. ``adata.uns["scvci"]`` records treatment, dose, scale, likelihood,
        samples and version for each of them.

        Raises
        ------
        RuntimeError
            If the model is not trained.
        ValueError, KeyError
            If a treatment, level or gene is unknown; the message names it and the nearest ones.

        References
        ----------
        Wu, McConnell and Iriondo, "Counterfactual Generative Modeling with Variational Causal
        Inference", ICLR 2025.
        """
        self._require_trained("predict counterfactuals")
        targets = self._targets(treatment)
        scale = _Scale(library_size, log1p, n_samples)
        self._check_scale(scale)
        cells = self._cells_of(adata)
        reader = CellReader.from_registry(cells, self.registry, self.gene_names_)
        rows = resolve_indices(cells, indices)
        names = self._layer_names(targets, layer_added, treatment, scale)
        self._warn_about_cells(reader, rows)
        for target, layers in names.items():
            outputs = self._predict(reader, rows, target, scale, calibrated, batch_size)
            for layer, values in zip(layers, outputs, strict=True):
                cells.layers[layer] = values
                self._record(cells, layer, target, scale, calibrated)
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

    def _targets(self, treatment: str | Sequence[str] | None) -> list[str]:
        known = self.treatments
        if treatment is None:
            return known
        single = isinstance(treatment, str) or not isinstance(treatment, Sequence | np.ndarray)
        targets = [str(treatment)] if single else [str(t) for t in treatment]
        for target in targets:
            if target not in known:
                raise ValueError(
                    unknown_name_message("Treatment", target, known)
                    + " Nothing was predicted; ask for a known treatment or train on data with "
                    "this one."
                )
        if len(set(targets)) < len(targets):
            raise ValueError(f"Treatments are asked for more than once: {targets}.")
        return targets

    def _check_scale(self, scale: _Scale) -> None:
        is_count = self.module.likelihood.is_count
        if scale.n_samples is not None and scale.n_samples < 1:
            raise ValueError(f"n_samples={scale.n_samples} must be at least 1.")
        if scale.library_size is not None and not scale.library_size > 0:
            raise ValueError(f"library_size={scale.library_size} must be positive.")
        if not is_count and (scale.library_size is not None or scale.log1p):
            raise ValueError(
                "library_size and log1p are for count likelihoods; with likelihood='normal' the "
                "counterfactual is on the scale of the data (log-normalised)."
            )
        if scale.n_samples and scale.log1p:
            raise ValueError("n_samples draws counts; log1p applies to expectations only.")

    @staticmethod
    def _layer_names(
        targets: list[str],
        layer_added: str | None,
        treatment: str | Sequence[str] | None,
        scale: _Scale,
    ) -> dict[str, list[str]]:
        single = isinstance(treatment, str)
        names = {}
        for target in targets:
            base = layer_added if single and layer_added else None
            base = base or f"{layer_added or 'counterfactual'}_{target}".replace("/", "_")
            n = scale.n_samples or 1
            names[target] = [base] if n == 1 else [f"{base}_{i + 1}" for i in range(n)]
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
        target: str,
        scale: _Scale,
        calibrated: bool,
        batch_size: int | None,
    ) -> list[Any]:
        """Layers (one, or one per sample) aligned with all rows and genes of the AnnData."""
        code = self.treatments.index(target)
        sampled = bool(scale.n_samples) and self.module.likelihood.is_count
        n_layers = scale.n_samples or 1
        collector = _Collector(reader, rows, n_layers, sparse_layers=sampled)
        for batch, tensors in reader.batches(rows, batch_size or settings.batch_size):
            px = self._decode(self._on_device(tensors), code, scale, calibrated)
            values = px.sample() if scale.n_samples else px.mean
            values = torch.log1p(values) if scale.log1p else values
            collector.add(batch, values.cpu().numpy().astype(np.float32, copy=False))
        return collector.layers()

    def _decode(
        self, tensors: dict[str, torch.Tensor], code: int, scale: _Scale, calibrated: bool
    ) -> torch.distributions.Distribution:
        """p(y′ | z, t′) of a batch, batch shape ``(n_draws, n_cells, n_genes)``."""
        module = self.module
        inputs = module._get_inference_input(tensors)
        outputs = module.inference(**inputs, n_samples=scale.n_samples or 0)
        z = (
            outputs[MODULE_KEYS.Z_KEY]
            if scale.n_samples
            else outputs[MODULE_KEYS.QZ_KEY].loc[None]
        )
        size = inputs["size"]
        if scale.library_size is not None:
            size = torch.full_like(size, scale.library_size)
        treatment = torch.full_like(inputs["treatment"], code)
        stratum = tensors[keys.STRATUM_KEY].squeeze(-1)
        shift = module.calibration_shift(stratum, treatment) if calibrated else None
        return module.generative(z, size, treatment, inputs["covariates"], shift=shift)[
            MODULE_KEYS.PX_KEY
        ]

    def _record(
        self, cells: AnnData, layer: str, target: str, scale: _Scale, calibrated: bool
    ) -> None:
        is_count = self.module.likelihood.is_count
        provenance = dict(cells.uns.get("scvci", {}))
        provenance[layer] = {
            "treatment": target,
            "dose": 1.0,
            "scale": scale.describe() if is_count else "scale of the training data",
            "likelihood": self.module.config.likelihood,
            "n_samples": scale.n_samples or 0,
            "calibrated": calibrated,
            "model": type(self).__name__,
            "version": __version__,
            "seed": self.seed_,
        }
        cells.uns["scvci"] = provenance


class _Collector:
    """Gather predictions of batches into layers of the AnnData's shape.

    Expectations are dense, with NaN where nothing was asked for; sampled counts are sparse, with
    the rows outside empty only if all rows were asked for, and dense with NaN otherwise.
    """

    def __init__(
        self, reader: CellReader, rows: np.ndarray, n_layers: int, sparse_layers: bool
    ) -> None:
        self.shape = reader.adata.shape
        self.columns = reader.columns
        complete = len(rows) == self.shape[0] and (
            self.columns is None or len(self.columns) == self.shape[1]
        )
        self.sparse = sparse_layers and complete
        self._blocks: list[list[Any]] = [[] for _ in range(n_layers)]
        self._dense: list[np.ndarray] = []
        if not self.sparse:
            make = np.empty if complete else lambda s, dtype: np.full(s, np.nan, dtype=dtype)
            self._dense = [make(self.shape, dtype=np.float32) for _ in range(n_layers)]

    def add(self, rows: np.ndarray, values: np.ndarray) -> None:
        """Take the values of ascending rows, shape ``(n_layers, n_rows, n_model_genes)``."""
        for i, block in enumerate(values):
            if self.sparse:
                ordered = block if self.columns is None else self._in_file_order(block)
                self._blocks[i].append(sparse.csr_matrix(ordered.astype(np.int32)))
            elif self.columns is None:
                self._dense[i][rows] = block
            else:
                self._dense[i][np.ix_(rows, self.columns)] = block

    def _in_file_order(self, block: np.ndarray) -> np.ndarray:
        ordered = np.empty_like(block)
        ordered[:, self.columns] = block
        return ordered

    def layers(self) -> list[Any]:
        """Return the finished layers."""
        if not self.sparse:
            return self._dense
        empty = sparse.csr_matrix(self.shape, dtype=np.int32)
        return [sparse.vstack(b, format="csr") if b else empty for b in self._blocks]
