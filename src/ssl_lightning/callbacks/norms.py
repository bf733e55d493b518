"""NormPictures: the norms of all groups over the epochs, as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import numpy.typing as npt
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from PIL import Image
from torch import nn

from ssl_lightning.callbacks.monitor import log_picture
from ssl_lightning.groups import GroupSet, Selector, group_norms, resolve_groups
from ssl_lightning.module import Sparsity, sparsity_of
from ssl_lightning.report.norms import norm_chart

BEFORE = -1
"""Number of the column that shows the norms before training."""


class NormPictures(Callback):
    """Show the norms of all groups over the epochs as heat maps: what the penalties see.

    Groups are those of the penalties; without any, all coupled channels. They are those of the
    network before compaction throughout: what was removed is zero. ``norms.png`` is written to
    ``folder`` (default: the trainer's ``default_root_dir``) when training ends, and is sent to
    Weights & Biases or TensorBoard where one of them logs the run. Checkpoints hold the norms.

    Args:
        every_n_epochs: epochs between two columns; the last epoch always has one.
        folder: where to write the file.

    Raises:
        ValueError: if ``every_n_epochs`` is not positive.

    Example:
        >>> NormPictures(every_n_epochs=2).every_n_epochs
        2
    """

    def __init__(self, every_n_epochs: int = 1, folder: str | None = None) -> None:
        if every_n_epochs < 1:
            raise ValueError(
                f"NormPictures: expected every_n_epochs >= 1, got {every_n_epochs}. To draw "
                "nothing, take the callback out."
            )
        self.every_n_epochs = every_n_epochs
        self.folder = folder
        self.epochs: list[int] = []
        self.norms: dict[str, list[list[float]]] = {}
        self._sets: list[GroupSet] | None = None
        self._stopped = False

    def state_dict(self) -> dict[str, Any]:
        """Return the norms so far."""
        return {"epochs": list(self.epochs), "norms": {k: list(v) for k, v in self.norms.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take them from a checkpoint."""
        self.epochs = list(state_dict["epochs"])
        self.norms = {name: list(columns) for name, columns in state_dict["norms"].items()}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Forget the last run; one that is resumed restores its own columns."""
        if stage == "fit":
            self.epochs, self.norms, self._sets, self._stopped = [], {}, None, False

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuse a module without groups before training."""
        sparsity_of(pl_module, type(self).__name__)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note the norms before training."""
        if not self.epochs:
            self.note(sparsity_of(pl_module, type(self).__name__), BEFORE)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note the norms after this epoch."""
        epoch = trainer.current_epoch
        last = epoch + 1 == trainer.max_epochs
        if last or (epoch + 1) % self.every_n_epochs == 0:
            self.note(sparsity_of(pl_module, type(self).__name__), epoch)

    @rank_zero_only
    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the picture, and send it to the loggers."""
        if self.norms:
            path = Path(self.folder or trainer.default_root_dir) / "norms.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            self.draw(path)
            for logger in trainer.loggers:
                log_picture(logger, pixels_of(path), trainer.global_step, "norms")

    def draw(self, path: Path) -> None:
        """Write the picture."""
        found = {name: np.asarray(columns).T for name, columns in self.norms.items()}
        norm_chart(found, self.epochs, path)

    def note(self, sparsity: Sparsity, epoch: int) -> None:
        """Add a column with the norms that the groups have now."""
        if self._stopped or (why := unfollowed(sparsity)):
            if not self._stopped:
                self._stopped = True
                rank_zero_warn(f"NormPictures: {why} The picture ends here.")
            return
        masked = sparsity.masked()
        if self._sets is None:
            self._sets = sets_of(sparsity, masked)
        parameters = dict(masked.named_parameters(remove_duplicate=False))
        self.epochs.append(epoch)
        for group_set in self._sets:
            norms = group_norms(group_set, parameters).detach().tolist()
            self.norms.setdefault(group_set.name, []).append(norms)


def unfollowed(sparsity: Sparsity) -> str:
    """Return why groups cannot be followed; empty if they can."""
    if any(plan.factors for plan in sparsity.plans):
        return "low rank factors have replaced layers, whose groups are gone."
    if not sparsity.penalties and sparsity.example_input() is None:
        return "without penalties and without `input_shape`, there are no groups."
    return ""


def sets_of(sparsity: Sparsity, network: nn.Module) -> list[GroupSet]:
    """Return the groups that are shown, of the network as it was before compaction."""
    if sparsity.penalties:
        return [found for found in sparsity.sets_of(network) if not found.elementwise]
    return resolve_groups(network, [Selector("coupled")], sparsity.example_input())


def pixels_of(path: Path) -> npt.NDArray[np.uint8]:
    """Return the pixels of a picture, shape ``(H, W, 3)``."""
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))
