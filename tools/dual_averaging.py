"""Regularized modified dual averaging, for comparison with other ways to a budget.

Reference:
    Huang & Lee, Training Structured Neural Networks Through Manifold Identification and Variance
    Reduction, ICLR 2022, algorithm 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.optim import Optimizer

from ssl_lightning.compaction import state
from ssl_lightning.groups import GroupSet, group_norms
from ssl_lightning.groups.resolve import named_tensors


class DualAveraging(Optimizer):
    """Weights are the proximal point of the weighted sum of all gradients, averaged over steps.

    Args:
        params: to train.
        lr: eta, with which a gradient is weighted.
        momentum: share of the weights of before in the new ones.
        weight_decay: times the weights, added to their gradient.
    """

    def __init__(
        self, params: Iterable[Tensor], lr: float, momentum: float, weight_decay: float
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.sets: Sequence[GroupSet] = ()
        self.names: dict[int, str] = {}
        self.strength = 0.0
        self.restart()

    def restart(self) -> None:
        """Begin the sums anew from the present weights."""
        self.steps, self.alpha = 0, 0.0
        self.state.clear()

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Make one step."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.steps += 1
        root, targets = math.sqrt(self.steps), dict[int, Tensor]()
        self.alpha += self.param_groups[0]["lr"] * root
        for group in self.param_groups:
            for p in (p for p in group["params"] if p.grad is not None):
                sums = self.state[p]
                if not sums:
                    sums |= {"start": p.clone(), "sum": torch.zeros_like(p)}
                gradient = p.grad.add(p, alpha=group["weight_decay"])
                sums["sum"].add_(gradient, alpha=group["lr"] * root)
                targets[id(p)] = sums["start"] - sums["sum"] / root
        self.shrink_({self.names[i]: t for i, t in targets.items() if i in self.names}, root)
        for group in self.param_groups:
            for p in (p for p in group["params"] if id(p) in targets):
                p.lerp_(targets[id(p)], 1.0 - group["momentum"])
        return loss

    def shrink_(self, targets: dict[str, Tensor], root: float) -> None:
        """Apply the proximal operator of the group lasso with the weight of all steps so far."""
        for group_set in self.sets if self.strength else ():
            norms = group_norms(group_set, targets)
            factors = (1.0 - self.strength * self.alpha / root / norms.clamp_min(1e-30)).clamp_min(
                0
            )
            for member in group_set.members:
                member.scale_(targets[member.parameter], factors)


state.SLICEABLE = (*state.SLICEABLE, DualAveraging)  # its state is one number per weight


class DualPenalty(pl.Callback):
    """Penalises the groups of a module from the start until an epoch.

    The strength is that with which the median group would become zero without gradients.
    """

    def __init__(self, end: int, num_steps: int) -> None:
        self.end, self.num_steps = end, num_steps

    @torch.no_grad()
    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin, or end."""
        (optimizer,) = trainer.optimizers
        assert isinstance(optimizer, DualAveraging)
        sparsity: Any = pl_module.sparsity
        if trainer.current_epoch == 0:
            tensors = named_tensors(sparsity.network)
            optimizer.names = {id(tensor): name for name, tensor in tensors.items()}
            optimizer.sets = sparsity.regularizer.group_sets
            norms = torch.cat([group_norms(s, tensors) for s in optimizer.sets])
            roots = [math.sqrt(i + 1) for i in range(self.num_steps)]
            shrinking = optimizer.param_groups[0]["lr"] * sum(roots) / roots[-1]
            optimizer.strength = float(norms.median()) / shrinking
        if trainer.current_epoch == self.end:
            optimizer.strength, optimizer.sets = 0.0, ()
            optimizer.restart()
