"""The script for machines with a GPU: its stages on the CPU, with tiny sizes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest

from conftest import ROOT

TOOLS = ROOT / "tools" / "gpu"
sys.path.append(str(TOOLS))

import stages  # noqa: E402

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def script(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", str(TOOLS / "run.py"), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env=ENVIRONMENT, timeout=500
    )


def context(tmp_path, **changes) -> stages.Context:
    given = {"out": tmp_path / "out", "device": "cpu", "deadline": time.monotonic() + 60}
    return stages.Context(**{**given, "dry_run": False, "root": tmp_path, **changes})


def test_every_check_holds_in_a_dry_run(tmp_path):
    run = script("check", "--dry-run", "--minutes", "8", "--out", str(tmp_path))
    assert run.returncode == 0, run.stderr
    record = json.loads((tmp_path / "check.json").read_text())
    assert record["error"] is None
    assert record["dry_run"]
    assert [row for row in record["result"] if not row["ok"]] == []
    assert len(record["result"]) > 100
    assert f"{len(record['result'])} of {len(record['result'])} hold" in run.stdout


def test_a_stage_that_fails_is_written_down(tmp_path):
    run = script("check", "--device", "cuda", "--out", str(tmp_path))
    record = json.loads((tmp_path / "check.json").read_text())
    if record["error"] is None:
        pytest.skip("there is a GPU")
    assert run.returncode == 1
    assert "no CUDA device was found" in record["error"]
    assert "no CUDA device was found" in run.stdout


def test_results_are_found_again_newest_first(tmp_path):
    now = context(tmp_path)
    assert now.earlier("check") is None
    for folder, value in ((stages.RESULTS, 1), (stages.CARRIED, 2)):
        (tmp_path / folder).mkdir(parents=True)
        record = {"result": value, "device": "a GPU", "dry_run": False, "error": None}
        (tmp_path / folder / "check.json").write_text(json.dumps(record))
        assert now.earlier("check") == value
    now.save("check", {"figure": float("nan")})
    assert now.earlier("check") == {"figure": None}
    assert context(tmp_path, out=tmp_path / "other", dry_run=True).earlier("check") is None


def test_archives_come_back(tmp_path):
    (tmp_path / "runs" / "a").mkdir(parents=True)
    (tmp_path / "runs" / "a" / "last.ckpt").write_bytes(b"1")
    now = context(tmp_path)
    assert not now.unpack("cifar", tmp_path / "new")
    now.archive("cifar", tmp_path / "runs")
    assert now.unpack("cifar", tmp_path / "new")
    assert (tmp_path / "new" / "a" / "last.ckpt").read_bytes() == b"1"


def test_too_many_or_too_large_files_are_refused(tmp_path, monkeypatch):
    now = context(tmp_path)
    for i in range(stages.MAX_FILES):
        now.save(f"file{i}", i)
    with pytest.raises(ValueError, match=r"Cannot write `another\.json`: at most 8 files"):
        now.save("another", 1)
    monkeypatch.setattr(stages, "MAX_BYTES", 1000)
    with pytest.raises(ValueError, match=r"Cannot write `file0\.json`.*at most 1000"):
        now.save("file0", "x" * 1000)
    assert now.earlier("file0") == 0
    assert len(list(now.out.iterdir())) == stages.MAX_FILES


@pytest.mark.parametrize("text", ["", "[1]", "{}"])
def test_damaged_results_are_named(tmp_path, text):
    now = context(tmp_path)
    now.out.mkdir()
    (now.out / "check.json").write_text(text)
    with pytest.raises(ValueError, match=r"Cannot read .*check\.json"):
        now.earlier("check")
