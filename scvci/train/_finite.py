"""What is done where a number of training is not finite: stop, say where, blame no one wrongly."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn.utils import get_total_norm

from scvci.data._cells import in_batches
from scvci.data._sampler import CounterfactualDataset

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from scvci.data._splitter import CounterfactualSplitter

    from ._plan import VCITrainingPlan


class NotFiniteError(RuntimeError):
    """A term of the objective, or a weight, is NaN or infinite: training cannot go on."""


def require_finite_sums(sums: Mapping[str, Mapping[str, Tensor]], epoch: int) -> None:
    """Raise if a sum over the cells of an epoch is not finite.

    The sums are read once an epoch, at the end, where they are logged in any case; a look at each
    step would wait for the device each time.

    Parameters
    ----------
    sums
        Sums by name, by part of the split in the order in which they were taken.
    epoch
        The epoch.
    """
    for part, totals in sums.items():
        if not totals:
            continue
        found = torch.stack([value.detach().float() for value in totals.values()]).tolist()
        wrong = {n: v for n, v in zip(totals, found, strict=True) if not math.isfinite(v)}
        if wrong:
            # The loss is made of the other terms; where one of them is at fault, it is named.
            name = next((n for n in wrong if not n.endswith("_loss")), next(iter(wrong)))
            raise NotFiniteError(
                f"Training stopped in epoch {epoch}: {name} is {wrong[name]} in the {part} cells."
            )


def require_finite_weights(module: nn.Module, epoch: int) -> None:
    """Raise if a weight is not finite.

    Parameters
    ----------
    module
        The module.
    epoch
        The epoch.
    """
    weights = dict(module.named_parameters())
    if math.isfinite(float(get_total_norm([w.detach() for w in weights.values()], math.inf))):
        return
    name = next(n for n, w in weights.items() if not torch.isfinite(w).all())
    raise NotFiniteError(f"Training stopped in epoch {epoch}: weights ({name}) are not finite.")


@torch.no_grad()
def explain(error: NotFiniteError, plan: VCITrainingPlan, splitter: CounterfactualSplitter) -> str:
    """Say which cells are at fault, if it is the cells and not the weights.

    Parameters
    ----------
    error
        What stopped training.
    plan
        The plan, its module with weights from before that were good.
    splitter
        The cells.
    """
    plan.module.eval()
    rows = np.concatenate([splitter.train_idx, splitter.val_idx])
    dataset = CounterfactualDataset(rows, splitter.sampler, splitter.seed)
    names = splitter.sampler.cells.names
    for positions in in_batches(np.arange(len(dataset)), splitter.batch_size):
        batch = {k: v.to(plan.module.device) for k, v in dataset[positions.tolist()].items()}
        output = plan.module(batch, loss_kwargs=plan.loss_kwargs)[2]
        terms = [*output.reconstruction_loss.values(), *output.kl_local.values()]
        wrong = ~torch.isfinite(sum(terms)).cpu().numpy()
        if not wrong.any() and not torch.isfinite(output.loss):
            # The covariate-specific term compares cells of a batch; which of them is not told.
            wrong[:] = True
        if wrong.any():
            rows = dataset.indices[positions[wrong]]
            listed = ", ".join(repr(str(name)) for name in names[rows[:5]])
            return (
                f"{error} Under the weights of the last good epoch it is not finite either for "
                f"{len(rows)} cells of one batch (first: {listed}; row {rows[0]}): "
                "look at their counts, size factors and continuous covariates."
            )
    return (
        f"{error} Under the weights of the last good epoch all cells are finite: the weights "
        "diverged. Lower plan_kwargs={'lr': ...}, or limit gradients (plan_kwargs={'clip': ...})."
    )
