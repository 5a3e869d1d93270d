"""The VCI model: set up, build, train."""

from __future__ import annotations

import secrets
import warnings
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scvi import REGISTRY_KEYS, settings
from scvi.data import AnnDataManager
from scvi.data.fields import LayerField, NumericalJointObsField, NumericalObsField
from scvi.model.base import BaseModelClass, VAEMixin
from scvi.train import TrainRunner

from scvci.data import (
    CellReader,
    Cohort,
    CounterfactualSampler,
    CounterfactualSplitter,
    CovariateField,
    TreatmentField,
    check_pairs,
    compute_statistics,
    control_index,
    pair_counts,
    split_cells,
    stratum_codes,
    stratum_names,
    validate_expression,
    validate_setup,
)
from scvci.data import _constants as keys
from scvci.module import DataSizes, ModuleConfig, VCIModule, build_config
from scvci.train import RestoreBest, VCITrainingPlan

from ._calibration import fit_calibration
from ._collapse import warn_if_collapsed
from ._persistence import PersistenceMixin
from ._prediction import PredictionMixin

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

    from scvci.data import Statistics

#: Validation criterion: the weighted objective on validation cells with fixed targets. It holds
#: the likelihood of the counterfactual and the divergence, not only the reconstruction.
_MONITOR = "validation_loss"
_PAPER_PLAN = {"lr": 3e-4, "weight_decay": 4e-7, "clip": None, "lr_milestones": [450, 900]}


class VCI(PersistenceMixin, PredictionMixin, VAEMixin, BaseModelClass):
    """Variational causal inference for single-cell perturbation data.

    For each cell, what would its expression have been under another treatment? The model is
    trained with counterfactual supervision and without counterfactual samples (Wu, McConnell and
    Iriondo, ICLR 2025).

    Parameters
    ----------
    adata
        AnnData registered with :meth:`setup_anndata`.
    registry
        Registry of a saved model, in place of ``adata``.
    n_latent
        Dimensions of the latent state.
    likelihood
        ``"nb"``, ``"zinb"`` or ``"poisson"`` for counts, ``"normal"`` for log-normalised data.
    covariate_term
        Kind of the covariate-specific term: ``"moments"``, ``"kernel"`` (the paper's),
        ``"energy"``, ``"discriminator"`` or ``"classifier"``.
    weights
        Weights of the terms ``"individual"``, ``"covariate"`` and ``"divergence"``.
    preset
        ``"default"``, or ``"paper"`` for the arithmetic of the reference implementation.
    architecture, objective
        Further settings by name, see :class:`~scvci.module.Architecture` and
        :class:`~scvci.module.Objective`.
    seed
        Seed of initialisation and training. ``None`` takes ``scvi.settings.seed``, or draws one;
        either way it is recorded as ``seed_``.

    Raises
    ------
    ValueError
        If a setting is unknown or the data are not in the likelihood's support.

    Examples
    --------
    >>> adata = scvci.datasets.simulate_perturbation()
    >>> scvci.model.VCI.setup_anndata(adata, categorical_covariate_keys=["cell_type"])
    >>> model = scvci.model.VCI(adata)
    >>> model.train()
    >>> model.predict_counterfactual("IFNb")
    """

    def __init__(
        self,
        adata: AnnData | None = None,
        registry: dict | None = None,
        n_latent: int | None = None,
        likelihood: str | None = None,
        covariate_term: str | None = None,
        weights: dict[str, float] | None = None,
        preset: str = "default",
        architecture: dict[str, Any] | None = None,
        objective: dict[str, Any] | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__(adata, registry)
        self.config: ModuleConfig = build_config(
            preset,
            likelihood,
            {**(architecture or {}), "n_latent": n_latent},
            weights,
            {**(objective or {}), "covariate_term": covariate_term},
        )
        self.seed_ = _choose_seed(seed)
        self.gene_names_ = (
            adata.var_names.astype(str).to_numpy(dtype=object)
            if adata is not None
            else np.asarray(self._state(REGISTRY_KEYS.X_KEY)["column_names"], dtype=object)
        )
        composition = self._setup_arg("size_factor_key") is None
        with _seeded(self.seed_):
            self.module = VCIModule(self._sizes(), self.config, composition=composition)
        if adata is not None:
            validate_expression(adata, self._setup_arg("layer"), self.module.likelihood.is_count)
        self.n_trainings_ = 0
        self.init_params_ = self._get_init_params(locals())

    @classmethod
    def setup_anndata(
        cls,
        adata: AnnData,
        layer: str | None = None,
        treatment_key: str = "treatment",
        control: str = "control",
        categorical_covariate_keys: Sequence[str] | None = None,
        continuous_covariate_keys: Sequence[str] | None = None,
        size_factor_key: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Register treatment, covariates and expression of an AnnData.

        Everything is checked before anything is written: a refused AnnData is left as it was.

        Parameters
        ----------
        adata
            Cells × genes.
        layer
            Layer with raw counts (or log-normalised data for ``likelihood="normal"``); ``None``
            for ``X``.
        treatment_key
            Column of ``obs`` with the treatment of each cell. Numbers and booleans are read as
            their text; no character in a name has a meaning.
        control
            Label of the untreated cells.
        categorical_covariate_keys
            Columns whose observed combinations are the strata within which treated and control
            cells compare.
        continuous_covariate_keys
            Columns of numbers that the encoder sees.
        size_factor_key
            Column of size factors; by default a cell's library size scales its counts.
        **kwargs
            Passed to :meth:`scvi.data.AnnDataManager.register_fields`.

        Raises
        ------
        KeyError, ValueError
            With the column, level, cell or gene at fault, why, and what to do.

        Warns
        -----
        UserWarning
            If (treatment, stratum) pairs have no cells; they are listed.
        """
        control = str(control)
        setup_method_args = cls._get_setup_method_args(**locals())
        validate_setup(
            adata,
            layer,
            treatment_key,
            control,
            categorical_covariate_keys,
            continuous_covariate_keys,
            size_factor_key,
        )
        fields = [
            LayerField(REGISTRY_KEYS.X_KEY, layer, is_count_data=False),
            TreatmentField(treatment_key, control),
            CovariateField(categorical_covariate_keys),
            NumericalJointObsField(keys.CONTINUOUS_KEY, continuous_covariate_keys),
            NumericalObsField(keys.SIZE_FACTOR_KEY, size_factor_key, required=False),
        ]
        if "source_registry" not in kwargs:
            _check_design(adata, fields[1], fields[2])
        manager = AnnDataManager(fields=fields, setup_method_args=setup_method_args)
        manager.register_fields(adata, **kwargs)
        cls.register_manager(manager)

    @classmethod
    def setup_annbatch(cls, *args: Any, **kwargs: Any) -> None:
        """Not available: scvi-tools' on-disk registry has no place for a treatment.

        Raises
        ------
        NotImplementedError
            Always.
        """
        raise NotImplementedError(
            "VCI cannot be set up on annbatch collections: their registry has no treatment field. "
            "Use setup_anndata; backed AnnData are read from disk."
        )

    # -- what the registry knows ----------------------------------------------------------------

    def _state(self, key: str) -> dict:
        return self.registry["field_registries"][key]["state_registry"]

    def _setup_arg(self, name: str) -> Any:
        return self.registry["setup_args"][name]

    @property
    def treatments(self) -> list[str]:
        """Names of the treatments, the control first."""
        return list(self._state(keys.TREATMENT_KEY)["names"])

    @property
    def control(self) -> str:
        """Name of the control."""
        return self._state(keys.TREATMENT_KEY)["control"]

    @property
    def strata(self) -> list[str]:
        """Names of the strata."""
        return stratum_names(self._state(keys.COVARIATES_KEY))

    def _sizes(self) -> DataSizes:
        covariates = self._state(keys.COVARIATES_KEY)
        n_treatments = len(self.treatments)
        control = control_index(self._state(keys.TREATMENT_KEY))
        codes = np.eye(n_treatments, dtype=np.float32)
        if self.config.architecture.kind != "paper":
            # The control is the zero vector; the reference implementation gives it a column.
            codes = np.delete(codes, control, axis=1)
        return DataSizes(
            n_genes=self.summary_stats["n_vars"],
            treatment_codes=codes,
            control=control,
            n_levels=[len(levels) for levels in covariates["levels"]],
            n_continuous=len(self._setup_arg("continuous_covariate_keys") or []),
            n_strata=len(covariates["strata"]),
        )

    def __repr__(self) -> str:
        """Say what the model is, what it was given and whether it is trained."""
        n_continuous = len(self._setup_arg("continuous_covariate_keys") or [])
        covariates = [*self._state(keys.COVARIATES_KEY)["keys"]]
        objective = self.config.objective
        trained = f"yes, seed {self.seed_}" if self.is_trained_ else "no; call train()"
        return "\n".join(
            [
                f"VCI model of {len(self.gene_names_)} genes",
                f"  treatments: {_shortened(self.treatments)} (control: {self.control!r})",
                f"  covariates: {_shortened(covariates) or 'none'}"
                + (f" and {n_continuous} continuous" if n_continuous else "")
                + f"; {len(self.strata)} strata",
                f"  likelihood: {self.config.likelihood}; {self.config.architecture.n_latent} "
                "latent dimensions",
                f"  objective:  {objective.individual:g} individual + {objective.covariate:g} "
                f"covariate ({objective.covariate_term}) + {objective.divergence:g} divergence",
                f"  trained:    {trained}",
            ]
        )

    # -- training -------------------------------------------------------------------------------

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
            Most epochs to train for; by default so many that there are about 6,000 steps, at most
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
        paper = self.config.architecture.kind == "paper"
        batch_size = batch_size or (64 if paper else settings.batch_size)
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
            n_batches = max(1, splitter.n_train // batch_size)
            max_epochs = 1000 if paper else int(np.clip(6000 // n_batches, 10, 400))
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
        with _seeded(seed):
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
        paper = self.config.architecture.kind == "paper"
        plan = VCITrainingPlan(
            self.module, **{**(_PAPER_PLAN if paper else {}), **(plan_kwargs or {})}
        )
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
        )

    def _prepare(self, train_indices: np.ndarray) -> tuple[Statistics, CounterfactualSampler]:
        uses_size = self.module.likelihood.uses_size
        cohort = self._cohort(train_indices)
        statistics = compute_statistics(cohort, uses_size)
        needs_reference = self.module.covariate_term.needs_reference
        sampler = CounterfactualSampler(
            cohort,
            statistics,
            mode=self.config.target_sampling,
            n_reference=self.config.objective.n_reference if needs_reference else 0,
            uses_size=uses_size,
            control=self.module.sizes.control,
        )
        return statistics, sampler

    def _set_statistics(self, statistics: Statistics) -> None:
        n_genes, n_continuous = len(self.gene_names_), self.module.sizes.n_continuous
        continuous = (np.zeros(n_continuous), np.ones(n_continuous))
        if n_continuous:
            values = np.asarray(self.adata_manager.get_from_registry(keys.CONTINUOUS_KEY), float)
            continuous = (values.mean(axis=0), values.std(axis=0) + 1e-8)
        paper = self.config.architecture.kind == "paper"
        self.module.set_statistics(
            reference_size=statistics.reference_size,
            mean_rate=statistics.mean_rate,
            feature_mean=np.zeros(n_genes) if paper else statistics.feature_mean,
            feature_scale=np.ones(n_genes),
            continuous=continuous,
        )

    def _after_training(self, indices: np.ndarray, rng: np.random.Generator) -> None:
        """Calibrate on the cells that training and early stopping saw, and look for collapse."""
        statistics = compute_statistics(self._cohort(indices), self.module.likelihood.uses_size)
        reader = CellReader.from_registry(self.adata, self.registry, self.gene_names_)
        shift = fit_calibration(self.module, reader, indices, statistics, rng)
        self.module.calibration.copy_(torch.as_tensor(shift))
        warn_if_collapsed(self.module, reader, indices, statistics, rng)


def _check_design(adata: AnnData, treatment: TreatmentField, covariates: CovariateField) -> None:
    """Check strata and pairs on a copy of the labels only."""
    labels = type(adata)(obs=adata.obs[[treatment.treatment_key, *covariates.covariate_keys]])
    state = treatment.register_field(labels)
    strata = covariates.register_field(labels)
    counts = pair_counts(
        labels.obs[treatment.attr_key].to_numpy(),
        stratum_codes(labels.obsm[covariates.attr_key], strata),
        len(state["names"]),
        len(strata["strata"]),
    )
    check_pairs(counts, state["names"], stratum_names(strata))


def _choose_seed(seed: int | None) -> int:
    if seed is not None:
        return int(seed)
    return int(settings.seed) if settings.seed is not None else secrets.randbelow(2**31)


class _seeded(AbstractContextManager):
    """Run a block under a torch seed and leave the caller's generators as they were."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._fork = torch.random.fork_rng()

    def __enter__(self) -> None:
        self._fork.__enter__()
        torch.manual_seed(self.seed)

    def __exit__(self, *exc: Any) -> None:
        self._fork.__exit__(*exc)


def _shortened(names: Sequence[str], n: int = 6) -> str:
    return ", ".join(names[:n]) + (f", … ({len(names)})" if len(names) > n else "")
