"""A trained model for new cells, strata, batches and treatments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch

from scvci.data import CellReader, align_genes, compute_statistics, extend_registry
from scvci.module import transfer_weights

from ._calibration import extend_calibration
from ._registry import RegistryMixin

if TYPE_CHECKING:
    from anndata import AnnData

    from scvci.data import Cohort


class QueryMixin(RegistryMixin):
    """Serve data that the model was not trained on."""

    #: Entries of the calibration that come from a reference, ``(n_strata, n_treatments)``.
    carried_calibration_: np.ndarray | None = None
    _is_frozen: bool = False
    treatment_similarity_: dict[str, Any] | None
    _cohort: Any

    @classmethod
    def load_query_data(cls, adata: AnnData, reference_model: Self | str) -> Self:
        """Carry a trained model over to new data.

        New levels of covariates, batches and treatments are appended to what the model knows. It
        predicts at once: for a new stratum, the controls of the new data give the baseline, and
        effects are what the reference's strata have in common, by the model and, on average, by
        their calibration. So a reference serves data that have controls only. :meth:`train` then
        fits the parameters of what is new, and of nothing else; a new treatment needs it, as
        before it does what treatments have in common.

        Parameters
        ----------
        adata
            New cells, with the registered columns. Genes are aligned by name; all of the model's
            must be there. If there are more, or their order differs, the model holds a copy
            (``model.adata``).
        reference_model
            A trained model, or the folder of a saved one.

        Returns
        -------
        A model of the new cells; the reference is left as it is.

        Raises
        ------
        RuntimeError
            If the reference is not trained.
        KeyError, ValueError
            If a column or genes are missing, a treatment is beyond its largest dose in the
            reference, or the architecture cannot be extended (``preset="paper"``).
        """
        reference: Any = reference_model
        if isinstance(reference_model, str):
            reference = cls.load(reference_model, adata=False)  # type: ignore[attr-defined]
        if not reference.is_trained_:
            raise RuntimeError("The reference model is not trained; call its train() first.")
        cells = align_genes(adata, reference.gene_names_)
        registry = extend_registry(reference.registry, cells)
        cls.setup_anndata(cells, source_registry=registry, **registry["setup_args"])  # type: ignore[attr-defined]
        params = reference.init_params_["non_kwargs"]
        model: Any = cls(cells, **{**params, "seed": reference.seed_})  # type: ignore[call-arg]
        masks = transfer_weights(reference.module, model.module)
        model._freeze(masks)
        model.n_trainings_ = reference.n_trainings_
        model.is_trained_ = True
        carried = np.zeros((len(model.strata), len(model.treatments)), dtype=bool)
        carried[: len(reference.strata), : len(reference.treatments)] = True
        model.carried_calibration_ = carried
        model._carry_similarity(reference)
        model.to_device(reference.module.device)
        model._extend_calibration(np.arange(cells.n_obs))
        model.module.eval()
        return model

    def _freeze(self, masks: dict[str, torch.Tensor]) -> None:
        """Leave only what is new to training."""
        self._is_frozen = True
        for name, parameter in self.module.named_parameters():
            if name in masks:
                parameter.register_hook(lambda grad, mask=masks[name]: grad * mask.to(grad))
            else:
                parameter.requires_grad_(False)

    def _carry_similarity(self, reference: Self) -> None:
        """Weights of treatments by features; new members get none."""
        saved = getattr(reference, "treatment_similarity_", None)
        if saved is not None:
            weights = np.asarray(saved["weights"])
            n_new = len(self._arms.members) - weights.shape[1]
            self.treatment_similarity_ = {
                "names": saved["names"],
                "weights": np.pad(weights, ((0, 0), (0, n_new))),
            }

    def _extend_calibration(self, indices: np.ndarray) -> None:
        """Calibrate what does not come from the reference on the given cells."""
        assert self.carried_calibration_ is not None
        cohort: Cohort = self._cohort(indices)
        statistics = compute_statistics(cohort, self.module.likelihood.uses_size)
        reader = CellReader.from_registry(self.adata, self.registry, self.gene_names_)
        rng = np.random.default_rng(self.seed_)
        shift = extend_calibration(
            self.module,
            reader,
            indices,
            statistics.at_size(float(self.module.reference_size)),
            self.carried_calibration_,
            rng,
        )
        self.module.calibration.copy_(torch.as_tensor(shift))
