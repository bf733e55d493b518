"""Two processes with gloo: the same weights on both, and the same as one process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

LOW_RANK = ("low_rank", "low_rank_later")
SCRIPT = Path(__file__).with_name("ddp_run.py")


def train(out: Path, devices: int, mode: str) -> list[dict]:
    out.mkdir()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")}
    run = subprocess.run(
        [sys.executable, SCRIPT, out, str(devices), mode],
        env={**environment, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    files = sorted(out.glob("rank*.pt"))
    assert len(files) == devices
    return [torch.load(file, weights_only=True) for file in files]


@pytest.mark.parametrize("mode", ["train", "collapse", "compact", "gradual", "measured", *LOW_RANK])
def test_two_processes_equal_one_with_the_same_global_batch(tmp_path, mode):
    (one,) = train(tmp_path / "one", 1, mode)
    first, second = train(tmp_path / "two", 2, mode)
    for name, weight in first["weights"].items():
        assert torch.equal(weight, second["weights"][name]), name
        torch.testing.assert_close(weight, one["weights"][name], rtol=1e-8, atol=1e-10)
        assert torch.equal(weight == 0, one["weights"][name] == 0), name
    if mode == "compact":  # what was locked is gone
        assert 0 < len(first["weights"]["conv1.weight"]) < 6
        assert "conv2.weight" not in first["weights"]
        return
    if mode in LOW_RANK:
        assert "conv2.0.weight" in first["weights"]
        return
    if mode in ("gradual", "measured"):
        assert len(first["weights"]["conv1.weight"]) < 6
        return
    assert one["locks"]["conv1:filter"].any()
    for name, mask in one["locks"].items():
        assert torch.equal(mask, first["locks"][name])
    if mode == "collapse":
        assert not one["weights"]["conv2.weight"].any()
