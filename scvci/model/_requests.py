"""What a user asks for: treatments as measured, and others put together from them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scvci._names import unknown_name_message
from scvci.data import as_labels, missing_key_message

from ._arms import NewArm, Similarity, build_arm
from ._registry import RegistryMixin

if TYPE_CHECKING:
    from anndata import AnnData

    from scvci.data import Treatments


class RequestsMixin(RegistryMixin):
    """Turn names, doses and tables of requests into arms."""

    def _targets(self, treatment: str | Sequence[str] | None) -> list[str]:
        """Names of measured arms."""
        targets, measured = self._names_of(treatment, None), set(self.treatments)
        for target in targets:
            if target not in measured:
                raise ValueError(
                    f"Treatment {target!r} was not measured. It can be predicted "
                    "(predict_counterfactual), but there are no cells to estimate from."
                )
        return targets

    def _names_of(
        self, treatment: str | Sequence[str] | pd.DataFrame | None, dose: float | str | None
    ) -> list[str]:
        """Names of the conditions that are asked for, measured or not."""
        if dose is not None and not self._arms.dosed:
            raise ValueError(f"dose={dose!r}, but the data were set up without doses (dose_key).")
        if treatment is None:
            if dose is not None:
                raise ValueError("dose= needs a treatment to go with it.")
            return self.treatments
        if isinstance(treatment, pd.DataFrame):
            requests = _read_requests(treatment, dose)
        else:
            one = isinstance(treatment, str) or not isinstance(treatment, Sequence | np.ndarray)
            labels = [str(treatment)] if one else [str(t) for t in treatment]
            requests = [(label, dose) for label in labels]
        arms = self._arms
        known = self._known_members(arms)
        targets = [arms.request(label, d, known) for label, d in requests]
        if len(set(targets)) < len(targets):
            raise ValueError(f"Treatments are asked for more than once: {targets}.")
        return targets

    def _requests(
        self,
        cells: AnnData,
        treatment: str | Sequence[str] | pd.DataFrame | None,
        dose: float | str | None,
        target_key: str | None,
    ) -> tuple[list[str], np.ndarray | None]:
        """Names of the conditions, and with ``target_key`` which of them each cell gets."""
        if target_key is None:
            return self._names_of(treatment, dose), None
        if treatment is not None or dose is not None:
            raise ValueError(
                f"target_key={target_key!r} gives each cell its own treatment; leave treatment= "
                "and dose= out (a dose can be part of the name: 'A@0.5')."
            )
        if target_key not in cells.obs:
            raise KeyError(missing_key_message(cells, target_key, "target_key"))
        codes, labels = pd.factorize(as_labels(cells.obs[target_key], target_key))
        arms = self._arms
        known = self._known_members(arms)
        return [arms.request(label, None, known) for label in labels], codes

    def _known_members(self, arms: Treatments) -> list[str]:
        """Members that were measured, and treatments with features."""
        similarity = self._similarity
        return [*arms.members, *(similarity.names if similarity else [])]

    @property
    def _similarity(self) -> Similarity | None:
        """Treatments by features, as training left them."""
        saved = getattr(self, "treatment_similarity_", None)
        return None if saved is None else Similarity(list(saved["names"]), saved["weights"])

    def _arm(self, name: str) -> int | NewArm:
        """Index of a measured arm, or what stands for one that was not."""
        arms = self._arms
        found = arms.find(name)
        if found is not None:
            return found
        condition = arms.condition(name, known=self._known_members(arms))
        arm = build_arm(condition, arms, self.module, self._similarity)
        if "extrapolated dose" in arm.basis:
            warnings.warn(
                f"{name!r} lies beyond the largest measured dose; its effect is extrapolated.",
                UserWarning,
                stacklevel=3,
            )
        return arm

    def _batch_code(self, batch: str | None) -> int | None:
        if batch is None:
            return None
        if str(batch) not in self.batches:
            raise ValueError(
                unknown_name_message("Batch", str(batch), self.batches)
                + " Batches are those of the training data (batch_key)."
            )
        return self.batches.index(str(batch))

    def _describe_arm(self, name: str, arm: int | NewArm = 0) -> dict[str, Any]:
        """Treatment and dose of a layer, and what they rest on."""
        basis = arm.basis if isinstance(arm, NewArm) else "measured"
        arms = self._arms
        doses = list(arms.condition(name, known=self._known_members(arms)).values()) or [0.0]
        dose: Any = doses[0] if len(doses) == 1 else "+".join(f"{d:g}" for d in doses)
        return {"treatment": name, "dose": dose, "basis": basis}


def _read_requests(
    table: pd.DataFrame, dose: float | str | None
) -> list[tuple[str, float | str | None]]:
    """Rows of a data frame of requests."""
    if "treatment" not in table or dose is not None:
        raise ValueError(
            f"A data frame of requests has the columns 'treatment' and, perhaps, 'dose' (found "
            f"{[str(c) for c in table.columns]}), and no dose= beside it."
        )
    if "dose" not in table:
        return [(str(t), None) for t in table["treatment"]]
    return [(str(t), d) for t, d in zip(table["treatment"], table["dose"], strict=True)]
