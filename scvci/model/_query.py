"""A trained model for new cells, strata, batches and treatments."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING, Self

import numpy as np

from scvci.data import Cells
from scvci.data._extension import align_genes, extend_registry
from scvci.module._extension import extend_weights

from ._calibration import ReferenceState
from ._training import TrainingMixin

if TYPE_CHECKING:
    from anndata import AnnData


class QueryMixin(TrainingMixin):
    """Serve data that the model was not trained on."""

    @classmethod
    def load_query_data(cls, adata: AnnData, reference_model: Self | str | PathLike[str]) -> Self:
        """Carry a trained model over to new data.

        New levels of covariates, batches and treatments are appended to those of the model. It
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
        if isinstance(reference_model, str | PathLike):
            reference = cls.load(reference_model, adata=False)
        else:
            reference = reference_model
        if not reference.is_trained_ or reference.calibration is None:
            raise RuntimeError("The reference model is not trained; call its train() first.")
        cells = align_genes(adata, reference.genes)
        registry = extend_registry(reference.registry, cells)
        # Before anything is written.
        Cells.from_registry(cells, registry).check_expression(reference.is_count)
        cls.setup_anndata(cells, source_registry=registry, **registry["setup_args"])
        params = reference.init_params_["non_kwargs"]
        model = cls(cells, **{**params, "seed": reference.seed_})
        masks = extend_weights(reference.module, model.module)
        model.reference_ = ReferenceState(
            reference.calibration, {name: mask.bool().numpy() for name, mask in masks.items()}
        )
        model.reference_.freeze(model.module)
        model.n_trainings_ = reference.n_trainings_
        model.is_trained_ = True
        model.trained_cells_ = reference.seen_cells()
        model._carry_similarity(reference)
        model.to_device(reference.module.device)
        model.module.eval()
        model._after_training(model.cells(), np.random.default_rng(model.seed_))
        return model

    def _carry_similarity(self, reference: Self) -> None:
        """Weights of treatments by features; new members get none."""
        saved = reference.similarity_
        if saved is not None:
            weights = np.asarray(saved["weights"])
            n_new = len(self.arms.members) - weights.shape[1]
            self.similarity_ = {
                "names": saved["names"],
                "weights": np.pad(weights, ((0, 0), (0, n_new))),
            }
