"""Fixtures that several test files share."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from zoo_runs import copied, published, run, seeds, spoilt  # noqa: F401 - fixtures

os.environ["JSONARGPARSE_DEPRECATION_WARNINGS"] = (
    "all"  # each by its own text: pyproject lists them
)

ROOT = Path(__file__).resolve().parent.parent


def shared_data() -> Path | None:
    """Folder with the complete data sets, if this machine has it (SSL_DATA_DIR, or beside)."""
    for place in (os.environ.get("SSL_DATA_DIR"), ROOT.parent / "shared" / "data"):
        if place and (Path(place) / "MNIST" / "raw").is_dir():
            return Path(place).resolve()
    return None


@pytest.fixture
def trainer(tmp_path: Path) -> Callable[..., Any]:
    """Make a silent Trainer on the CPU that writes below ``tmp_path``."""

    def make(**settings: Any) -> Any:
        from lightning.pytorch import Trainer

        quiet = {
            "accelerator": "cpu",
            "devices": 1,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            "default_root_dir": tmp_path,
        }
        return Trainer(**{**quiet, **settings})

    return make


@pytest.fixture(scope="session")
def bare(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment of processes that see no more than a bare machine with a GPU has."""
    from bare_machine import bare_environment

    return bare_environment(tmp_path_factory.mktemp("machine") / "bare")


@pytest.fixture
def script(bare: dict[str, str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a Python file, the GPU script by default, as on a bare machine."""

    def start(*arguments: str, file: str = "") -> subprocess.CompletedProcess[str]:
        file = file or str(ROOT / "tools" / "gpu" / "run.py")
        command = [sys.executable, "-W", "ignore", file, *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, check=False, env=bare, timeout=500
        )

    return start


@pytest.fixture
def own_switches() -> Iterator[None]:
    """Let a test set torch's switches of CUDA; set them back to torch's own values."""
    import torch

    yield
    torch.backends.cudnn.fp32_precision = "none"
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
