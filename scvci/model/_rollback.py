"""A model is trained, or it is as it was."""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._model import ModelBase

#: What a training changes in place; a block gets copies.
_CHANGED_IN_PLACE = ("parts_", "history_", "cache")


class AllOrNothing(AbstractContextManager):
    """Put a model back as it was if a block fails or is interrupted.

    Weights, calibration, history, parts of the split, counts of trainings, mode and device are
    those from before, so that predictions are the same to the bit.

    Parameters
    ----------
    model
        The model.
    """

    def __init__(self, model: ModelBase) -> None:
        self.model = model

    def __enter__(self) -> None:
        module = self.model.module
        self._attributes = dict(vars(self.model))
        self._weights = copy.deepcopy(module.state_dict())
        self._mode, self._device = module.training, module.device
        for name in _CHANGED_IN_PLACE:
            setattr(self.model, name, copy.copy(getattr(self.model, name)))

    def __exit__(self, kind: type[BaseException] | None, *exc: Any) -> None:
        if kind is None:
            return
        for name in set(vars(self.model)) - set(self._attributes):
            delattr(self.model, name)
        for name, value in self._attributes.items():
            setattr(self.model, name, value)
        module = self.model.module
        self.model.to_device(self._device)
        module.load_state_dict(self._weights)
        module.zero_grad()
        module.train(self._mode)
