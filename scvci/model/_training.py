"""Training of the model."""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager
from dataclasses import astuple
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scvi import settings
from scvi.train import TrainRunner

from scvci.data import (
    CellReader,
    Cohort,
    CounterfactualSampler,
    CounterfactualSplitter,
    compute_statistics,
    split_cells,
    stratum_codes,
)
from scvci.data import _constants as keys
from scvci.metrics import PairLevels, effect_variances, similarity_weights
from scvci.train import RestoreBest, VCITrainingPlan

from ._arms import mean_effects, variance_beyond
from ._calibration import fit_calibration, measured_levels, merge_levels, to_arrays
from ._collapse import warn_if_collapsed
from ._registry import RegistryMixin

if TYPE_CHECKING:
    from scvci.data import Statistics

#: Validation criterion: the weighted objective on validation cells with fixed targets. It holds
#: the likelihood of the counterfactual and the divergence, not only the reconstruction.
_MONITOR = "validation_loss"


class TrainingMixin(RegistryMixin):
    """Split, train with early stopping, restore the best weights, calibrate."""

    carried_calibration_: np.ndarray | None
    treatment_similarity_: dict[str, Any] | None
    levels_: dict[str, np.ndarray]

    def train(
        self,
        max_epochs: int | None = None,
        accelerator: str = "auto",
        devices: int | list[int] | str = "auto",
        train_size: float | None = None,
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
            Shares of the cells, drawn within each (treatment, stratum); by default 0.9 and the
            rest. Cells in neither are for testing and enter nothing.
        shuffle_set_split
            Whether the split is random.
        batch_size
            Cells per batch; by default 128 (64 with the ``paper`` preset).
        early_stopping
            Stop when the objective on validation cells with fixed counterfactual targets no
            longer improves, and restore the best weights.
        datasplitter_kwargs
            ``external_indexing``: rows of the training, validation and test cells.
        plan_kwargs
            Passed to :class:`~scvci.train.VCITrainingPlan`.
        **trainer_kwargs
            Passed to :class:`~scvi.train.Trainer`.

        Raises
        ------
        ValueError
            If the model holds no cells.

        Warns
        -----
        UserWarning
            If the latent state has collapsed.
        """
        if self.adata is None:
            raise ValueError("The model was loaded without cells; load it with adata= to train.")
        self._validate_anndata(self.adata)
        if not any(parameter.requires_grad for parameter in self.module.parameters()):
            raise ValueError(
                "There is nothing new to train: the reference knows all strata, batches and "
                "treatments of these cells. Predict with the model as it is."
            )
        defaults = self.module.backbone.training
        batch_size = batch_size or defaults.batch_size or settings.batch_size
        seed = self.seed_ + self.n_trainings_
        rng = np.random.default_rng(seed)
        parts = self._split(
            train_size, validation_size, rng if shuffle_set_split else None, datasplitter_kwargs
        )
        statistics, sampler = self._prepare(parts[0])
        splitter = CounterfactualSplitter(
            self.adata_manager, sampler, parts, batch_size=batch_size, seed=seed
        )
        if max_epochs is None:
            max_epochs = defaults.n_epochs(splitter.n_train, batch_size)
        if self.n_trainings_ == 0:
            self._set_statistics(statistics)
        if early_stopping and splitter.n_val == 0:
            warnings.warn(
                "There are no validation cells, so training runs for max_epochs without early "
                "stopping. Lower train_size for an honest stopping criterion.",
                UserWarning,
                stacklevel=2,
            )
            early_stopping = False
        self.module.train()
        with Seeded(seed):
            self._run(
                splitter,
                max_epochs,
                accelerator,
                devices,
                early_stopping,
                plan_kwargs,
                trainer_kwargs,
            )
            self._after_training(np.sort(np.concatenate(parts[:2])), rng)
        self.n_trainings_ += 1

    def _run(
        self,
        splitter: CounterfactualSplitter,
        max_epochs: int,
        accelerator: str,
        devices: int | list[int] | str,
        early_stopping: bool,
        plan_kwargs: dict[str, Any] | None,
        trainer_kwargs: dict[str, Any],
    ) -> None:
        """Hand everything to scvi-tools' runner."""
        defaults = dict(self.module.backbone.training.plan)
        if self.carried_calibration_ is not None:
            # Weight decay would move the weights that are to stay.
            defaults["weight_decay"] = 0.0
        plan = VCITrainingPlan(self.module, **{**defaults, **(plan_kwargs or {})})
        options = dict(trainer_kwargs)
        options["callbacks"] = list(options.get("callbacks", []))
        if early_stopping:
            monitor = options.setdefault("early_stopping_monitor", _MONITOR)
            options.setdefault("early_stopping_patience", 20)
            options["callbacks"].append(RestoreBest(monitor))
        if splitter.n_val:
            options.setdefault("check_val_every_n_epoch", 1)
        # Lightning suggests worker processes; in-memory AnnData are faster without.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            warnings.filterwarnings("ignore", message=".*number of training batches.*")
            TrainRunner(
                self,
                training_plan=plan,
                data_splitter=splitter,
                max_epochs=max_epochs,
                accelerator=accelerator,
                devices=devices,
                early_stopping=early_stopping,
                **options,
            )()

    def _codes(self) -> tuple[np.ndarray, np.ndarray]:
        """Treatment and stratum of each of the model's cells."""
        treatment = np.asarray(self.adata_manager.get_from_registry(keys.TREATMENT_KEY)).ravel()
        covariates = np.asarray(self.adata_manager.get_from_registry(keys.COVARIATES_KEY))
        stratum = stratum_codes(covariates, self._state(keys.COVARIATES_KEY))
        return treatment.astype(np.int64), stratum

    def _split(
        self,
        train_size: float | None,
        validation_size: float | None,
        rng: np.random.Generator | None,
        options: dict[str, Any] | None,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        external = (options or {}).get("external_indexing")
        if external is not None:
            parts = [np.asarray(part, dtype=np.int64) for part in external]
            parts += [np.array([], dtype=np.int64)] * (3 - len(parts))
            return parts[0], parts[1], parts[2]
        treatment, stratum = self._codes()
        group = stratum * len(self.treatments) + treatment
        return split_cells(group, train_size or 0.9, validation_size, rng)

    def _cohort(self, indices: np.ndarray) -> Cohort:
        treatment, stratum = self._codes()
        size_factor = None
        if self._setup_arg("size_factor_key") is not None:
            size_factor = self.adata_manager.get_from_registry(keys.SIZE_FACTOR_KEY)
        return Cohort(
            adata=self.adata,
            layer=self._setup_arg("layer"),
            indices=indices,
            treatment=treatment,
            stratum=stratum,
            n_treatments=len(self.treatments),
            n_strata=len(self.strata),
            size_factor=None if size_factor is None else np.asarray(size_factor, float).ravel(),
            batch=(
                np.asarray(self.adata_manager.get_from_registry(keys.BATCH_KEY))[:, 0]
                if self.batches
                else None
            ),
        )

    def _statistics(self, cohort: Cohort) -> Statistics:
        """Moments of cells; in a model that was carried over, at the reference's size."""
        statistics = compute_statistics(cohort, self.module.likelihood.uses_size)
        if self.carried_calibration_ is None:
            return statistics
        return statistics.at_size(float(self.module.reference_size))

    def _prepare(self, train_indices: np.ndarray) -> tuple[Statistics, CounterfactualSampler]:
        cohort = self._cohort(train_indices)
        statistics = self._statistics(cohort)
        needs_reference = self.module.covariate_term.needs_reference
        sampler = CounterfactualSampler(
            cohort,
            statistics,
            mode=self.config.target_sampling,
            n_reference=self.config.objective.n_reference if needs_reference else 0,
            uses_size=self.module.likelihood.uses_size,
            control=self.module.sizes.control,
        )
        return statistics, sampler

    def _set_statistics(self, statistics: Statistics) -> None:
        n_genes, n_continuous = len(self.gene_names_), self.module.sizes.n_continuous
        continuous = (np.zeros(n_continuous), np.ones(n_continuous))
        if n_continuous:
            values = np.asarray(self.adata_manager.get_from_registry(keys.CONTINUOUS_KEY), float)
            continuous = (values.mean(axis=0), values.std(axis=0) + 1e-8)
        self.module.likelihood.set_overdispersion(torch.from_numpy(statistics.overdispersion()))
        self.module.set_statistics(
            reference_size=statistics.reference_size,
            mean_rate=statistics.mean_rate,
            feature_mean=statistics.feature_mean,
            feature_scale=np.ones(n_genes),
            continuous=continuous,
            effect_variances=self._effect_variances(statistics),
            n_cells=int(statistics.pair_count.sum()),
        )

    def _effect_variances(self, statistics: Statistics) -> tuple[float, ...] | None:
        """How far effects carry over between strata, from the training cells; ``None`` if unknown.

        Levels are log1p per 10,000, on which effects of expressed genes are log-fold changes.
        """
        levels = measured_levels(self.module, statistics)
        control = self.module.sizes.control
        if not levels.observed[:, control].any():
            return None
        beyond = variance_beyond(levels, self._arms, control)
        return (*astuple(effect_variances(levels, control)), beyond)

    def _after_training(self, indices: np.ndarray, rng: np.random.Generator) -> None:
        """Calibrate on the cells that training and early stopping saw, and look for collapse."""
        statistics = self._statistics(self._cohort(indices))
        reader = CellReader.from_registry(self.adata, self.registry, self.gene_names_)
        levels, carried = measured_levels(self.module, statistics), self.carried_calibration_
        if carried is not None:
            known = PairLevels(**self.levels_)
            levels = merge_levels(known, levels, carried, self.module.sizes.control)
        shift = fit_calibration(self.module, reader, indices, statistics, levels, rng, carried)
        self.module.calibration.copy_(torch.as_tensor(shift))
        self.levels_ = to_arrays(levels)
        if carried is None:
            self.treatment_similarity_ = self._similar_treatments(levels)
            warn_if_collapsed(self.module, reader, indices, statistics, rng)

    def _similar_treatments(self, levels: PairLevels) -> dict[str, Any] | None:
        """Treatments with features as weighted sums of the measured ones."""
        table = self._state(keys.TREATMENT_KEY).get("embeddings")
        if table is None:
            return None
        effects = mean_effects(levels, self._arms, self.module.sizes.control)
        names, values = list(table["names"]), np.asarray(table["values"], dtype=float)
        measured = np.array([names.index(member) for member in self._arms.members])
        found = np.flatnonzero(np.isfinite(effects).all(axis=1))
        weights = np.zeros((len(names), len(measured)))
        if len(found):
            weights[:, found] = similarity_weights(values[measured[found]], effects[found], values)
        return {"names": names, "weights": weights}


class Seeded(AbstractContextManager):
    """Run a block under a torch seed and leave the caller's generators as they were."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._fork = torch.random.fork_rng()

    def __enter__(self) -> None:
        self._fork.__enter__()
        torch.manual_seed(self.seed)

    def __exit__(self, *exc: Any) -> None:
        self._fork.__exit__(*exc)
