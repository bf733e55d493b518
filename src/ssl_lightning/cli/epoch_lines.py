"""A line for each epoch of training, and seldom one of a test, where no bar is drawn."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TextIO

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from ssl_lightning.progress import SILENT, Display, Part, in_words

SHOWN = ("train/loss", "val/error", "val/loss")
"""Metrics of a line, of which the last is for tasks without errors."""


class EpochLines(Callback):
    """Writes epoch, mean loss, validation error, seconds and about how long the rest takes.

    It does so where no bar is drawn: in a log, or where ``enable_progress_bar`` is false. A bar of
    Lightning's that would write into a log is silenced. Of a training of a few seconds nothing is
    written.

    Args:
        stream: to write to; standard output if None.
        clock: seconds.
    """

    def __init__(
        self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.stream, self.clock = stream, clock
        self.started = self.epoch_started = 0.0
        self.first, self.writes = 0, False
        self.waiting: list[str] = []
        self.part: Part | None = None
        self.losses: list[Tensor] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Decide whether lines are written."""
        drawn = (self.stream or sys.stdout).isatty()
        bar = trainer.progress_bar_callback
        if bar is not None and not drawn:
            bar.disable()
        self.writes = trainer.is_global_zero and not (bar is not None and drawn)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self.started, self.first = self.clock(), trainer.current_epoch
        self.waiting = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock of the epoch."""
        self.epoch_started, self.losses = self.clock(), []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any
    ) -> None:
        """Note the loss: what is logged is that of a single step, and not of every one."""
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if self.writes and isinstance(loss, Tensor):
            self.losses.append(loss.detach())

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the line, together with those of the first seconds once these are over."""
        if not self.writes:
            return
        now, done = self.clock(), trainer.current_epoch + 1
        total = trainer.max_epochs if limited(trainer) else None
        number = f"{done} of {total}" if total else f"{done}"
        line = [f"after {number} epoch{'' if (total or done) == 1 else 's'}"]
        mean = {"train/loss": torch.stack(self.losses).mean()} if self.losses else {}
        line += metrics_text({**trainer.callback_metrics, **mean})
        line += [f"{now - self.epoch_started:.1f} s"]
        left = (trainer.max_epochs or 0) - done
        if left > 0 and not trainer.should_stop:
            each = (now - self.started) / (done - self.first)
            line += [f"about {in_words(each * left)} left"]
        self.waiting.append(", ".join(line))
        if now - self.started >= SILENT:
            stream = self.stream or sys.stdout
            stream.write("".join(f"{line}\n" for line in self.waiting))
            stream.flush()
            self.waiting = []

    def begin(self, trainer: Trainer, what: str, batches: Sequence[float]) -> None:
        """Begin to say how far a pass over held-out images has come, which is none of training."""
        number = sum(batches)
        if self.writes and not trainer.training and 0 < number < float("inf"):
            display = Display(self.stream or sys.stdout, bars=False, clock=self.clock)
            self.part = Part(what, number, display)
            display.open(self.part)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin."""
        if not trainer.sanity_checking and trainer.state.fn == "validate":
            self.begin(trainer, "validate", trainer.num_val_batches)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin."""
        self.begin(trainer, "test", trainer.num_test_batches)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin."""
        self.begin(trainer, "predict", trainer.num_predict_batches)

    def advance(self, *_: Any, **__: Any) -> None:
        """Say that another batch is done."""
        if self.part is not None:
            self.part.advance()

    on_validation_batch_end = on_test_batch_end = on_predict_batch_end = advance


def limited(trainer: Trainer) -> bool:
    """Whether it is known how many epochs there will be."""
    return trainer.max_epochs is not None and trainer.max_epochs > 0


def metrics_text(metrics: Mapping[str, Any]) -> list[str]:
    """Write the loss and the error, or a task's validation loss where there is no error.

    Example:
        >>> metrics_text({"train/loss": 0.25, "val/error": 1.5, "val/loss": 0.3, "lr": 0.1})
        ['train/loss 0.25', 'val/error 1.5 %']
        >>> metrics_text({"train/loss": 0.25, "val/loss": 0.3})
        ['train/loss 0.25', 'val/loss 0.3']
    """
    found = [name for name in SHOWN if name in metrics][:2]
    unit = {name: " %" if name.endswith("/error") else "" for name in found}
    return [f"{name} {float(metrics[name]):.4g}{unit[name]}" for name in found]
