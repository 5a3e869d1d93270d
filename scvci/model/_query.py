"""A trained model for new cells, strata, batches and treatments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch

from scvci.data import align_genes, extend_registry
from scvci.metrics import PairLevels
from scvci.module import extend_weights

from ._calibration import to_arrays
from ._registry import RegistryMixin

if TYPE_CHECKING:
    from anndata import AnnData


class QueryMixin(RegistryMixin):
    """Serve data that the model was not trained on."""

    #: Entries of the calibration that come from a reference, ``(n_strata, n_treatments)``.
    carried_calibration_: np.ndarray | None = None
    #: Parts of parameters that the reference does not have, as masks; ``None`` for no reference.
    new_weights_: dict[str, np.ndarray] | None = None
    treatment_similarity_: dict[str, Any] | None
    #: Measured levels of all pairs, as saved: see :class:`~scvci.metrics.PairLevels`.
    levels_: dict[str, np.ndarray]

    @classmethod
    def load_query_data(cls, adata: AnnData, reference_model: Self | str) -> Self:
        """Carry a trained model over to new data.

        New levels of covariates, batches and treatments are appended to what the model knows. It
        predicts at once: for a new stratum, the controls of the new data give the baseline, and
        effects are what the reference's strata have in common, by the networks and, on average,
        by a mixed model of measured means. So a reference serves data that have controls only.
        :meth:`train` then fits the parameters of what is new, and of nothing else. A new
        treatment needs it; its mean effect is learned, but how its effect depends on the cell lies
        in weights that all treatments share: train on all data where single cells matter.

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
        masks = extend_weights(reference.module, model.module)
        model.new_weights_ = {name: mask.bool().numpy() for name, mask in masks.items()}
        model._freeze()
        model.n_trainings_ = reference.n_trainings_
        model.is_trained_ = True
        carried = np.zeros((len(model.strata), len(model.treatments)), dtype=bool)
        carried[: len(reference.strata), : len(reference.treatments)] = True
        model.carried_calibration_ = carried
        model._carry_similarity(reference)
        model._carry_levels(reference)
        model.to_device(reference.module.device)
        model._after_training(np.arange(cells.n_obs), np.random.default_rng(model.seed_))
        model.module.eval()
        return model

    def _freeze(self) -> None:
        """Leave only what is new to training, if there is a reference."""
        if self.new_weights_ is None:
            return
        for name, parameter in self.module.named_parameters():
            if name in self.new_weights_:
                mask = torch.as_tensor(self.new_weights_[name])
                parameter.register_hook(lambda grad, mask=mask: grad * mask.to(grad))
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

    def _carry_levels(self, reference: Self) -> None:
        """Measured levels of the reference's pairs; models saved without them have none."""
        shape = (len(self.strata), len(self.treatments), len(self.gene_names_))
        empty = PairLevels(np.zeros(shape), np.zeros(shape), np.zeros(shape[:2], dtype=bool))
        levels = to_arrays(empty)
        saved = getattr(reference, "levels_", None)
        if saved is not None:
            n_strata, n_treatments = saved["observed"].shape
            for name, value in saved.items():
                levels[name][:n_strata, :n_treatments] = value
        self.levels_ = levels
