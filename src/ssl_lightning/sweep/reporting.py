"""What a trial tells the study while it trains, and when it stops."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
from optuna.trial import Trial, TrialState

from ssl_lightning.callbacks.latest import LatestCheckpoint, is_last
from ssl_lightning.measure import num_parameters
from ssl_lightning.measure.left import MacsLeft
from ssl_lightning.module import Sparsity
from ssl_lightning.module.hooks import sparsity_of
from ssl_lightning.sweep.pruning import Curve, worth_stopping

Cost = Literal["macs", "parameters"]
COSTS: dict[Cost, str] = {"macs": "MACs", "parameters": "parameters"}
LOSSES = ("train/loss", "val/loss")


@dataclass(frozen=True)
class Reporting:
    """What is reported, and how trials are compared.

    Attributes:
        error: name of the logged metric that is the error; the smaller the better.
        cost: what is left after compaction, in percent of what training started with: ``macs``
            (multiply-adds) or ``parameters``.
        prune: whether trials that are not worth finishing are stopped.
        warmup: after how many epochs at the earliest.
    """

    error: str = "val/error"
    cost: Cost = "macs"
    prune: bool = True
    warmup: int = 0


class Reporter(LatestCheckpoint):
    """Reports error and cost after each epoch, then stores the checkpoint to continue from.

    It is a checkpoint callback, since those act at the end of an epoch after all else. What a
    checkpoint contains was reported before.

    Args:
        trial: of the study.
        folder: of the trial.
        reporting: what to report.
    """

    def __init__(self, trial: Trial, folder: Path, reporting: Reporting) -> None:
        super().__init__(folder)
        self.trial, self.reporting = trial, reporting
        self.curve = curve_of(trial.user_attrs)
        self.stopped = self.validated = False
        self.latest: tuple[int, float, float] | None = None
        self.epoch = -1
        self.dense = 0
        self.left: MacsLeft | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse several processes; count the parameters that training starts with."""
        super().setup(trainer, pl_module, stage)
        self.dense = num_parameters(sparsity_of(pl_module).network)
        if trainer.world_size > 1:
            raise ValueError(
                f"A trial is trained by one process, and `trainer.devices` gives it "
                f"{trainer.world_size}. Write `trainer: {{devices: 1}}`, and start the sweep once "
                "per device (CUDA_VISIBLE_DEVICES): they share the study."
            )

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note that there is an error of this epoch."""
        self.validated = self.validated or not trainer.sanity_checking
        super().on_validation_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report, then stop if it is not worth going on, or store a checkpoint."""
        self.epoch = trainer.current_epoch
        if self.validated:
            self.report(trainer, pl_module)
            if self.reporting.prune and not is_last(trainer):
                warmup = self.reporting.warmup
                self.stopped = worth_stopping(self.curve, self.finished(), warmup)
                trainer.should_stop = trainer.should_stop or self.stopped
        self.validated = False
        super().on_train_epoch_end(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Store what was trained, unless the trial was stopped."""
        if not self.stopped:
            super().on_train_end(trainer, pl_module)

    def result(self) -> tuple[float, float]:
        """Return error and cost after the last epoch.

        Raises:
            ValueError: if there was no validation then.
        """
        if self.latest is None or self.latest[0] != self.epoch:
            raise ValueError(
                f"{self.reporting.error} was not measured after the last epoch, {self.epoch}. Let "
                "`trainer.max_epochs` be a multiple of `trainer.check_val_every_n_epoch`."
            )
        return self.latest[1:]

    def report(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Store error and cost of the epoch with the trial.

        Raises:
            ValueError: if one is not known, or the training has diverged.
        """
        epoch, name = trainer.current_epoch, self.reporting.error
        metrics = {key: float(value) for key, value in trainer.callback_metrics.items()}
        if name not in metrics:
            known = ", ".join(key for key in metrics if key.startswith("val/"))
            raise ValueError(f"--error: no metric {name!r} is logged. Known: {known or 'none'}.")
        for key in (name, *LOSSES):
            if not math.isfinite(metrics.get(key, 0.0)):
                raise ValueError(f"Diverged: {key} is {metrics[key]} after epoch {epoch}.")
        self.latest = epoch, metrics[name], self.cost(pl_module)
        before = {e: found for e, found in self.curve.items() if e < epoch}  # of a killed process
        self.curve = {**before, epoch: self.latest[1:]}
        self.trial.set_user_attr("curve", {str(e): list(found) for e, found in self.curve.items()})

    def cost(self, pl_module: pl.LightningModule) -> float:
        """Return what compaction would leave now, in percent."""
        sparsity = sparsity_of(pl_module)
        macs = self.reporting.cost == "macs"
        left = sparsity.macs_left() if macs else self.parameters_left(sparsity)
        if left is None:
            raise ValueError(
                "The cost is not known: the network cannot be captured, or the shape of its input "
                "is not known. Give `input_shape` in the config, such as [3, 32, 32]."
            )
        return left

    def parameters_left(self, sparsity: Sparsity) -> float | None:
        """Return the parameters after compaction, in percent of those training started with."""
        example = sparsity.example_input()
        if example is None:
            return None
        self.left = self.left or MacsLeft(example, lambda network, _: num_parameters(network))
        return 100.0 * self.left(sparsity.network) / self.dense

    def finished(self) -> list[Curve]:
        """Return the curves of the finished trials."""
        trials = self.trial.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        return [curve_of(found.user_attrs) for found in trials]


def curve_of(attributes: dict[str, Any]) -> Curve:
    """Return what a trial reported.

    Example:
        >>> curve_of({"curve": {"0": [12.5, 100.0]}})
        {0: (12.5, 100.0)}
    """
    return {int(e): (found[0], found[1]) for e, found in attributes.get("curve", {}).items()}
