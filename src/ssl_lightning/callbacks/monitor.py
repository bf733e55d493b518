"""SparsityMonitor and FilterPictures: the retained groups as figures, a table and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from ssl_lightning.callbacks.when import EpochStartCallback, Occasions
from ssl_lightning.groups import group_norms, kept_groups, nonzero_groups
from ssl_lightning.module import Sparsity, sparsity_of
from ssl_lightning.report import filter_grid, filter_pictures


class SparsityMonitor(Callback):
    """Log the retained groups and the effective strength of every layer; print a table at the end.

    Per epoch and layer it logs ``sparsity/<layer>/<filters|channels|columns>`` (percent that is
    zero) and ``strength/<layer>:<kind>`` to whatever loggers the trainer has; for a layer under an
    ``l1`` penalty also ``sparsity/<layer>/weights``. All sparsities are of the masked network: what
    was removed during training counts as zero.
    ``smallest_norm/<layer>:<kind>``, of the penalised groups that are not zero, falls before the
    next group becomes zero: where it does not, the strength is too small.

    Args:
        every_n_epochs: log every so many epochs.
        table: print a table of all layers at the end of training.

    Raises:
        ValueError: if ``every_n_epochs`` is not positive.

    Example:
        >>> SparsityMonitor(every_n_epochs=5).table
        True
    """

    def __init__(self, every_n_epochs: int = 1, table: bool = True) -> None:
        if every_n_epochs < 1:
            raise ValueError(
                f"SparsityMonitor: expected every_n_epochs >= 1, got {every_n_epochs}. To log "
                "nothing, take the callback out."
            )
        self.every_n_epochs = every_n_epochs
        self.table = table

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the figures of this epoch."""
        if (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            sparsity = sparsity_of(pl_module, type(self).__name__)
            pl_module.log_dict(sparsity_figures(sparsity))

    @rank_zero_only
    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the table."""
        if self.table:
            Console().print(
                sparsity_table(groups_left(sparsity_of(pl_module, type(self).__name__)))
            )


def sparsity_figures(sparsity: Sparsity) -> dict[str, float]:
    """Return the sparsity in percent per layer and kind, and the effective strengths."""
    figures = {
        f"sparsity/{layer}/{kind}": 100.0 * (1.0 - nonzero / total)
        for layer, kinds in groups_left(sparsity).items()
        for kind, (nonzero, total) in kinds.items()
    }
    parameters = sparsity.parameters()
    sets = sparsity.regularizer.group_sets
    singles = [s for s in sets if s.elementwise]
    sizes = {s.layer: s.num_groups for s in singles} if sparsity.origin is None else {}
    sizes |= {} if sparsity.origin is None else sparsity.origin.singles
    nonzero = {s.layer: int(nonzero_groups(s, parameters).sum()) for s in singles}
    for layer, size in sizes.items():
        figures[f"sparsity/{layer}/weights"] = 100.0 * (1.0 - nonzero.get(layer, 0) / size)
    for group_set in (s for s in sets if not s.elementwise):
        norms = group_norms(group_set, parameters).detach()
        positive = norms[norms > 0]
        figures[f"smallest_norm/{group_set.name}"] = float(positive.min()) if len(positive) else 0.0
    strengths = sparsity.regularizer.strengths(sparsity.epoch)
    return {**figures, **{f"strength/{name}": value for name, value in strengths.items()}}


def groups_left(sparsity: Sparsity) -> dict[str, dict[str, list[int]]]:
    """Return layer -> kind -> [retained groups, groups before any compaction]."""
    retained = kept_groups(sparsity.network)
    if sparsity.origin is None:
        return retained
    return {
        layer: {kind: [retained.get(layer, {}).get(kind, [0])[0], of] for kind, of in kinds.items()}
        for layer, kinds in sparsity.origin.groups.items()
    }


def sparsity_table(retained: Mapping[str, Mapping[str, Sequence[int]]]) -> Table:
    """Return a table of the retained groups of every layer."""
    table = Table(
        title="Groups left", caption="kept of all; columns are filter shapes W[:, c, h, w]"
    )
    table.add_column("layer")
    kinds = ("filters", "channels", "columns")
    for kind in kinds:
        table.add_column(kind, justify="right")
    for layer, counts in retained.items():
        cells = ["{} of {}".format(*counts[kind]) if kind in counts else "" for kind in kinds]
        table.add_row(layer, *cells)
    return table


class FilterPictures(EpochStartCallback):
    """Show the filters of one convolution as a picture, as in the paper's figures.

    It is sent to Weights & Biases or TensorBoard where one of them logs the run, and always written
    to ``filters.png`` in ``folder`` (default: the trainer's ``default_root_dir``): the filters
    that are retained and, with ``before``, those of an earlier epoch beside them.

    Args:
        layer: name of the convolution; None takes the first one.
        every_n_epochs: epochs between pictures for loggers; the last epoch always has one.
        folder: where to write the file.
        before: epoch, such as the first sparse one, at whose start the filters are stored to be
            shown beside the last ones.

    Raises:
        ValueError: at the start of training, if there is no such convolution.

    Example:
        >>> FilterPictures(layer="conv1").every_n_epochs
        10
    """

    def __init__(
        self,
        layer: str | None = None,
        every_n_epochs: int = 10,
        folder: str | None = None,
        before: int | None = None,
    ) -> None:
        if every_n_epochs < 1:
            raise ValueError(
                f"FilterPictures: expected every_n_epochs >= 1, got {every_n_epochs}. To draw "
                "nothing, take the callback out."
            )
        self.layer = layer
        self.every_n_epochs = every_n_epochs
        self.folder = folder
        self.occasions = None if before is None else Occasions("FilterPictures", before)
        self.first: Tensor | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return the filters that are shown as those before."""
        return {"before": self.first}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take them from a checkpoint."""
        self.first = state_dict["before"]

    def at_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the filters, if this is the epoch to do so."""
        if self.occasions is not None and self.occasions.at(trainer.current_epoch):
            weights = self.weights(sparsity_of(pl_module, type(self).__name__))
            self.first = None if weights is None else torch.from_numpy(weights.copy())

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find the convolution, so that a misspelt name shows before training."""
        if self.occasions is not None:
            self.occasions.check(trainer)
        self.weights(sparsity_of(pl_module, type(self).__name__))

    def weights(self, sparsity: Sparsity) -> npt.NDArray[np.floating[Any]] | None:
        """Return the convolution's weight, shape ``(O, C, H, W)``; None if it is gone."""
        convs = {n: m for n, m in sparsity.network.named_modules() if isinstance(m, nn.Conv2d)}
        name = self.layer if self.layer is not None else next(iter(convs), None)
        if name not in convs and sparsity.plans:
            return None
        if name not in convs:
            raise ValueError(
                f"FilterPictures: no convolution {name!r} in {type(sparsity.network).__name__}. "
                f"Convolutions: {', '.join(convs) or 'none'}."
            )
        return convs[name].weight.detach().float().cpu().numpy()

    @rank_zero_only
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Send a picture to the loggers."""
        last = trainer.current_epoch + 1 == trainer.max_epochs
        if not last and trainer.current_epoch % self.every_n_epochs:
            return
        weights = self.weights(sparsity_of(pl_module, type(self).__name__))
        if weights is not None:
            for logger in trainer.loggers:
                log_picture(logger, filter_grid(weights), trainer.global_step)

    @rank_zero_only
    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the file."""
        folder = Path(self.folder or trainer.default_root_dir)
        weights = self.weights(sparsity_of(pl_module, type(self).__name__))
        if weights is not None:
            panels = {"after": weights}
            if self.first is not None:
                panels = {"before": self.first.numpy(), **panels}
            filter_pictures(panels, folder / "filters.png")


def log_picture(
    logger: Logger, pixels: npt.NDArray[np.uint8], step: int, name: str = "filters"
) -> None:
    """Send a picture to a logger that takes pictures; others are passed over."""
    if isinstance(logger, WandbLogger):
        logger.log_image(name, [pixels])
    elif isinstance(logger, TensorBoardLogger):
        layout = "HWC" if pixels.ndim == 3 else "HW"
        logger.experiment.add_image(name, pixels, step, dataformats=layout)
