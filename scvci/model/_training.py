"""What is particular to training on expression."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from scvci.data import _constants as keys
from scvci.data._sampler import CounterfactualSampler
from scvci.data._statistics import compute_statistics, pseudobulk_moments
from scvci.pooling import effect_variances
from scvci.pooling._similarity import similarity_weights
from scvci.train import NotFiniteError

from ._arms import mean_effects, variance_beyond
from ._base import VCIBase
from ._calibration_fit import fit_calibration, measured_means
from ._latent_check import warn_if_uninformative
from ._model import raise_if_changed

if TYPE_CHECKING:
    from scvci.data import Cells
    from scvci.data._statistics import Statistics
    from scvci.module import TrainingDefaults
    from scvci.pooling import PairMeans


class TrainingMixin(VCIBase):
    """Start scales, draw targets, and calibrate what was trained."""

    def _check_labels(self, cells: Cells) -> None:
        """Compare labels with what ``setup_anndata`` saw: arms and strata are built on it."""
        stored = {
            self.setup_args["treatment_key"]: (
                cells.treatment,
                np.asarray(self.adata_manager.get_from_registry(keys.TREATMENT_KEY)).ravel(),
            )
        }
        registered = np.asarray(self.adata_manager.get_from_registry(keys.COVARIATES_KEY))
        state = self._state(keys.COVARIATES_KEY)
        names = [*state["keys"], *state["edges"]]
        for i, name in enumerate(names):
            stored[name] = (cells.covariates[:, i], registered[:, i])
        if cells.batch is not None:
            of_batch = np.asarray(self.adata_manager.get_from_registry(keys.BATCH_KEY))
            stored[self.setup_args["batch_key"]] = (cells.batch, of_batch[:, 0])
        raise_if_changed(stored, cells.names)

    @property
    def training_defaults(self) -> TrainingDefaults:
        """How the backbone is trained where the user does not say."""
        return self.module.backbone.training

    def _start_training(self, cells: Cells) -> CounterfactualSampler:
        module, objective = self.module, self.config.objective
        statistics = compute_statistics(cells, module.likelihood.uses_size)
        if self.n_trainings_ == 0:
            self._initialise(cells, statistics)
        return CounterfactualSampler(
            cells,
            statistics,
            mode=self.config.target_sampling,
            n_reference=objective.n_reference if module.covariate_term.needs_reference else 0,
            uses_size=module.likelihood.uses_size,
        )

    def _initialise(self, cells: Cells, statistics: Statistics) -> None:
        """Start scales, dispersions and priors from the training cells."""
        n_continuous = self.module.sizes.n_continuous
        continuous = (np.zeros(n_continuous), np.ones(n_continuous))
        if cells.continuous is not None:
            continuous = (cells.continuous.mean(axis=0), cells.continuous.std(axis=0) + 1e-8)
        overdispersion = torch.from_numpy(statistics.overdispersion())
        means = measured_means(self.module, statistics.moments)
        self.module.likelihood.set_overdispersion(overdispersion)
        self.module.set_statistics(
            reference_size=statistics.reference_size,
            mean_rate=statistics.mean_rate,
            feature_mean=statistics.feature_mean,
            continuous=continuous,
            effect_variances=self._effect_variances(means),
            n_cells=int(statistics.moments.count.sum()),
        )

    def _effect_variances(self, means: PairMeans) -> tuple[float, ...] | None:
        """How far effects carry over between strata, from the training cells; ``None`` if unknown.

        Means are log1p per 10,000, on which effects of expressed genes are log-fold changes.
        """
        if not (means.pairs.treatment == 0).any():
            return None
        variances = effect_variances(means)
        beyond = variance_beyond(means, self.arms)
        return (
            variances.common,
            variances.treatment,
            variances.stratum,
            variances.pair,
            beyond,
        )

    def _plan_options(self, plan_kwargs: dict[str, Any] | None) -> dict[str, Any]:
        # Weight decay would move the weights that are to stay.
        fixed = {} if self.reference_ is None else {"weight_decay": 0.0}
        return super()._plan_options({**fixed, **(plan_kwargs or {})})

    def _after_training(
        self, cells: Cells, rng: np.random.Generator, show_progress: bool = True
    ) -> None:
        """Calibrate on the cells that training and early stopping saw, and check the latents."""
        module = self.module
        size = float(module.reference_size) if module.likelihood.uses_size else None
        moments = pseudobulk_moments(cells, size)
        self.calibration = fit_calibration(
            module,
            cells,
            moments,
            rng,
            reference=None if self.reference_ is None else self.reference_.calibration,
            show_progress=show_progress,
        )
        if not np.isfinite(self.calibration.shift).all():
            raise NotFiniteError(
                "The calibration is not finite: predicted means are too far from the real cells "
                "for networks to compute with. Look for outliers among counts and covariates."
            )
        if self.reference_ is None:
            self.similarity_ = self._similar_treatments(self.calibration.means)
            warn_if_uninformative(module, self.calibration, cells, moments, rng)

    def _similar_treatments(self, means: PairMeans) -> dict[str, Any] | None:
        """Treatments with features as weighted sums of the measured ones."""
        table = self._state(keys.TREATMENT_KEY)["embeddings"]
        if table is None:
            return None
        effects = mean_effects(means, self.arms)
        names, values = list(table["names"]), np.asarray(table["values"], dtype=float)
        position = {name: i for i, name in enumerate(names)}
        measured = np.array([position[member] for member in self.arms.members])
        found = np.flatnonzero(np.isfinite(effects).all(axis=1))
        weights = np.zeros((len(names), len(measured)))
        if len(found):
            weights[:, found] = similarity_weights(values[measured[found]], effects[found], values)
        return {"names": names, "weights": weights}
