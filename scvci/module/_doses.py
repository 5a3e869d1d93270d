"""How an effect grows with dose, by name.

A response turns doses, as shares of each member's largest dose, into the strength of the member's
effect: 0 at dose 0 and 1 at the largest dose, rising in between.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from ._kinds import get_kind

if TYPE_CHECKING:
    import numpy as np

#: Standard deviations of the priors of a learned response's log EC50 and log slope.
_PRIOR_SD = (2.0, 0.5)


class DoseResponse(nn.Module):
    """Base of the responses, and the linear one.

    Parameters
    ----------
    doses
        Relative doses of each member in each arm, shape ``(n_arms, n_members)``.
    """

    #: Name by which users choose the response.
    name: ClassVar[str] = "linear"
    #: Whether training changes it.
    learned: ClassVar[bool] = False

    def __init__(self, doses: np.ndarray) -> None:
        super().__init__()

    def forward(self, doses: Tensor) -> Tensor:
        """Strengths of relative doses, shape ``(..., n_members)``."""
        return doses

    def penalty(self) -> Tensor | float:
        """Negative log-prior in nats, up to a constant."""
        return 0.0


class LogResponse(DoseResponse):
    r"""Linear in :math:`\log(1 + d / d_{min})`, with :math:`d_{min}` the smallest dose."""

    name = "log"
    smallest: Tensor

    def __init__(self, doses: np.ndarray) -> None:
        super().__init__(doses)
        self.register_buffer("smallest", _smallest(doses), persistent=False)

    def forward(self, doses: Tensor) -> Tensor:
        """See :meth:`DoseResponse.forward`."""
        return torch.log1p(doses / self.smallest) / torch.log1p(1 / self.smallest)


class MonotoneResponse(DoseResponse):
    r"""Hill curve of each member, its EC50 k and slope n learned.

    .. math:: f(d) = \frac{d^n (1 + k^n)}{d^n + k^n}

    A member with one dose keeps f(1) = 1 whatever k and n are. Log-normal priors, around the
    geometric middle of the measured doses and a slope of 1, decide what the data do not.
    """

    name = "monotone"
    learned = True
    middle: Tensor

    def __init__(self, doses: np.ndarray) -> None:
        super().__init__(doses)
        self.register_buffer("middle", 0.5 * _smallest(doses).log(), persistent=False)
        self.log_ec50 = nn.Parameter(self.middle.clone())
        self.log_slope = nn.Parameter(torch.zeros_like(self.middle))

    def forward(self, doses: Tensor) -> Tensor:
        """See :meth:`DoseResponse.forward`."""
        slope = self.log_slope.exp()
        # A dose of zero has no logarithm; where() keeps its gradient out.
        given = doses > 0
        log_ratio = torch.where(given, doses, 1.0).log() - self.log_ec50
        reached = torch.sigmoid(slope * log_ratio) / torch.sigmoid(-slope * self.log_ec50)
        return torch.where(given, reached, 0.0)

    def penalty(self) -> Tensor:
        """See :meth:`DoseResponse.penalty`."""
        by_ec50 = ((self.log_ec50 - self.middle) / _PRIOR_SD[0]).square()
        by_slope = (self.log_slope / _PRIOR_SD[1]).square()
        return 0.5 * (by_ec50 + by_slope).sum()


#: Responses by name.
DOSE_RESPONSES: dict[str, type[DoseResponse]] = {
    cls.name: cls for cls in (DoseResponse, LogResponse, MonotoneResponse)
}


def build_dose_response(name: str, doses: np.ndarray) -> DoseResponse:
    """Build the response of the given name, or the linear one where that makes no difference.

    Parameters
    ----------
    name
        Its name.
    doses
        Relative doses of each member in each arm, shape ``(n_arms, n_members)``.

    Raises
    ------
    ValueError
        If there is none of that name.
    """
    response = get_kind(DOSE_RESPONSES, name, "dose_response")
    # Where each member has one dose, every response is the same.
    several = ((doses > 0) & (doses < 1)).any()
    return response(doses) if several else DoseResponse(doses)


def _smallest(doses: np.ndarray) -> Tensor:
    """Smallest positive dose of each member, shape ``(n_members,)``."""
    table = torch.as_tensor(doses, dtype=torch.float32)
    return torch.where(table > 0, table, torch.inf).amin(dim=0)
