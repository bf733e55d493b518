"""One DDP (or single) training run for test_ddp.py: ``python ddp_run.py OUT DEVICES MODE``."""

from __future__ import annotations

import os
import sys
import warnings
from functools import partial
from pathlib import Path

import torch
from lightning.pytorch import Trainer, seed_everything
from torch import nn

from ssl_lightning import (
    Budget,
    CompactDuringFit,
    DepthCollapse,
    LowRank,
    MNISTDataModule,
    SSLLightningModule,
    ThresholdPruning,
)
from toy import make_toy

BUDGETS = {
    "gradual": {"method": "gradual", "importance": "random"},
    "measured": {"method": "gradual"},
}


def main(out: str, devices: int, mode: str) -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    seed_everything(0)
    net = make_toy().double()
    net.bn1, net.bn2 = nn.Identity(), nn.Identity()  # their statistics are per process under DDP
    net.fc = nn.Linear(6 * 14 * 14, 10).double()
    penalties = [
        {"kind": "filter", "layers": "conv1", "strength": 0.05},
        {"kind": "depth", "layers": "conv2", "strength": 0.02},
    ]
    if mode in ("low_rank", "low_rank_later"):
        penalties = [{"kind": "coupled", "strength": 1e-3}]
    if mode in BUDGETS:
        penalties = [{"kind": "coupled"}]
    module = SSLLightningModule(
        net,
        penalties=penalties,
        optimizer=partial(torch.optim.SGD, lr=0.02, momentum=0.9),
        input_shape=[1, 28, 28],
    )
    callbacks = [ThresholdPruning(start=1, threshold=0.9, relative=True, kinds=["filter"])]
    if mode in BUDGETS:
        torch.manual_seed(int(os.environ.get("LOCAL_RANK", 0)))  # as without seed_everything
        callbacks = [Budget(macs=0.7, end=1, every_n_steps=3, **BUDGETS[mode])]
    if mode in ("low_rank", "low_rank_later"):
        torch.manual_seed(int(os.environ.get("LOCAL_RANK", 0)))
        callbacks = [LowRank(macs=0.6, at=int(mode == "low_rank_later"))]
    if mode in ("collapse", "compact"):
        with torch.no_grad():
            net.conv2.weight.zero_()
        callbacks.append(DepthCollapse(start=0))
    if mode == "compact":
        callbacks.append(CompactDuringFit(at=1))
    trainer = Trainer(
        accelerator="cpu",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        callbacks=callbacks,
        max_epochs=2,
        limit_train_batches=10,
        limit_val_batches=0,
        precision="64-true",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=out,
    )
    trainer.fit(module, MNISTDataModule(batch_size=64 // devices))
    state = {name: p.detach() for name, p in module.backbone.named_parameters()}
    locks = {s.name: module.sparsity.locks.mask(s) for s in module.sparsity.regularizer.group_sets}
    torch.save({"weights": state, "locks": locks}, Path(out) / f"rank{trainer.global_rank}.pt")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
