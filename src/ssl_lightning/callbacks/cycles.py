"""Learning-rate cycles of a run in which a network is cut down and retrained."""

from __future__ import annotations

import math
from functools import partial

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.types import LRSchedulerConfig

from ssl_lightning.module import epochs_of
from ssl_lightning.schedules import StageLR

LOW_RATE = 0.2
"""Retraining that starts at a smaller share of the first learning rate is warned of."""


def give_cycles(trainer: pl.Trainer, module: pl.LightningModule, end: int, where: str) -> None:
    """Give optimizers without a scheduler a cycle up to ``end`` and a fresh one after it."""
    count = epochs_of(trainer)
    last = 0 if count is None else math.ceil(count)
    automatic = module.automatic_optimization
    if trainer.lr_scheduler_configs or last < 1 or end >= last or not automatic:
        return
    stages = [end, last - end] if end else [last]
    make = partial(StageLR, epochs=stages, lr=[1.0] * len(stages))
    configs = [LRSchedulerConfig(make(optimizer)) for optimizer in trainer.optimizers]
    trainer.strategy.lr_scheduler_configs = configs
    unit = "epoch" if stages[-1] == 1 else "epochs"
    rank_zero_info(
        f"{where}: the run has no learning-rate scheduler; from the optimizer's rate, it gets half "
        f"a cosine over {' and another over '.join(map(str, stages))} {unit}."
    )


def third_of(trainer: pl.Trainer) -> int:
    """Return the epoch after a third of the run.

    Raises:
        ValueError: if the length of the run is not known.
    """
    count = epochs_of(trainer)
    if count is None:
        raise ValueError(
            "Budget: expected `end`, the epoch at whose start the budget is reached, for a run "
            "whose number of epochs is not known, got none. Give it, or `trainer.max_epochs`."
        )
    return int(count // 3)


def warn_of_low_rate(trainer: pl.Trainer) -> None:
    """Warn if what remains is retrained at a low learning rate."""
    for optimizer in trainer.optimizers:
        group = optimizer.param_groups[0]
        first, now = group.get("initial_lr"), float(group["lr"])
        if first and now < LOW_RATE * float(first):
            rank_zero_warn(
                f"Budget: retraining starts at the learning rate {now:.3g}, {now / first:.0%} of "
                "the first. A fresh cycle recovers more: leave `lr_scheduler` out, or give StageLR "
                "a stage that begins at `end`."
            )
            return
