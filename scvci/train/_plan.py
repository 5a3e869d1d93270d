"""Training plan: scvi-tools' plan plus the critic's alternating step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from scvi.train import TrainingPlan
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, MultiStepLR

from ._finite import require_finite_sums, require_finite_weights

if TYPE_CHECKING:
    from scvi.module.base import LossOutput

    from scvci.module import VCIModule

#: The critic is trained before every second step of the generator, as in the paper's code.
_CRITIC_FREQUENCY = 2


class VCITrainingPlan(TrainingPlan):
    """Optimise the weighted objective.

    It differs from scvi-tools' plan in five ways. The weight of the divergence is not warmed up
    by default, as the divergence takes the place of a prior only if it acts from the start
    (``n_epochs_kl_warmup=400`` restores scvi-tools' behaviour). Adam's ``eps`` is torch's. The
    norm of the gradient is limited (``clip=None`` for no limit). The learning rate falls to zero
    along a cosine, so that the last epochs average out the noise of the drawn targets
    (``lr_decay=None`` keeps it constant). And a covariate-specific term with a critic is trained
    by alternating optimisation: the critic has an optimiser of its own with the same settings.

    Parameters
    ----------
    module
        The module to train.
    lr, eps, weight_decay, n_epochs_kl_warmup
        See :class:`~scvi.train.TrainingPlan`.
    clip
        Largest norm of the gradient; ``None`` for no limit.
    lr_decay
        ``"cosine"``: to zero at the last epoch. A list: epochs after which the learning rate is
        multiplied by 0.1. ``None``: constant.
    **kwargs
        Passed to :class:`~scvi.train.TrainingPlan`.
    """

    def __init__(
        self,
        module: VCIModule,
        *,
        lr: float = 2e-3,
        eps: float = 1e-8,
        weight_decay: float = 1e-6,
        n_epochs_kl_warmup: int | None = None,
        clip: float | None = 10.0,
        lr_decay: Literal["cosine"] | list[int] | None = "cosine",
        **kwargs: Any,
    ) -> None:
        super().__init__(
            module,
            lr=lr,
            eps=eps,
            weight_decay=weight_decay,
            n_epochs_kl_warmup=n_epochs_kl_warmup,
            **kwargs,
        )
        self.clip = clip
        self._sums: dict[str, dict[str, torch.Tensor]] = {}
        self._n_cells: dict[str, int] = {}
        self.lr_decay = lr_decay
        self.automatic_optimization = not module.covariate_term.has_critic

    def configure_optimizers(self) -> Any:
        """One optimiser, or two where there is a critic, and their schedules."""
        # The state of an optimiser goes by position, and a set has no order to come back to.
        critic = list(self.module.covariate_term.parameters())
        of_critic = {id(p) for p in critic}
        create = self.get_optimizer_creator()
        optimizers = [create(p for p in self.module.parameters() if id(p) not in of_critic)]
        if critic:
            optimizers.append(create(critic))
        schedules = [s for s in map(self._schedule, optimizers) if s is not None]
        return optimizers, schedules

    def _schedule(self, optimizer: torch.optim.Optimizer) -> LRScheduler | None:
        if self.lr_decay is None:
            return None
        if self.lr_decay == "cosine":
            return CosineAnnealingLR(optimizer, max(self.trainer.max_epochs, 1))
        return MultiStepLR(optimizer, self.lr_decay, gamma=0.1)

    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        """Limit the gradient's norm; the counts of a single cell can make it explode."""
        if self.clip is not None:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            torch.nn.utils.clip_grad_norm_(parameters, self.clip)

    def _score(self, batch: dict[str, torch.Tensor], part: str) -> torch.Tensor:
        """Objective of a batch; every quantity is added to the epoch's sums under its name.

        Names are scvi-tools'. The sums are logged once an epoch: Lightning's bookkeeping at every
        step costs as much as the smaller networks do.
        """
        if "kl_weight" in self.loss_kwargs:
            self.loss_kwargs["kl_weight"] = self.kl_weight
        output: LossOutput = self.forward(batch, loss_kwargs=self.loss_kwargs)[2]
        n = output.n_obs_minibatch
        sums = {
            f"{part}_loss": output.loss.detach() * n,
            f"reconstruction_loss_{part}": output.reconstruction_loss_sum.detach(),
            f"kl_local_{part}": output.kl_local_sum.detach(),
            **{f"{name}_{part}": value * n for name, value in output.extra_metrics.items()},
        }
        self._n_cells[part] = self._n_cells.get(part, 0) + n
        totals = self._sums.setdefault(part, {})
        for name, value in sums.items():
            totals[name] = totals[name] + value if name in totals else value
        return output.loss

    def _log_epoch(self, part: str) -> None:
        """Log averages over the epoch's cells."""
        n = self._n_cells.pop(part, 0)
        averages = {name: value / n for name, value in self._sums.pop(part, {}).items()}
        if not averages:
            return
        averages[f"elbo_{part}"] = (
            averages[f"reconstruction_loss_{part}"] + averages[f"kl_local_{part}"]
        )
        loss = averages.pop(f"{part}_loss")
        self.log(f"{part}_loss", loss, prog_bar=part == "train", sync_dist=self.use_sync_dist)
        self.log_dict(averages, sync_dist=self.use_sync_dist)

    def on_train_epoch_end(self) -> None:
        """Log the epoch; see :class:`~scvci.train.NotFiniteError` for what stops training."""
        require_finite_sums(self._sums, self.current_epoch)
        require_finite_weights(self.module, self.current_epoch)
        self._log_epoch("train")
        if not self.automatic_optimization and self.lr_decay:
            # Lightning steps schedules on its own only where it steps the optimiser.
            for schedule in self.lr_schedulers():
                schedule.step()
        if "kl_weight" in self.loss_kwargs:
            self.log("kl_weight", self.kl_weight)

    def on_validation_epoch_end(self) -> None:
        """Log the epoch."""
        require_finite_sums(self._sums, self.current_epoch)
        self._log_epoch("validation")

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> Any:
        """One step of the generator, in every second batch after one of the critic."""
        if self.automatic_optimization:
            return self._score(batch, "train")
        generator, critic = self.optimizers()
        if (batch_idx + 1) % _CRITIC_FREQUENCY == 0:
            loss = self.module.critic_loss(batch)
            self._step(critic, loss)
            self.log("critic_train", loss.detach(), on_step=False, on_epoch=True)
        loss = self._score(batch, "train")
        self._step(generator, loss)
        return loss

    def validation_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> None:
        """Score a batch with the same latent draws in every epoch.

        Scores of epochs then differ by the weights only, not by chance.
        """
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(batch_idx)
            self._score(batch, "validation")

    def _step(self, optimizer: Any, loss: torch.Tensor) -> None:
        optimizer.zero_grad()
        self.manual_backward(loss)
        self.configure_gradient_clipping(optimizer)
        optimizer.step()
