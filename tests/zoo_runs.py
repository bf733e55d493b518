"""Finished runs, and zoos made of them, that several test files share as fixtures (conftest)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
ZOO = ROOT / "zoo"
ENTRIES = sorted(path.parent.name for path in ZOO.glob("*/card.json"))
NAME = "lenet_mnist_filter_channel"
OTHER = "lenet_mnist_shape"
CONFIG = "config.yaml"
LOG = ["--trainer.logger.init_args.save_dir=.", "--trainer.logger.init_args.name=run"]
TIMER = json.dumps(
    {
        "class_path": "lightning.pytorch.callbacks.Timer",
        "init_args": {"interval": "epoch", "verbose": False},
    }
)
PENALTIES = '[{"kind": "filter", "layers": "conv*", "strength": 0.001}]'


def train(arguments: list[str], folder: Path) -> Path:
    """Carry out a command in a folder; return that of its run."""
    from ssl_lightning.cli import main

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(arguments) == 0
    return folder / "run"


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A zoo of its own with copies of two entries, to be damaged."""
    for name in (NAME, OTHER):
        shutil.copytree(ZOO / name, tmp_path / "copied" / name)
    return tmp_path / "copied"


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two short epochs, written with absolute paths."""
    from test_cli import short_run

    folder = tmp_path_factory.mktemp("short")
    timer = f"--trainer.callbacks+={TIMER}"
    return train(short_run(folder, "--model.penalties", PENALTIES, *LOG, timer), folder)


@pytest.fixture
def spoilt(run: Path, tmp_path: Path) -> Path:
    """A copy of the run, to be spoilt."""
    return Path(shutil.copytree(run, tmp_path / "spoilt"))


def edit_config(folder: Path, old: str, new: str) -> None:
    """Change a text in the config of a run."""
    text = (folder / CONFIG).read_text()
    assert old in text
    (folder / CONFIG).write_text(text.replace(old, new))


def seeded(run: Path, folder: Path, seed: int) -> Path:
    """A copy of a run under another seed, whose compact network has other weights."""
    import torch

    from ssl_lightning.cli import main

    shutil.copytree(run, folder)
    text = (folder / CONFIG).read_text().replace(str(run), str(folder))
    (folder / CONFIG).write_text(text.replace("seed_everything: 0", f"seed_everything: {seed}"))
    path = folder / "checkpoints" / "last.ckpt"
    content = torch.load(path, weights_only=True)
    content["state_dict"]["backbone.fc2.weight"] *= 1 - 0.6 * seed
    content["ssl_lightning"]["run_seed"] = seed
    torch.save(content, path)
    assert main(["compact", str(path)]) == 0
    return folder


@pytest.fixture(scope="session")
def seeds(run: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three runs that differ in their seeds."""
    folder = tmp_path_factory.mktemp("seeds")
    return [run, *(seeded(run, folder / f"seed{seed}", seed) for seed in (1, 2))]


@pytest.fixture(scope="session")
def published(seeds: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A zoo with one entry that has all a card can have, but Table 4."""
    from ssl_lightning import publishing

    root = tmp_path_factory.mktemp("zoo")
    paper: dict[str, Any] = {"row": "LeNet 2", "error": 0.8, "filters": {"conv1": 5, "conv2": 19}}
    controls = {"magnitude": seeds[1:], "small_dense": seeds[:1]}
    publishing.publish(seeds, "both", root, paper, controls, remark="One goal missed.")
    return root


def find_data(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Point at the complete data sets, or skip if the entry needs them and they are not here."""
    from conftest import shared_data
    from ssl_lightning import zoo

    if zoo.card(name).data.name == "mnist":
        return
    if shared_data() is None:
        pytest.skip("needs the complete data sets: set SSL_DATA_DIR to their folder")
    monkeypatch.setenv("SSL_DATA_DIR", str(shared_data()))
