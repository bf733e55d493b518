"""SaveCompact: the compact network, written when training ends."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from torch import nn

from ssl_lightning.callbacks.when import example_of
from ssl_lightning.compaction import Plan, plan_and_compact, save_compact
from ssl_lightning.graph import ExampleInput
from ssl_lightning.module import sparsity_of


class SaveCompact(Callback):
    """At the end of training, compact the network and write it to ``folder``.

    Where Weights & Biases logs the run, the folder also becomes an artifact of type ``model``. A
    backbone of the user's own is read back with ``load_compact(folder, model=...)``.

    Args:
        folder: where to write (default: ``compact`` in the trainer's ``default_root_dir``).

    Raises:
        ValueError: at the start of training, if the shape of the backbone's input is not known.

    Example:
        >>> SaveCompact("runs/lenet/compact").folder
        'runs/lenet/compact'
    """

    def __init__(self, folder: str | None = None) -> None:
        self.folder = folder

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Reject a run whose compact network could not be stored."""
        example_of(sparsity_of(pl_module, "SaveCompact"), "SaveCompact")

    def smaller(self, network: nn.Module, example: ExampleInput) -> tuple[Plan, nn.Module]:
        """Return what to write: the compact network, and the plan that leads to it."""
        return plan_and_compact(network, example)

    @rank_zero_only
    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compact and write."""
        sparsity = sparsity_of(pl_module, "SaveCompact")
        example = example_of(sparsity, "SaveCompact")
        folder = Path(self.folder or Path(trainer.default_root_dir) / "compact")
        plan, small = self.smaller(sparsity.network, example)
        recipe = sparsity.recipe(plan)
        save_compact(folder, small, recipe.plans, recipe.backbone, recipe.arguments)
        rank_zero_info(f"SaveCompact: wrote {folder}.")
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                log_artifact(logger, folder)


def log_artifact(logger: WandbLogger, folder: Path) -> None:
    """Log a folder as an artifact of the run."""
    import wandb

    artifact = wandb.Artifact(f"compact-{logger.experiment.id}", type="model")
    artifact.add_dir(str(folder))
    logger.experiment.log_artifact(artifact)
