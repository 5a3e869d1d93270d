"""Training of the model."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scvi import settings
from scvi.train import TrainRunner

from scvci.data import _constants as keys
from scvci.data._cells import resolve_indices
from scvci.data._sampler import CounterfactualSampler
from scvci.data._splitter import CounterfactualSplitter, split_cells
from scvci.data._statistics import compute_statistics
from scvci.pooling import effect_variances
from scvci.pooling._similarity import similarity_weights
from scvci.train import VCITrainingPlan
from scvci.train._callbacks import RestoreBest

from ._arms import mean_effects, variance_beyond
from ._base import Seeded, VCIBase
from ._calibration_fit import fit_calibration, measured_means
from ._latent_check import warn_if_uninformative

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scvci.data import Cells
    from scvci.data._statistics import Statistics
    from scvci.pooling import PairMeans

    from ._calibration import ReferenceState

#: Validation criterion: the weighted objective on validation cells with fixed targets. It holds
#: the likelihood of the counterfactual and the divergence, not only the reconstruction.
_MONITOR = "validation_loss"

type Parts = tuple[np.ndarray, np.ndarray, np.ndarray]


class TrainingMixin(VCIBase):
    """Split, train with early stopping, restore the best weights, calibrate."""

    reference_: ReferenceState | None

    def train(
        self,
        max_epochs: int | None = None,
        accelerator: str = "auto",
        devices: int | list[int] | str = "auto",
        *,
        train_size: float = 0.9,
        validation_size: float | None = None,
        shuffle_set_split: bool = True,
        batch_size: int | None = None,
        early_stopping: bool = True,
        datasplitter_kwargs: dict[str, Any] | None = None,
        plan_kwargs: dict[str, Any] | None = None,
        **trainer_kwargs: Any,
    ) -> None:
        """Train the model.

        Parameters
        ----------
        max_epochs
            Most epochs to train for; by default so many that there are about 4,000 steps, at most
            400 epochs (1,000 with the ``paper`` preset).
        accelerator, devices
            See :class:`~scvi.train.Trainer`; by default a GPU where there is one.
        train_size, validation_size
            Shares of the cells, drawn within each (treatment, stratum); ``None`` gives the rest to
            validation. Cells in neither are for testing and enter nothing.
        shuffle_set_split
            Whether the split is random.
        batch_size
            Cells per batch; by default ``scvi.settings.batch_size``, 128 (64 with the ``paper``
            preset).
        early_stopping
            Stop when the objective on validation cells with fixed counterfactual targets no
            longer improves, and restore the best weights.
        datasplitter_kwargs
            ``external_indexing``: rows of the training, validation and test cells.
        plan_kwargs
            Passed to :class:`~scvci.train.VCITrainingPlan`.
        **trainer_kwargs
            Passed to :class:`~scvi.train.Trainer`. ``enable_progress_bar=False`` also hides the
            progress of the calibration that follows training.

        Raises
        ------
        ValueError
            If the model holds no cells, or labels in ``obs`` changed since ``setup_anndata``.

        Warns
        -----
        UserWarning
            If the latent state holds no information on single cells.
        """
        cells = self.own_cells("train it")
        self._check_labels(cells)
        if not any(parameter.requires_grad for parameter in self.module.parameters()):
            raise ValueError(
                "There is nothing new to train: the reference was trained on all strata, batches "
                "and treatments of these cells. Predict with the model as it is."
            )
        defaults = self.module.backbone.training
        batch_size = batch_size or defaults.batch_size or settings.batch_size
        seed = self.seed_ + self.n_trainings_
        rng = np.random.default_rng(seed)
        parts = _split(
            cells,
            train_size,
            validation_size,
            rng if shuffle_set_split else None,
            (datasplitter_kwargs or {}).get("external_indexing"),
        )
        cells = cells.take(parts[0])
        statistics = compute_statistics(cells, self.module.likelihood.uses_size)
        splitter = CounterfactualSplitter(
            self._sampler(cells, statistics), parts, batch_size=batch_size, seed=seed
        )
        if self.n_trainings_ == 0:
            self._initialise(cells, statistics)
        if early_stopping and splitter.n_val == 0:
            warnings.warn(
                "There are no validation cells, so training runs for max_epochs without early "
                "stopping. Lower train_size for an honest stopping criterion.",
                UserWarning,
                stacklevel=2,
            )
            early_stopping = False
        if max_epochs is None:
            max_epochs = defaults.n_epochs(splitter.n_train, batch_size)
        seen = self.seen_cells()
        self.module.train()
        self.cache.clear()
        with Seeded(seed):
            plan = VCITrainingPlan(self.module, **self._plan_options(plan_kwargs))
            self._run(
                plan, splitter, max_epochs, accelerator, devices, early_stopping, trainer_kwargs
            )
            rows = np.sort(np.concatenate(parts[:2]))
            self._after_training(
                cells.take(rows), rng, trainer_kwargs.get("enable_progress_bar", True)
            )
        self.trained_cells_ = sorted({*seen, *self.parts_["train"]})
        self.n_trainings_ += 1

    def seen_cells(self) -> list[str]:
        """Names of all cells that any training was fitted to or stopped by."""
        return sorted({*self.trained_cells_, *self.parts_.get("validation", [])})

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
        for name, (now, then) in stored.items():
            changed = now != then
            if changed.any():
                raise ValueError(
                    f"obs[{name!r}] has changed in {int(changed.sum())} cells since setup_anndata "
                    f"(first: {cells.names[int(np.argmax(changed))]!r}). Call setup_anndata again "
                    "and build a new model, or put the labels back."
                )

    def _sampler(self, cells: Cells, statistics: Statistics) -> CounterfactualSampler:
        module, objective = self.module, self.config.objective
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
        self.module.likelihood.set_overdispersion(overdispersion)
        self.module.set_statistics(
            reference_size=statistics.reference_size,
            mean_rate=statistics.mean_rate,
            feature_mean=statistics.feature_mean,
            continuous=continuous,
            effect_variances=self._effect_variances(measured_means(self.module, statistics)),
            n_cells=int(statistics.pair_count.sum()),
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
        defaults = dict(self.module.backbone.training.plan)
        if self.reference_ is not None:
            # Weight decay would move the weights that are to stay.
            defaults["weight_decay"] = 0.0
        return {**defaults, **(plan_kwargs or {})}

    def _run(
        self,
        plan: VCITrainingPlan,
        splitter: CounterfactualSplitter,
        max_epochs: int,
        accelerator: str,
        devices: int | list[int] | str,
        early_stopping: bool,
        trainer_kwargs: dict[str, Any],
    ) -> None:
        """Hand everything to scvi-tools' runner."""
        options = dict(trainer_kwargs)
        options["callbacks"] = list(options.get("callbacks") or [])
        if early_stopping:
            monitor = options.setdefault("early_stopping_monitor", _MONITOR)
            options.setdefault("early_stopping_patience", 20)
            options["callbacks"].append(RestoreBest(monitor))
        if splitter.n_val:
            options.setdefault("check_val_every_n_epoch", 1)
        runner = TrainRunner(
            self,
            training_plan=plan,
            data_splitter=splitter,
            max_epochs=max_epochs,
            accelerator=accelerator,
            devices=devices,
            early_stopping=early_stopping,
            **options,
        )
        # scvi-tools adds to the history of a trained model; one carried over has none yet.
        carried_over = self.is_trained_ and self.history_ is None
        self.is_trained_ = self.is_trained_ and not carried_over
        try:
            # Lightning suggests worker processes; in-memory AnnData are faster without.
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*does not have many workers.*")
                warnings.filterwarnings("ignore", message=".*number of training batches.*")
                runner()
        finally:
            self.is_trained_ = self.is_trained_ or carried_over

    def _after_training(
        self, cells: Cells, rng: np.random.Generator, show_progress: bool = True
    ) -> None:
        """Calibrate on the cells that training and early stopping saw, and check the latents."""
        statistics = compute_statistics(cells, self.module.likelihood.uses_size)
        statistics = statistics.at_size(float(self.module.reference_size))
        self.calibration = fit_calibration(
            self.module,
            cells,
            statistics,
            rng,
            reference=None if self.reference_ is None else self.reference_.calibration,
            show_progress=show_progress,
        )
        if self.reference_ is None:
            self.similarity_ = self._similar_treatments(self.calibration.means)
            warn_if_uninformative(self.module, self.calibration, cells, statistics, rng)

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


def _split(
    cells: Cells,
    train_size: float,
    validation_size: float | None,
    rng: np.random.Generator | None,
    external: Sequence[Any] | None,
) -> Parts:
    """Rows of the training, validation and test cells."""
    if external is not None:
        parts = [resolve_indices(cells.adata, part) for part in external]
        together = np.concatenate(parts)
        if len(np.unique(together)) < len(together) or not len(parts[0]):
            raise ValueError(
                "external_indexing must give training cells, and no cell twice among training, "
                "validation and test cells."
            )
        parts += [np.array([], dtype=np.int64)] * (3 - len(parts))
        return parts[0], parts[1], parts[2]
    group = cells.stratum * cells.n_treatments + cells.treatment
    return split_cells(group, train_size, validation_size, rng)
