"""The checkpoint from which a run continues that another process began."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint

RESUME = "resume"
"""Folder, in a run's own, of the checkpoint that a killed run is continued from."""
LAST = "checkpoints/last.ckpt"


class LatestCheckpoint(ModelCheckpoint):
    """Stores the checkpoint to continue from after each epoch but the last.

    What ends a run is carried out anew if the process is killed then. At the end what was trained
    is stored, where no other callback stores checkpoints.

    Args:
        folder: of the run.

    Example:
        >>> LatestCheckpoint(Path("runs/a")).path.as_posix()
        'runs/a/resume/last.ckpt'
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(
            folder / RESUME,
            "last",
            enable_version_counter=False,
            save_on_train_epoch_end=True,
        )
        self.folder = folder

    @property
    def path(self) -> Path:
        """Where the checkpoint is."""
        return self.folder / RESUME / "last.ckpt"

    def state_dict(self) -> dict[str, Any]:
        """Leave no state in checkpoints, so that they are those of a run without this callback."""
        return {}

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Store a checkpoint, unless this was the last epoch."""
        if not is_last(trainer):
            super().on_train_epoch_end(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Store what was trained, where no other callback stores checkpoints."""
        others = [c for c in trainer.callbacks if isinstance(c, Checkpoint) and c is not self]  # type: ignore[attr-defined]
        if not others:
            trainer.save_checkpoint(self.folder / LAST, weights_only=False)


def is_last(trainer: pl.Trainer) -> bool:
    """Whether the epoch that has just ended is the last one of the run."""
    steps = 0 < trainer.max_steps <= trainer.global_step
    return steps or trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs
