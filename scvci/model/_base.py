"""What a model holds of its data, and what analyses may ask of it."""

from __future__ import annotations

from dataclasses import replace
from types import NoneType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning.pytorch.trainer.states import TrainerStatus
from scvi import REGISTRY_KEYS
from scvi.module._constants import MODULE_KEYS

from scvci._names import unknown_name_message
from scvci.data import _constants as keys
from scvci.data._cells import Cells
from scvci.data._fields import stratum_names
from scvci.data._requests import read_requests
from scvci.data._treatments import Treatments

from ._arms import Arm, Similarity, build_arm, measured_arm
from ._calibration import Calibration, ReferenceState
from ._file_checks import check_calibration, check_similarity
from ._model import ModelBase

if TYPE_CHECKING:
    from anndata import AnnData

    from scvci.data._conditions import Condition
    from scvci.module import ModuleConfig, VCIModule

#: Codes of so many arms that a file need not hold as many numbers.
_MANY_CODES = 20_000_000


class VCIBase(ModelBase):
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
    calibration: Calibration | None
    reference_: ReferenceState | None
    saved_attributes = {
        **ModelBase.saved_attributes,
        "calibration_": (dict, NoneType),
        "reference_": (dict, NoneType),
        "similarity_": (dict, NoneType),
    }

    def __init__(self, adata: AnnData | None, registry: dict | None, seed: int | None) -> None:
        super().__init__(adata, registry, seed)
        self._arms = Treatments.from_state(self._state(keys.TREATMENT_KEY))
        self.calibration = None
        self.reference_ = None
        self.similarity_: dict[str, Any] | None = None

    # -- names ----------------------------------------------------------------------------------

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

    def require_trained(self, action: str) -> None:
        """See :meth:`ModelBase.require_trained`; weights alone predict no means."""
        if not self.is_trained_ or self.calibration is None:
            raise RuntimeError(
                f"The model is not trained; call train() before you {action}. A checkpoint that "
                "was saved during training counts as not trained: its predictions are calibrated "
                "when training ends. train() goes on from its weights."
            )

    def describe(self, **record: Any) -> dict[str, Any]:
        """Complete the record of a result by what wrote it."""
        return {
            **record,
            "likelihood": self.config.likelihood,
            "model": type(self).__name__,
            "seed": self.seed_,
        }

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

    # -- files ------------------------------------------------------------------------------------

    def _variable_names(self) -> list[str]:
        return list(map(str, self.genes))

    @classmethod
    def _check_variables(cls, adata: AnnData, names: list[str]) -> None:
        if adata.n_vars == len(names) and (adata.var_names.to_numpy() == np.array(names)).all():
            return
        raise ValueError(
            "The genes of adata are not the model's genes in the model's order. Pass "
            "adata[:, genes].copy() with the saved model's genes, or load with adata=False and "
            "give these cells to predict_counterfactual(adata=...), which aligns genes by name."
        )

    def _state_to_save(self) -> dict[str, Any]:
        # Amid training, weights have moved away from the calibration, if there is one.
        # scvi-tools' checkpoints are saved in evaluation mode.
        trainer = getattr(self, "trainer", None)
        is_running = trainer is not None and trainer.state.status == TrainerStatus.RUNNING
        is_amid = is_running or self.module.training
        reference, calibration = self.reference_, None if is_amid else self.calibration
        return {
            "is_trained_": self.is_trained_ and calibration is not None,
            "reference_": None
            if reference is None
            else {
                "calibration": reference.calibration.to_arrays(),
                "new_weights": reference.new_weights,
            },
            "calibration_": None
            if calibration is None
            else replace(calibration, reference=None).to_arrays(),
        }

    def _restore_state(self, attributes: dict[str, Any]) -> None:
        calibration, reference = attributes.pop("calibration_"), attributes.pop("reference_")
        carried = None
        if reference is not None:
            carried = Calibration.from_arrays(reference["calibration"])
            self.reference_ = ReferenceState(carried, reference["new_weights"])
            self.reference_.freeze(self.module)
        if calibration is not None:
            self.calibration = replace(Calibration.from_arrays(calibration), reference=carried)
        self.similarity_ = attributes.pop("similarity_")
        if attributes["is_trained_"] and calibration is None:
            raise ValueError("it is said to be trained, but has no calibration")

    def _check_restored(self) -> None:
        n_strata = len(self.strata)
        if self.calibration is not None:
            check_calibration(self.calibration, self.module, n_strata)
        if self.reference_ is not None:
            self.reference_.check(self.module, n_strata)
        if self.similarity_ is not None:
            check_similarity(self.similarity_, len(self.arms.members))

    @classmethod
    def _check_memory(cls, registry: dict[str, Any], state: dict[str, torch.Tensor]) -> None:
        """Codes of arms are built from their names, with as many columns as members or arms."""
        arms = registry["field_registries"][keys.TREATMENT_KEY]["state_registry"]
        n_arms, n_members = len(arms["names"]), len(arms["members"])
        codes = state["treatment_codes"]
        if codes.ndim != 2 or len(codes) != n_arms or codes.shape[1] < n_members:
            raise ValueError("its treatments are not those of its tensors")
        if n_arms * (n_arms - 1) > max(codes.numel(), _MANY_CODES):
            raise ValueError(f"it names {n_arms} treatments, more than its tensors are of")
