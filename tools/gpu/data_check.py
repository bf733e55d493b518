"""Compare the batches that the data module makes on the device with those of the CPU."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from ssl_lightning.data import CIFAR10DataModule

EPOCH = 3
CUTOUT = 8


def check_batches(device: str, data: Path, num_validation: int, batch_size: int) -> int:
    """Compare an epoch of training and the validation, pixel by pixel; return how many images.

    Raises:
        AssertionError: at the first batch that differs.
        RuntimeError: if making a batch waits for the device.
    """
    numbers = {"batch_size": batch_size, "num_validation": num_validation}
    ordinary = CIFAR10DataModule(root=str(data), cutout=CUTOUT, **numbers)
    module = CIFAR10DataModule(root=str(data), cutout=CUTOUT, on_device=True, **numbers)
    strategy = SimpleNamespace(root_device=torch.device(device))
    module.trainer = SimpleNamespace(world_size=1, global_rank=0, strategy=strategy)  # type: ignore[assignment]
    number = 0
    for split in ("train", "val"):
        expected = batches(getattr(ordinary, f"{split}_dataloader")())
        found = batches(getattr(module, f"{split}_dataloader")(), silent=device == "cuda")
        for i, (one, other) in enumerate(zip(expected, found, strict=True)):
            if not all(torch.equal(a, b.cpu()) for a, b in zip(one, other, strict=True)):
                raise AssertionError(f"{split} batch {i} on {device} is not that of the CPU")
            number += len(one[1])
    return number


def batches(loader: Any, silent: bool = False) -> list[Any]:
    """Return the batches of an epoch; ``silent``: raise where one but the first waits."""
    if hasattr(loader.sampler, "set_epoch"):
        loader.sampler.set_epoch(EPOCH)
    remaining = iter(loader)
    found = [next(remaining)]
    if silent:
        torch.cuda.set_sync_debug_mode("error")
    try:
        return [*found, *remaining]
    finally:
        if silent:
            torch.cuda.set_sync_debug_mode("default")
