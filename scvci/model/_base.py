"""What a model holds of its data, and what analyses may ask of it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import torch
from scvi import REGISTRY_KEYS
from scvi.model.base import BaseModelClass
from scvi.module._constants import MODULE_KEYS

from scvci._names import unknown_name_message
from scvci.data import _constants as keys
from scvci.data._cells import Cells
from scvci.data._fields import stratum_names
from scvci.data._requests import read_requests
from scvci.data._results import Results
from scvci.data._treatments import Treatments

from ._arms import Arm, Similarity, build_arm, measured_arm

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anndata import AnnData

    from scvci.data._conditions import Condition
    from scvci.module import ModuleConfig, VCIModule

    from ._calibration import Calibration

#: Parts of a split.
type Part = Literal["train", "validation", "test"]


def _part(name: Part, doc: str) -> property:
    """Rows of a part of the split, found by the names of its cells."""
    return property(
        lambda model: model.part(name), lambda model, rows: model._set_part(name, rows), doc=doc
    )


class VCIBase(BaseModelClass):
    """Names, cells and decoding: what prediction and analyses are made of.

    Parameters
    ----------
    adata
        Registered AnnData.
    registry
        Registry of a saved model, in place of ``adata``.
    """

    module: VCIModule
    config: ModuleConfig
    seed_: int
    n_trainings_: int
    is_trained_: bool
    calibration: Calibration | None

    def __init__(self, adata: AnnData | None, registry: dict | None) -> None:
        super().__init__(adata, registry)
        self._arms = Treatments.from_state(self._state(keys.TREATMENT_KEY))
        self.calibration = None
        #: Names of the cells of each part of the last split.
        self.parts_: dict[str, list[str]] = {}
        #: Names of all cells that a training has seen, those of a reference included.
        self.trained_cells_: list[str] = []
        self.similarity_: dict[str, Any] | None = None
        #: What analyses keep until the model is trained again.
        self.cache: dict[str, Any] = {}

    # -- names ----------------------------------------------------------------------------------

    def _state(self, key: str) -> dict[str, Any]:
        return self.registry["field_registries"][key]["state_registry"]

    @property
    def setup_args(self) -> Mapping[str, Any]:
        """Arguments of ``setup_anndata``."""
        return self.registry["setup_args"]

    @property
    def arms(self) -> Treatments:
        """The arms and what they are made of."""
        return self._arms

    @property
    def treatments(self) -> list[str]:
        """Names of the treatments as they were measured, the control first.

        Doses are part of a name, as ``"A@0.5"``, and so are the members of a combination.
        """
        return list(self._arms.names)

    @property
    def control(self) -> str:
        """Name of the control."""
        return self._arms.control

    @property
    def strata(self) -> list[str]:
        """Names of the strata."""
        return stratum_names(self._state(keys.COVARIATES_KEY))

    @property
    def batches(self) -> list[str]:
        """Names of the technical batches; empty without ``batch_key``."""
        if keys.BATCH_KEY not in self.registry["field_registries"]:
            return []
        return list(self._state(keys.BATCH_KEY)["levels"][0])

    @property
    def genes(self) -> np.ndarray:
        """Names of the genes, in the model's order."""
        return np.asarray(self._state(REGISTRY_KEYS.X_KEY)["column_names"], dtype=object)

    @property
    def is_count(self) -> bool:
        """Whether the likelihood is one of counts."""
        return self.module.likelihood.is_count

    # -- cells ----------------------------------------------------------------------------------

    def cells(self, adata: AnnData | None = None, indices: Any = None) -> Cells:
        """Read cells as the model does, and check their expression.

        Parameters
        ----------
        adata
            The cells, by default the model's.
        indices
            Rows, mask or names of the cells in question; the others are not judged.

        Raises
        ------
        KeyError, ValueError
            With the column, gene, label or value that the model cannot read.
        """
        source = self.adata if adata is None else adata
        if source is None:
            raise ValueError("The model was loaded without cells; pass adata=.")
        cells = Cells.from_registry(source, self.registry, indices, self._arms)
        cells.check_expression(self.is_count)
        return cells

    def own_cells(self, action: str) -> Cells:
        """Read the model's own cells.

        Parameters
        ----------
        action
            What they are needed for, for the message.
        """
        if self.adata is None:
            raise ValueError(
                f"The model was loaded without cells; load it with adata= to {action}."
            )
        return self.cells()

    def require_trained(self, action: str) -> None:
        """Raise unless the model is trained.

        Parameters
        ----------
        action
            What is about to be done, for the message.
        """
        if not self.is_trained_:
            raise RuntimeError(f"The model is not trained; call train() before you {action}.")

    def results(self, adata: AnnData) -> Results:
        """Writer of results into an AnnData."""
        return Results(adata, self.setup_args)

    def describe(self, **record: Any) -> dict[str, Any]:
        """Complete the record of a result by what wrote it."""
        return {
            **record,
            "likelihood": self.config.likelihood,
            "model": type(self).__name__,
            "seed": self.seed_,
        }

    # -- cells of each part, known by name --------------------------------------------------------

    def part(self, name: Part) -> np.ndarray:
        """Rows of the training, validation or test cells, found by name.

        Parameters
        ----------
        name
            ``"train"``, ``"validation"`` or ``"test"``.
        """
        if self.adata is None:
            stored = getattr(self, f"{name}_indices_")
            return np.asarray([] if stored is None else stored, dtype=np.int64)
        rows = self.adata.obs_names.get_indexer(pd.Index(self.parts_.get(name, []), dtype=object))
        return np.sort(rows[rows >= 0]).astype(np.int64)

    def _set_part(self, name: Part, rows: np.ndarray | None) -> None:
        rows = np.asarray([] if rows is None else rows, dtype=np.int64)
        setattr(self, f"{name}_indices_", rows)
        if self.adata is not None:
            self.parts_[name] = self.adata.obs_names[rows].astype(str).tolist()

    train_indices = _part("train", "Rows of ``adata`` that the last training was fitted to.")
    validation_indices = _part(
        "validation", "Rows of ``adata`` that chose when the last training stopped."
    )
    test_indices = _part("test", "Rows of ``adata`` that entered nothing.")

    # -- what is asked for ------------------------------------------------------------------------

    @property
    def known_members(self) -> dict[str, None]:
        """Members that were measured, and treatments with features."""
        similarity = self._similarity
        features = similarity.names if similarity else ()
        return dict.fromkeys([*self._arms.members, *features])

    @property
    def _similarity(self) -> Similarity | None:
        saved = self.similarity_
        return None if saved is None else Similarity(tuple(saved["names"]), saved["weights"])

    def conditions(self, treatment: Any = None, dose: Any = None) -> list[Condition]:
        """Read the conditions that are asked for, measured or not.

        Parameters
        ----------
        treatment
            A name, several in any sequence, a data frame with the columns ``treatment`` and,
            perhaps, ``dose``, or ``None`` for all that were measured.
        dose
            Dose of the treatments.

        Raises
        ------
        ValueError
            If a name is unknown or asked for twice, or doses make no sense.
        """
        return read_requests(self._arms, treatment, dose, self.known_members)

    def arm(self, condition: Condition) -> Arm:
        """Find what decodes cells under a condition: its code and its calibration.

        Parameters
        ----------
        condition
            Members and doses, measured or not.
        """
        self.require_trained("decode an arm")
        assert self.calibration is not None
        found = self._arms.find(condition)
        if found is not None:
            return measured_arm(found, self.module, self.calibration)
        return build_arm(condition, self._arms, self.module, self.calibration, self._similarity)

    def batch_code(self, batch: str | None) -> int | None:
        """Code of a technical batch.

        Parameters
        ----------
        batch
            Its name, or ``None``.

        Raises
        ------
        ValueError
            If it is unknown.
        """
        if batch is None:
            return None
        if str(batch) not in self.batches:
            raise ValueError(
                unknown_name_message("Batch", str(batch), self.batches)
                + " Batches are those of the training data (batch_key)."
            )
        return self.batches.index(str(batch))

    # -- latent states and decoding ---------------------------------------------------------------

    def on_device(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Move a batch to the model's device."""
        device = self.module.device
        return {name: tensor.to(device) for name, tensor in tensors.items()}

    def latent_states(
        self, tensors: dict[str, torch.Tensor], n_samples: int | None = None
    ) -> torch.Tensor:
        """Latent states of a batch, ``(n_draws, n_cells, n_latent)``: draws, or the mean alone.

        Parameters
        ----------
        tensors
            The batch, on the model's device.
        n_samples
            Number of draws; ``None`` for the mean.
        """
        inputs = self.module._get_inference_input(tensors)
        outputs = self.module.inference(**inputs, n_samples=n_samples or 0)
        return outputs[MODULE_KEYS.Z_KEY] if n_samples else outputs[MODULE_KEYS.QZ_KEY].loc[None]

    def decode(
        self,
        tensors: dict[str, torch.Tensor],
        arm: Arm,
        z: torch.Tensor | None = None,
        *,
        library_size: float | None = None,
        calibrated: bool = True,
    ) -> torch.distributions.Distribution:
        """p(y′ | z, t′) of a batch, batch shape ``(n_draws, n_cells, n_genes)``.

        Parameters
        ----------
        tensors
            The batch, on the model's device.
        arm
            The arm t′.
        z
            Latent states, ``(n_draws, n_cells, n_latent)``; by default the cells' own means.
        library_size
            Library size (or size factor); by default each cell's own.
        calibrated
            Whether to add the calibration.
        """
        stratum = tensors[keys.STRATUM_KEY].squeeze(-1)
        covariates = self.module.covariate_codes(tensors, counterfactual=True)
        shift = arm.shift_of(stratum) if calibrated else None
        treatment = arm.treatment_of(len(stratum))
        return self._generate(tensors, z, treatment, covariates, shift, library_size)

    def reconstruct(
        self,
        tensors: dict[str, torch.Tensor],
        z: torch.Tensor | None = None,
        *,
        library_size: float | None = None,
        calibrated: bool = True,
    ) -> torch.distributions.Distribution:
        """p(y | z, t) of a batch under the treatments received; see :meth:`decode`.

        Parameters
        ----------
        tensors, z, library_size, calibrated
            See :meth:`decode`.
        """
        received = tensors[keys.TREATMENT_KEY].long().squeeze(-1)
        stratum = tensors[keys.STRATUM_KEY].squeeze(-1)
        shift = None
        if calibrated and self.calibration is not None:
            shift = self.calibration.shift_of_cells(self.module, stratum, received)
        covariates = self.module.covariate_codes(tensors)
        return self._generate(tensors, z, received, covariates, shift, library_size)

    def _generate(
        self,
        tensors: dict[str, torch.Tensor],
        z: torch.Tensor | None,
        treatment: torch.Tensor,
        covariates: torch.Tensor,
        shift: torch.Tensor | None,
        library_size: float | None,
    ) -> torch.distributions.Distribution:
        """Decode latent states, by default the cells' means, at a library size or their own."""
        z = self.latent_states(tensors) if z is None else z
        size = self.module.cell_size(tensors)
        if library_size is not None:
            size = torch.full_like(size, library_size)
        outputs = self.module.generative(z, size, treatment, covariates, shift=shift)
        return outputs[MODULE_KEYS.PX_KEY]


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
