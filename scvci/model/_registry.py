"""What the registry of a model knows: names of treatments and strata, set-up arguments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scvci.data import _constants as keys
from scvci.data import stratum_names

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
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
