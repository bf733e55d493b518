"""At which epochs a callback acts, and when in an epoch."""

from __future__ import annotations

import math
import weakref
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from ssl_lightning.graph import ExampleInput
from ssl_lightning.module import Sparsity, epochs_of


@dataclass(frozen=True)
class Occasions:
    """The epochs ``start``, ``start + every``, ... (only ``start`` if ``every`` is 0).

    Example:
        >>> [epoch for epoch in range(8) if Occasions("Callback", 2, 3).at(epoch)]
        [2, 5]
    """

    owner: str
    start: int
    every: int = 0

    def __post_init__(self) -> None:
        if self.start < 0 or self.every < 0:
            raise ValueError(
                f"{self.owner}: expected start >= 0 and every_n_epochs >= 0, got {self.start} and "
                f"{self.every}. Epochs are counted from 0."
            )

    def at(self, epoch: int) -> bool:
        """Whether to act in ``epoch``."""
        since = epoch - self.start
        return since == 0 or (since > 0 and self.every > 0 and since % self.every == 0)

    def check(self, trainer: pl.Trainer) -> None:
        """Reject a start that the run does not reach."""
        check_reached(trainer, self.owner, "start", self.start)


def check_reached(trainer: pl.Trainer, owner: str, name: str, epoch: int) -> None:
    """Reject an epoch that the run does not reach, by ``max_epochs`` or ``max_steps``.

    Raises:
        ValueError: naming the argument.
    """
    count = None if getattr(trainer, "fast_dev_run", False) else epochs_of(trainer)
    if count is not None and count <= epoch:
        longest = "max_epochs" if count == trainer.max_epochs else "max_steps"
        raise ValueError(
            f"{owner}: {name}={epoch} is never reached: the run has the epochs 0 to "
            f"{math.ceil(count) - 1}. Lower `{name}` or raise `trainer.{longest}`."
        )


class LastModule:
    """The module of the last run, which is not retained and not pickled.

    Example:
        >>> last, first = LastModule(), pl.LightningModule()
        >>> last.replaced_by(first), last.replaced_by(first), last.replaced_by(pl.LightningModule())
        (False, False, True)
    """

    def __init__(self) -> None:
        self._module: weakref.ref[pl.LightningModule] | None = None

    def replaced_by(self, module: pl.LightningModule) -> bool:
        """Note the module of this run; return whether the last run had another."""
        another = self._module is not None and self._module() is not module
        self._module = weakref.ref(module)
        return another

    def __reduce__(self) -> tuple[type[LastModule], tuple[()]]:
        return LastModule, ()


class EpochStartCallback(Callback):
    """Base of callbacks that act at the start of epochs, before the first batch.

    A run that is resumed from a checkpoint of an epoch's last batch begins the next epoch without
    Lightning's ``on_train_epoch_start``; then the first batch is the occasion.
    """

    _started: int | None = None

    def at_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Act, if the present epoch is one of those to act at; called once in each."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forget the last run's epochs."""
        self._started = None

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Act."""
        self._started = trainer.current_epoch
        self.at_epoch_start(trainer, pl_module)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Act before the first batch of an epoch that did not start otherwise."""
        if batch_idx == 0 and self._started != trainer.current_epoch:
            self.on_train_epoch_start(trainer, pl_module)


def example_of(sparsity: Sparsity, where: str) -> ExampleInput:
    """Return an example of the network's input.

    Raises:
        ValueError: if its shape is not known, saying how to give it.
    """
    example = sparsity.example_input()
    if example is None:
        raise ValueError(
            f"{where}: the shape of the network's input is not known. Pass `input_shape`, such as "
            "[3, 32, 32], to SSLLightningModule, or `example_input` to `sparsify`."
        )
    return example
