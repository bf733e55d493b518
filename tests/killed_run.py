"""A run that stores a checkpoint at every step, to be killed: ``python killed_run.py FOLDER``."""

from __future__ import annotations

import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint

from ssl_lightning import MNISTDataModule, SSLLightningModule

EPOCHS, STEPS = 3, 8
PENALTY = {"kind": "filter", "layers": "conv*", "strength": 1e-3}


class Tell(Callback):
    """Prints the number of each step, before its checkpoint is written."""

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        print(trainer.global_step, flush=True)


def train(folder: Path, callbacks: Any = ()) -> SSLLightningModule:
    """Train, from the last checkpoint in the folder if there is one; return the module."""
    seed_everything(1, verbose=False)
    module = SSLLightningModule(
        "lenet", penalties=[PENALTY], optimizer=partial(torch.optim.SGD, lr=0.01, momentum=0.9)
    )
    data = MNISTDataModule(source="bundled", batch_size=16, augment=True)
    keep = ModelCheckpoint(
        folder, "{step}", save_last=True, save_top_k=1, every_n_train_steps=1,
        enable_version_counter=False,
    )  # fmt: skip
    last = folder / "last.ckpt"
    Trainer(
        max_epochs=EPOCHS, limit_train_batches=STEPS, limit_val_batches=0, accelerator="cpu",
        devices=1, logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[*callbacks, keep], default_root_dir=folder,
    ).fit(module, data, ckpt_path=last if last.exists() else None)  # fmt: skip
    return module


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    place = Path(sys.argv[1])
    trained = train(place, [Tell()])
    torch.save(trained.backbone.state_dict(), place / "weights.pt")
