"""What a treatment is: members, alone or together, each at a dose.

An *arm* is a condition as it was measured. Its name is that of its members in sorted order, joined
by the separator, with doses where there are any: ``"A"``, ``"A+B"``, ``"A@0.5+B@1"``. Nothing else
is said about a condition, so that ``"B+A"`` and ``"A+B"`` are one arm, and a dose of zero or a
control among the members means that there is no further treatment.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from scvci._names import unknown_name_message

from ._conditions import AT, DEFAULT_SEPARATOR, Condition, TreatmentKeys, arm_name, parse_condition

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True)
class Treatments:
    """Arms of the training data and what they are made of.

    Attributes
    ----------
    names
        Arms, the control first.
    keys
        How treatments are written.
    members
        Single agents in sorted order.
    doses
        Dose of each member in each arm, shape ``(n_arms, n_members)``; 0 where it is not given,
        and 1 in data without doses.
    """

    names: list[str]
    keys: TreatmentKeys
    members: list[str]
    doses: np.ndarray

    @classmethod
    def from_conditions(
        cls, conditions: Mapping[str, Condition], keys: TreatmentKeys
    ) -> Treatments:
        """Collect the arms of data.

        Parameters
        ----------
        conditions
            Condition of each arm by name.
        keys
            How treatments are written.
        """
        names = [keys.control, *sorted(set(conditions) - {keys.control})]
        members = sorted({m for condition in conditions.values() for m in condition})
        doses = np.array([[conditions[n].get(m, 0.0) for m in members] for n in names])
        return cls(names, keys, members, doses.reshape(len(names), len(members)))

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Treatments:
        """Read the state of the registry; one without members has one arm per member.

        Parameters
        ----------
        state
            State registry of the treatment field.
        """
        keys = TreatmentKeys(
            state["original_key"], state["control"], state.get("dose_key"), state["separator"]
        )
        names = list(state["names"])
        if state["doses"] is None:
            members = [name for name in names if name != keys.control]
            given = np.array(names)[:, None] == np.array(members)
            return cls(names, keys, members, given.astype(float))
        doses = np.asarray(state["doses"], dtype=float)
        return cls(names, keys, list(state["members"]), doses.reshape(len(names), -1))

    @property
    def dosed(self) -> bool:
        """Whether arms have doses."""
        return self.keys.dose_key is not None

    @property
    def max_dose(self) -> np.ndarray:
        """Largest dose of each member, shape ``(n_members,)``."""
        return self.doses.max(axis=0, initial=0.0)

    @property
    def relative_doses(self) -> np.ndarray:
        """Doses as shares of the member's largest, shape ``(n_arms, n_members)``."""
        return self.doses / self.max_dose

    @property
    def alone(self) -> np.ndarray:
        """Arms of one member, shape ``(n_arms,)``."""
        return (self.doses > 0).sum(axis=1) == 1

    def name(self, condition: Condition) -> str:
        """Name the arm of a condition."""
        return arm_name(condition, self.keys)

    def find(self, name: str) -> int | None:
        """Index of an arm by its name; ``None`` where it was not measured."""
        return self.names.index(name) if name in self.names else None

    def request(self, label: str, dose: Any = None, known: Sequence[str] | None = None) -> str:
        """Name the arm that a user asks for, measured or not.

        Parameters
        ----------
        label
            Name of an arm, or members with the separator, each perhaps with ``@`` and its dose.
        dose
            Doses of the members, where the label does not have them.
        known
            Members that can be answered for, by default those of the training data.

        Raises
        ------
        ValueError
            If a member is unknown, or its dose is missing, cannot be read or is negative.
        """
        if dose is None and label in self.names:
            return label
        return self.name(self.condition(label, dose, known))

    def condition(
        self, label: str, dose: Any = None, known: Sequence[str] | None = None
    ) -> Condition:
        """Members and doses that a user asks for; see :meth:`request`."""
        if self.dosed and dose is None:
            label, dose = self._split_doses(label)
        condition = parse_condition(label, 1.0 if dose is None else dose, self.keys)
        known = self.members if known is None else known
        for member in condition:
            if member not in known:
                hint = (
                    " It holds a '+'; if it is a combination, set the data up with separator='+'."
                    if self.keys.separator is None and DEFAULT_SEPARATOR in member
                    else ""
                )
                raise ValueError(
                    unknown_name_message("Treatment", member, [self.keys.control, *known])
                    + " Nothing was predicted; ask for a known treatment, train on data with this "
                    f"one, or set the data up with treatment_embeddings= that have it.{hint}"
                )
        return condition

    def _split_doses(self, label: str) -> tuple[str, str]:
        """Part a label into members and doses, with a member's only dose where it has one."""
        separator = self.keys.separator or DEFAULT_SEPARATOR
        parts = label.split(separator) if self.keys.separator else [label]
        pairs = [part.rsplit(AT, 1) if AT in part else [part, ""] for part in parts]
        names = [name.strip() for name, _ in pairs]
        doses = [
            text or self._only_dose(name) for name, (_, text) in zip(names, pairs, strict=True)
        ]
        return separator.join(names), separator.join(doses)

    def _only_dose(self, member: str) -> str:
        if member not in self.members:
            return "0" if member == self.keys.control else "1"
        doses = np.unique(self.doses[:, self.members.index(member)])
        doses = doses[doses > 0]
        if len(doses) > 1:
            listed = ", ".join(f"{d:g}" for d in doses)
            raise ValueError(
                f"Treatment {member!r} was measured at the doses {listed}. Ask for one: "
                f"dose={doses[-1]:g}, or the name {member}{AT}{doses[-1]:g}."
            )
        return f"{doses[0]:g}"
