"""What the registry of a model knows: names of treatments and strata, set-up arguments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from scvci.data import Treatments, encode_treatments, stratum_names
from scvci.data import _constants as keys

if TYPE_CHECKING:
    from collections.abc import Callable

    from anndata import AnnData
    from scvi.data import AnnDataManager

    from scvci.module import ModuleConfig, VCIModule


class RegistryMixin:
    """Read the registry that scvi-tools saves with a model; the base of what a model can do."""

    adata: Any
    adata_manager: AnnDataManager
    registry: dict
    module: VCIModule
    config: ModuleConfig
    gene_names_: np.ndarray
    seed_: int
    n_trainings_: int
    is_trained_: bool
    _validate_anndata: Callable[..., Any]

    def _state(self, key: str) -> dict:
        return self.registry["field_registries"][key]["state_registry"]

    def _setup_arg(self, name: str) -> Any:
        # Registries of earlier versions lack arguments that are new.
        return self.registry["setup_args"].get(name)

    @property
    def treatments(self) -> list[str]:
        """Names of the treatments as they were measured, the control first.

        Doses are part of a name, as ``"A@0.5"``, and so are the members of a combination.
        """
        return list(self._state(keys.TREATMENT_KEY)["names"])

    @property
    def _arms(self) -> Treatments:
        """The arms and what they are made of."""
        return Treatments.from_state(self._state(keys.TREATMENT_KEY))

    def _arm_labels(self, adata: AnnData) -> np.ndarray:
        """Name of the arm of each cell, shape ``(n_cells,)``."""
        codes = encode_treatments(adata, self._state(keys.TREATMENT_KEY))
        return np.array(self.treatments, dtype=object)[codes]

    @property
    def control(self) -> str:
        """Name of the control."""
        return self._state(keys.TREATMENT_KEY)["control"]

    @property
    def batches(self) -> list[str]:
        """Names of the technical batches; empty without ``batch_key``."""
        if keys.BATCH_KEY not in self.registry["field_registries"]:
            return []
        return list(self._state(keys.BATCH_KEY)["levels"][0])

    @property
    def strata(self) -> list[str]:
        """Names of the strata."""
        return stratum_names(self._state(keys.COVARIATES_KEY))
