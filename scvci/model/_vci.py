"""The VCI model: set up, build."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scvi import REGISTRY_KEYS
from scvi.data import AnnDataManager
from scvi.data._utils import _assign_adata_uuid
from scvi.data.fields import LayerField, NumericalJointObsField, NumericalObsField

from scvci.data import Cells
from scvci.data import _constants as keys
from scvci.data._conditions import find_keys, read_conditions
from scvci.data._embeddings import read_embeddings
from scvci.data._fields import CovariateField, TreatmentField, stratum_codes, stratum_names
from scvci.data._validation import (
    check_batches,
    check_pairs,
    covariate_list,
    validate_setup,
    warn_about_empty,
)
from scvci.module import DataSizes, ModuleConfig, VCIModule
from scvci.module._presets import build_config, get_preset
from scvci.pooling import Pairs

from ._prediction import PredictionMixin
from ._query import QueryMixin
from ._seeded import Seeded

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from anndata import AnnData

    from scvci.data._conditions import TreatmentKeys
    from scvci.module._config import CovariateTermName, LikelihoodName, PresetName


class VCI(QueryMixin, PredictionMixin):
    """Variational causal inference for single-cell perturbation data.

    For each cell, what would its expression have been under another treatment? The model is
    trained with counterfactual supervision and without counterfactual samples (Wu, McConnell and
    Iriondo, ICLR 2025). Effects, intervals, tests and evaluation are functions of
    :mod:`scvci.tl`.

    Parameters
    ----------
    adata
        AnnData registered with :meth:`setup_anndata`.
    registry
        Registry of a saved model, in place of ``adata``.
    n_latent
        Dimensions of the latent state; by default 10 (128 with the ``paper`` preset).
    likelihood
        ``"nb"`` (default), ``"zinb"`` or ``"poisson"`` for counts, ``"normal"`` for log-normalised
        data (default of the ``paper`` preset).
    covariate_term
        Kind of the covariate-specific term: ``"moments"`` (default), ``"kernel"`` (the paper's and
        its preset's), ``"energy"``, ``"discriminator"`` or ``"classifier"``.
    weights
        Weights of the terms, by default ``{"individual": 1, "covariate": 1, "divergence": 3}``.
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
    >>> VCI = scvci.model.VCI
    >>> VCI.setup_anndata(adata, layer="counts", categorical_covariate_keys=["cell_type"])
    >>> model = VCI(adata)
    >>> model.train()
    >>> model.predict_counterfactual("IFNb")
    """

    def __init__(
        self,
        adata: AnnData | None = None,
        registry: dict | None = None,
        *,
        n_latent: int | None = None,
        likelihood: LikelihoodName | None = None,
        covariate_term: CovariateTermName | None = None,
        weights: dict[str, float] | None = None,
        preset: PresetName = "default",
        architecture: dict[str, Any] | None = None,
        objective: dict[str, Any] | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__(adata, registry, seed)
        self.config: ModuleConfig = build_config(
            get_preset(preset),
            likelihood,
            {**(architecture or {}), "n_latent": n_latent},
            weights,
            {**(objective or {}), "covariate_term": covariate_term},
        )
        composition = self.setup_args["size_factor_key"] is None
        with Seeded(self.seed_):
            self.module = VCIModule(self._sizes(), self.config, composition=composition)
        if adata is not None:
            cells = self.cells()
            if self.is_count:
                warn_about_empty(cells)
        self.init_params_ = self._get_init_params(locals())

    @classmethod
    def setup_anndata(
        cls,
        adata: AnnData,
        layer: str | None = None,
        *,
        treatment_key: str = "treatment",
        control: str | Sequence[str] = "control",
        categorical_covariate_keys: Sequence[str] | None = None,
        continuous_covariate_keys: Sequence[str] | None = None,
        size_factor_key: str | None = None,
        dose_key: str | None = None,
        separator: str | None = None,
        treatment_embeddings: pd.DataFrame | str | None = None,
        batch_key: str | None = None,
        continuous_strata: int = 1,
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
            their text; no character in a name has a meaning but the ``separator``. Or an entry of
            ``obsm``: a data frame with a column for each treatment, whose rows hold zeros and
            ones, or doses; zeros throughout are the control.
        control
            Label of the untreated cells, or several labels that are one control; the first of them
            names it.
        categorical_covariate_keys
            Columns whose observed combinations are the strata within which treated and control
            cells compare.
        continuous_covariate_keys
            Columns of numbers that the networks see.
        size_factor_key
            Column of size factors; by default a cell's library size scales its counts.
        dose_key
            Column of ``obs`` with the dose of each cell: a number, or one for each member of a
            combination with the separator between them (``"1.0+0.5"``). A dose of 0 is the
            control, whose cells need no dose. Treatments are then named with their dose, as
            ``"A@0.5"``.
        separator
            Between the members of a combination, as ``"+"`` in ``"A+B"``. The order of members
            does not matter, and a control among them means no further treatment.
        treatment_embeddings
            Features by which treatments without a single cell are predicted: a data frame with a
            row for each treatment, measured or not; the name of one in ``uns`` or ``varm``; or
            ``"gene_loadings"`` for treatments that are genes, from the control cells.
        batch_key
            Column of ``obs`` with technical batches. They are no strata: predictions learn from
            all of them, and a counterfactual stays in its cell's batch. Effects are compared
            within batches (:func:`scvci.tl.estimate_effects`).
        continuous_strata
            Number of bins into which each continuous covariate is cut at its quantiles, to be
            compared within like the categorical ones; 1 for none.
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
        treatment_key = str(treatment_key)
        categorical_covariate_keys = covariate_list(
            categorical_covariate_keys, "categorical_covariate_keys"
        )
        continuous_covariate_keys = covariate_list(
            continuous_covariate_keys, "continuous_covariate_keys"
        )
        treatment_keys = find_keys(adata, treatment_key, control, dose_key, separator)
        setup_method_args = cls._get_setup_method_args(
            cls=cls,
            adata=adata,
            layer=layer,
            treatment_key=treatment_key,
            control=list(treatment_keys.controls),
            categorical_covariate_keys=categorical_covariate_keys,
            continuous_covariate_keys=continuous_covariate_keys,
            size_factor_key=size_factor_key,
            dose_key=dose_key,
            separator=separator,
            treatment_embeddings=treatment_embeddings,
            batch_key=batch_key,
            continuous_strata=continuous_strata,
        )
        validate_setup(
            adata,
            layer,
            treatment_keys,
            categorical_covariate_keys,
            continuous_covariate_keys,
            size_factor_key,
            batch_key,
            continuous_strata,
        )
        is_new = kwargs.get("source_registry") is None
        embeddings = None
        if is_new and treatment_embeddings is not None:
            embeddings = _read_embeddings(adata, layer, treatment_keys, treatment_embeddings)
        treatment = TreatmentField(treatment_keys, embeddings)
        binned = continuous_covariate_keys if continuous_strata > 1 else []
        covariates = CovariateField(
            categorical_covariate_keys, {key: [] for key in binned}, continuous_strata
        )
        fields = [
            LayerField(REGISTRY_KEYS.X_KEY, layer, is_count_data=False),
            treatment,
            covariates,
            NumericalJointObsField(keys.CONTINUOUS_KEY, continuous_covariate_keys),
            NumericalObsField(keys.SIZE_FACTOR_KEY, size_factor_key, required=False),
        ]
        batches = None
        if batch_key is not None:
            batches = CovariateField([batch_key], registry_key=keys.BATCH_KEY)
            fields.append(batches)
        if is_new:
            _check_design(adata, treatment, covariates, batches)
        else:
            # Fields write one after the other; what they refuse is to be found before.
            source = {**kwargs["source_registry"], "setup_args": setup_method_args["setup_args"]}
            Cells.from_registry(adata, source)
        known = cls._setup_adata_manager_store.get(adata.uns.get("_scvi_uuid"))
        if known is not None and known.adata is not adata and not adata.is_view:
            # A copy that is set up anew is no copy: the original keeps its own registry.
            _assign_adata_uuid(adata, overwrite=True)
        manager = AnnDataManager(fields=fields, setup_method_args=setup_method_args)
        manager.register_fields(adata, **kwargs)
        cls.register_manager(manager)

    @classmethod
    def registry_of(cls, adata: AnnData) -> dict[str, Any]:
        """Registry that an AnnData, or the one that it is a copy of, was set up with.

        Parameters
        ----------
        adata
            The cells.

        Raises
        ------
        ValueError
            If it was not set up.
        """
        if not hasattr(adata, "uns"):
            raise TypeError(f"adata= must be an AnnData; got {type(adata).__name__}.")
        uuid = adata.uns.get("_scvi_uuid")
        manager, classes = None, [cls]
        while manager is None and classes:
            candidate = classes.pop()
            manager = candidate._setup_adata_manager_store.get(uuid)
            classes += candidate.__subclasses__()
        if manager is None:
            raise ValueError(
                f"adata was not set up in this session: call {cls.__name__}.setup_anndata first, "
                "or pass model= to read it as a model does."
            )
        return manager.registry

    def _sizes(self) -> DataSizes:
        return DataSizes(
            n_genes=len(self.genes),
            doses=self.arms.relative_doses.toarray(),
            control=0,
            n_levels=[len(levels) for levels in self._state(keys.COVARIATES_KEY)["levels"]],
            n_continuous=len(self.setup_args["continuous_covariate_keys"] or []),
            n_batches=len(self.batches),
        )

    def __repr__(self) -> str:
        """Say what the model is, what it was given and whether it is trained."""
        n_continuous = len(self.setup_args["continuous_covariate_keys"] or [])
        covariates = [*self._state(keys.COVARIATES_KEY)["keys"]]
        trained = f"yes, seed {self.seed_}" if self.is_trained_ else "no; call train()"
        return "\n".join(
            [
                f"VCI model of {len(self.genes)} genes",
                f"  treatments: {_shortened(self.treatments)} (control: {self.control!r})",
                f"  covariates: {_shortened(covariates) or 'none'}"
                + (f" and {n_continuous} continuous" if n_continuous else "")
                + f"; {len(self.strata)} strata",
                f"  likelihood: {self.config.likelihood}; {self.config.architecture.n_latent} "
                "latent dimensions",
                f"  objective:  {self.config.objective.in_words}",
                f"  trained:    {trained}",
            ]
        )


def _check_design(
    adata: AnnData,
    treatment: TreatmentField,
    covariates: CovariateField,
    batches: CovariateField | None,
) -> None:
    """Check strata, pairs and batches before anything is written."""
    arms, codes = treatment.prepare(adata)
    strata, covariate_codes = covariates.prepare(adata)
    names = stratum_names(strata)
    stratum = stratum_codes(covariate_codes, strata)
    pairs, _ = Pairs.count(stratum, codes, len(names), len(arms["names"]))
    check_pairs(pairs, arms["names"], names)
    if batches is not None:
        _, batch = batches.prepare(adata)
        check_batches(stratum, codes, batch[:, 0], arms["names"], names)


def _read_embeddings(
    adata: AnnData,
    layer: str | None,
    treatment_keys: TreatmentKeys,
    table: pd.DataFrame | str,
) -> tuple[list[str], np.ndarray]:
    """Features of the treatments, those of genes from the control cells."""
    codes, conditions = read_conditions(adata, treatment_keys)
    members = sorted({member for condition in conditions for member in condition.members})
    untreated = np.array([not condition.members for condition in conditions])
    return read_embeddings(
        table,
        adata,
        members,
        treatment_keys.control,
        treatment_keys.separator,
        layer=layer,
        cells=untreated[codes],
    )


def _shortened(names: Sequence[str], n: int = 6) -> str:
    return ", ".join(names[:n]) + (f", … ({len(names)})" if len(names) > n else "")
