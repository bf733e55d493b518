"""Small data and networks for tests that train."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


def toy_loader(
    num: int = 64, batch_size: int = 8, shape: tuple[int, ...] = (1, 8, 8), dtype: Any = None
) -> DataLoader[Any]:
    """Ten-class images whose label can be read off their first pixels, in fixed order."""
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(num, *shape, generator=generator, dtype=dtype)
    y = x.flatten(1)[:, :10].argmax(1)
    return DataLoader(TensorDataset(x, y), batch_size=batch_size)


class ToyNet(nn.Module):
    """Two convolutions with batch norm, dropout and a residual block of option-B kind."""

    input_shape = (1, 8, 8)
    num_classes = 10

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(6)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(6 * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = x + self.bn2(self.conv2(x))
        x = nn.functional.max_pool2d(torch.relu(x), 2)
        return self.fc(self.dropout(x.flatten(1)))


def make_toy(seed: int = 0, dropout: float = 0.0) -> ToyNet:
    """A ToyNet with fixed random weights."""
    torch.manual_seed(seed)
    return ToyNet(dropout)


class KilledError(Exception):
    """What ends a run."""


class Kill(pl.Callback):
    """Ends a run before the step of a number; never for None."""

    def __init__(self, at: int | None) -> None:
        self.at = at

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == self.at:
            raise KilledError


def killed_and_resumed(
    run: Callable[[Path, int | None], nn.Module], folder: Path, kill: int
) -> tuple[nn.Module, nn.Module]:
    """Make sure that a run that is ended and resumed is the whole one; return whole and resumed.

    Args:
        run: makes a run, or goes on with the one that lies in a folder; with a step before which it
            ends with an error.
        folder: of both.
        kill: that step.
    """
    whole = run(folder / "whole", None)
    try:
        run(folder / "killed", kill)
    except KilledError:
        resumed = run(folder / "killed", None)
    else:
        raise AssertionError(f"the run did not reach step {kill}")
    expected, found = whole.state_dict(), resumed.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    return whole, resumed


class Fn(nn.Module):
    """A network whose forward is a function of itself."""

    def __init__(self, function, **modules):
        super().__init__()
        self.function = [function]
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, *x):
        return self.function[0](self, *x)


def short_config(folder: Path, backbone: Any) -> dict[str, Any]:
    """A config of a run of two epochs on MNIST, pruned in the second and compacted."""
    return {
        "model": {
            "backbone": backbone,
            "penalties": [{"kind": "filter", "layers": "conv", "strength": 0.001}],
            "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.02}},
        },
        "data": {
            "class_path": "MNISTDataModule",
            "init_args": {"source": "bundled", "batch_size": 32, "num_validation": 2000},
        },
        "trainer": {
            "max_epochs": 2,
            "limit_train_batches": 4,
            "limit_val_batches": 1,
            "logger": False,
            "accelerator": "cpu",
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": str(folder / "run"),
            "callbacks": [
                {
                    "class_path": "ThresholdPruning",
                    "init_args": {"start": 1, "threshold": 0.9, "relative": True},
                },
                {"class_path": "SaveCompact"},
                {
                    "class_path": "ModelCheckpoint",
                    "init_args": {"dirpath": str(folder / "run/checkpoints"), "save_last": True},
                },
            ],
        },
    }
