"""The folder of a run: its config, and that no other run works in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import WandbLogger

from ssl_lightning.cli.own_runs import remember_run
from ssl_lightning.files import FolderLock, replacing
from ssl_lightning.module import SSLLightningModule


class RunFolderConfig(SaveConfigCallback):
    """Store the resolved config as ``config.yaml`` in the run's folder, and in the loggers."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **{**settings, "save_to_log_dir": False})
        self.lock: FolderLock | None = None
        self.held, self.begun = False, False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the folder for this run, or refuse to mix its files with another's."""
        if stage == "fit" and trainer.is_global_zero and self.lock is None:
            self.lock = FolderLock(Path(trainer.default_root_dir))
            self.held = True
        super().setup(trainer, pl_module, stage)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember that this user trains a network of their own here."""
        if trainer.is_global_zero and isinstance(self.config.model.backbone, Namespace):
            assert isinstance(pl_module, SSLLightningModule)
            remember_run(Path(trainer.default_root_dir), pl_module.backbone)

    def on_train_batch_end(self, *_: Any) -> None:
        """Know that the run has begun, so that its files are not removed."""
        self.begun = True

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let other runs use the folder."""
        if self.lock is not None:
            self.lock.release()
            self.lock = None

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Let other runs use the folder."""
        self.teardown(trainer, pl_module, "fit")

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the file (whole or not at all) and tell Weights & Biases."""
        text = self.parser.dump(self.config)
        if stage == "fit":
            with replacing(Path(trainer.default_root_dir) / "config.yaml") as temporary:
                temporary.write_text(text)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_hyperparams({"config": yaml.safe_load(text)})
