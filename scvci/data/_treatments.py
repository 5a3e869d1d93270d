"""The arms of the training data, known once.

An *arm* is a condition as it was measured. Its name is that of its members in sorted order, joined
by the separator, with doses where there are any: ``"A"``, ``"A+B"``, ``"A@0.5+B@1"``. Names are
for people: arms are looked up by name or condition, and a name is never taken apart again, except
where a user writes one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from scvci._names import unknown_name_message

from ._conditions import (
    AT,
    CONTROL,
    DEFAULT_SEPARATOR,
    Condition,
    TreatmentKeys,
    condition_of,
    format_dose,
    parse_doses,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence


@dataclass(frozen=True, eq=False)
class Treatments:
    """Arms of the training data and what they are made of.

    Attributes
    ----------
    keys
        How treatments are written.
    conditions
        Members and doses of each arm, the control first.
    names
        Name of each arm.
    members
        Single agents in sorted order (those that a query adds come last).
    """

    keys: TreatmentKeys
    conditions: tuple[Condition, ...]
    names: tuple[str, ...]
    members: tuple[str, ...]

    @classmethod
    def from_conditions(cls, conditions: Iterable[Condition], keys: TreatmentKeys) -> Treatments:
        """Collect the arms of data.

        Parameters
        ----------
        conditions
            Conditions that were measured; the control is added.
        keys
            How treatments are written.

        Raises
        ------
        ValueError
            If two conditions have the same name.
        """
        treated = sorted(set(conditions) - {CONTROL}, key=keys.name)
        members = sorted({member for condition in treated for member in condition.members})
        return cls._of(keys, (CONTROL, *treated), tuple(members))

    @classmethod
    def _of(
        cls, keys: TreatmentKeys, conditions: Sequence[Condition], members: tuple[str, ...]
    ) -> Treatments:
        names = tuple(keys.name(condition) for condition in conditions)
        if len(set(names)) < len(names):
            twice = next(name for i, name in enumerate(names) if name in names[:i])
            raise ValueError(
                f"Two different treatments would both be named {twice!r}, as {keys.joint!r} or "
                f"{AT!r} is part of a name. Pass a separator= that is in no name, or rename one."
            )
        return cls(keys, tuple(conditions), names, members)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Treatments:
        """Read the state of the registry.

        Parameters
        ----------
        state
            State registry of the treatment field.
        """
        keys = TreatmentKeys(
            state["original_key"],
            tuple(state["controls"]),
            state["dose_key"],
            state["separator"],
        )
        members, doses = tuple(state["members"]), state["doses"]
        given: list[dict[str, float]] = [{} for _ in state["names"]]
        for arm, member, dose in zip(doses["arm"], doses["member"], doses["dose"], strict=True):
            given[arm][members[member]] = dose
        conditions = tuple(Condition.of(of_arm) for of_arm in given)
        return cls(keys, conditions, tuple(state["names"]), members)

    def to_state(self) -> dict[str, Any]:
        """Return the arms as plain data, for the registry."""
        doses = self.doses.tocoo()
        return {
            "names": list(self.names),
            "control": self.control,
            "controls": list(self.keys.controls),
            "original_key": self.keys.key,
            "separator": self.keys.separator,
            "dose_key": self.keys.dose_key,
            "members": list(self.members),
            "doses": {
                "arm": doses.row.tolist(),
                "member": doses.col.tolist(),
                "dose": doses.data.tolist(),
            },
        }

    def extended(self, conditions: Iterable[Condition]) -> Treatments:
        """Append new arms and members; those that there are keep their places.

        Parameters
        ----------
        conditions
            Conditions of new cells, known or not.

        Raises
        ------
        ValueError
            If a known member exceeds its largest dose, to which strengths are relative.
        """
        new = sorted(set(conditions) - set(self.conditions), key=self.keys.name)
        for condition in new:
            for member, dose in condition.items():
                i = self.member_index.get(member)
                largest = dose if i is None else self.max_dose[i]
                if dose > largest:
                    raise ValueError(
                        f"Treatment {self.name(condition)!r} is beyond {largest:g}, the largest "
                        f"dose of {member!r} in the reference. Strengths are relative to it; "
                        "leave these cells out or train a model on all data."
                    )
        added = sorted({m for c in new for m in c.members} - set(self.members))
        return self._of(self.keys, (*self.conditions, *new), (*self.members, *added))

    # -- what there is --------------------------------------------------------------------------

    def __len__(self) -> int:
        """Count the arms, the control included."""
        return len(self.names)

    @property
    def control(self) -> str:
        """Name of the control, which has index 0."""
        return self.keys.control

    @property
    def dosed(self) -> bool:
        """Whether arms have doses."""
        return self.keys.dose_key is not None

    @cached_property
    def index(self) -> dict[Condition, int]:
        """Index of each arm by its condition."""
        return {condition: i for i, condition in enumerate(self.conditions)}

    @cached_property
    def name_index(self) -> dict[str, int]:
        """Index of each arm by its name; all labels of the control stand for it."""
        return {**dict.fromkeys(self.keys.controls, 0), **{n: i for i, n in enumerate(self.names)}}

    @cached_property
    def member_index(self) -> dict[str, int]:
        """Index of each member by its name."""
        return {member: i for i, member in enumerate(self.members)}

    @cached_property
    def doses(self) -> sparse.csr_matrix:
        """Dose of each member in each arm, sparse, shape ``(n_arms, n_members)``."""
        counts = [len(condition.members) for condition in self.conditions]
        columns = [self.member_index[m] for c in self.conditions for m in c.members]
        data = [dose for condition in self.conditions for dose in condition.doses]
        return sparse.csr_matrix(
            (
                np.array(data, dtype=float),
                np.array(columns, dtype=np.int64),
                np.concatenate([[0], np.cumsum(counts)]),
            ),
            shape=(len(self), len(self.members)),
        )

    @cached_property
    def max_dose(self) -> np.ndarray:
        """Largest dose of each member, shape ``(n_members,)``."""
        if not self.members:
            return np.zeros(0)
        return np.asarray(self.doses.max(axis=0).todense(), dtype=float).ravel()

    @cached_property
    def relative_doses(self) -> sparse.csr_matrix:
        """Doses as shares of the member's largest, sparse, shape ``(n_arms, n_members)``."""
        relative = self.doses.copy()
        relative.data = relative.data / self.max_dose[relative.indices]
        return relative

    @cached_property
    def alone(self) -> np.ndarray:
        """Whether an arm has a single member, shape ``(n_arms,)``."""
        return np.diff(self.doses.indptr) == 1

    def doses_alone(self, member: str) -> tuple[np.ndarray, np.ndarray]:
        """Arms that hold nothing but a member, and its doses there, in increasing order.

        Parameters
        ----------
        member
            Name of a measured member.
        """
        column = self.doses.getcol(self.member_index[member]).tocoo()
        arms, doses = column.row, column.data
        own = self.alone[arms]
        order = np.argsort(doses[own], kind="stable")
        return arms[own][order], doses[own][order]

    def name(self, condition: Condition) -> str:
        """Name a condition, measured or not."""
        return self.keys.name(condition)

    def find(self, condition: Condition) -> int | None:
        """Index of a condition's arm; ``None`` where it was not measured."""
        return self.index.get(condition)

    # -- what a user asks for -------------------------------------------------------------------

    def request(
        self, label: str, dose: Any = None, known: Collection[str] | None = None
    ) -> Condition:
        """Read the condition that a user asks for, measured or not.

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
        if dose is None and label in self.name_index:
            return self.conditions[self.name_index[label]]
        known = self.member_index if known is None else known
        parts = self._split(label, known)
        if dose is not None:
            doses = parse_doses(label, dose, len(parts), self.keys.joint)
        elif not self.dosed:
            doses = [1.0] * len(parts)
        else:
            doses = [
                self._only_dose(member) if text is None else parse_doses(label, text, 1, AT)[0]
                for member, text in parts
            ]
        return condition_of(label, [member for member, _ in parts], doses, self.keys)

    def _split(self, label: str, known: Collection[str]) -> list[tuple[str, str | None]]:
        """Members of a label, each with the text of its dose if it has one.

        The separator can be part of a dose (``1e+06``), so pieces are joined again until they
        name something known.
        """
        separator = self.keys.separator
        pieces = [label] if separator is None else label.split(separator)
        found: list[list[tuple[str, str | None]] | None] = [[]] + [None] * len(pieces)
        for end in range(1, len(pieces) + 1):
            for start in range(end):
                before = found[start]
                part = (separator or "").join(pieces[start:end]).strip()
                member = self._member(part, known)
                if before is not None and member is not None:
                    found[end] = [*before, member]
                    break
        parts = found[-1]
        if parts is None:
            raise ValueError(self._unknown_message(label, pieces, known))
        return parts

    def _member(self, part: str, known: Collection[str]) -> tuple[str, str | None] | None:
        """Member and the text of its dose; ``None`` if a part names nothing known."""
        if part in known or part in self.keys.controls:
            return part, None
        name, at, dose = part.rpartition(AT)
        if at and self.dosed and name.strip() in known:
            try:
                parse_doses(part, dose, 1, AT)
            except ValueError:
                return None
            return name.strip(), dose
        return None

    def _unknown_message(self, label: str, pieces: list[str], known: Collection[str]) -> str:
        unknown = [p.strip() for p in pieces if self._member(p.strip(), known) is None] or [label]
        part = unknown[0]
        name, at, dose = part.rpartition(AT)
        if at and self.dosed and name.strip() in known:
            return (
                f"Dose {dose!r} of treatment {label!r} is not a number of at least 0. Write it as "
                f"'{name}{AT}0.5', or pass dose=."
            )
        hint = (
            f" It holds a {DEFAULT_SEPARATOR!r}; if it is a combination, set the data up with "
            f"separator={DEFAULT_SEPARATOR!r}."
            if self.keys.separator is None and DEFAULT_SEPARATOR in part
            else ""
        )
        name = name.strip() if at and self.dosed else part
        return (
            unknown_name_message("Treatment", name, [self.control, *known])
            + " Nothing was predicted; ask for a known treatment, train on data with this one, or "
            f"set the data up with treatment_embeddings= that have it.{hint}"
        )

    def _only_dose(self, member: str) -> float:
        if member not in self.member_index:
            return 0.0 if member in self.keys.controls else 1.0
        doses = np.unique(self.doses.getcol(self.member_index[member]).data)
        if len(doses) > 1:
            listed = ", ".join(format_dose(d) for d in doses)
            last = format_dose(doses[-1])
            raise ValueError(
                f"Treatment {member!r} was measured at the doses {listed}. Ask for one: "
                f"dose={last}, or the name {member}{AT}{last}."
            )
        return float(doses[0])
