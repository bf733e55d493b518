"""The script for machines with a GPU: its stages on the CPU, with tiny sizes."""

from __future__ import annotations

import json
import sys
import time
import zipfile

import pytest

from conftest import ROOT

TOOLS = ROOT / "tools" / "gpu"
sys.path.append(str(TOOLS))

import run as gpu_script  # noqa: E402
import stages  # noqa: E402


def context(tmp_path, **changes) -> stages.Context:
    given = {"out": tmp_path / "out", "device": "cpu", "deadline": time.monotonic() + 60}
    return stages.Context(**{**given, "dry_run": False, "root": tmp_path, **changes})


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import socket; socket.create_connection(('127.0.0.1', 9))", "no network"),
        ("import pytest", "No module named 'pytest'"),
    ],
)
def test_the_bare_machine_of_these_tests_has_neither_network_nor_further_modules(
    script, tmp_path, code, message
):
    (tmp_path / "file.py").write_text(code)
    run = script(file=str(tmp_path / "file.py"))
    assert run.returncode == 1
    assert message in run.stderr


def test_every_check_holds_in_a_dry_run(script, tmp_path):
    run = script("check", "--dry-run", "--minutes", "8", "--out", str(tmp_path))
    assert run.returncode == 0, run.stderr
    record = json.loads((tmp_path / "check.json").read_text())
    assert record["error"] is None
    assert record["dry_run"]
    assert [row for row in record["result"] if not row["ok"]] == []
    assert len(record["result"]) > 100
    assert f"{len(record['result'])} of {len(record['result'])} hold" in run.stdout


def test_the_queue_is_trained_in_a_dry_run(script, tmp_path):
    run = script("cifar", "--dry-run", "--minutes", "8", "--out", str(tmp_path))
    assert run.returncode == 0, run.stdout + run.stderr
    assert "2 of 2 runs done, 4 epochs" in run.stdout
    record = json.loads((tmp_path / "cifar.json").read_text())
    for row in record["result"]["runs"]:
        assert row["epochs"] == row["of"] == 2
        assert 0 < row["test_error"] <= 100
        assert row["images_per_s"] > 0
    with zipfile.ZipFile(tmp_path / "resnet20_cifar10_channel.zip") as archive:
        names = archive.namelist()
    assert "resnet20_cifar10_channel-0/checkpoints/last.ckpt" in names
    assert "resnet20_cifar10_channel-0/config.yaml" in names


def test_a_stage_that_fails_is_written_down(script, tmp_path):
    run = script("check", "--device", "cuda", "--out", str(tmp_path))
    record = json.loads((tmp_path / "check.json").read_text())
    if record["error"] is None:
        pytest.skip("there is a GPU")
    assert run.returncode == 1
    assert "no CUDA device was found" in record["error"]
    assert "no CUDA device was found" in run.stdout


@pytest.mark.parametrize("name", ["check", "table4", "cifar"])
def test_a_stage_without_time_does_not_look_like_success(script, tmp_path, name):
    if name == "table4":
        pytest.importorskip("triton")
    run = script(name, "--dry-run", "--minutes", "1e-9", "--out", str(tmp_path))
    record = json.loads((tmp_path / f"{name}.json").read_text())
    assert record["error"].startswith("no time: no")
    assert run.returncode == 1
    assert "no time" in run.stdout
    assert " ran " not in run.stdout
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize(
    ("outcomes", "status"),
    [
        ((None, None), 0),
        ((None, "no time: no tile was tried."), 0),
        (("no time: no check.", "no time: no tile was tried."), 1),
        ((None, "RuntimeError: lost"), 1),
        (("no time: no check.", "RuntimeError: lost"), 1),
    ],
)
def test_the_status_is_1_if_a_stage_failed_or_none_had_time(tmp_path, capsys, outcomes, status):
    names = ["check", "tune"]
    for name, error in zip(names, outcomes, strict=True):
        context(tmp_path, out=tmp_path).save(name, None, error)
    assert gpu_script.summary(names, tmp_path) == status
    shown = capsys.readouterr().out
    assert all((error or "ran") in shown for error in outcomes)


def test_a_check_without_time_keeps_earlier_results(tmp_path):
    now = context(tmp_path, dry_run=True, deadline=0.0)
    now.save("check", [{"name": "kernel a", "ok": True, "figure": 0.0, "error": None}])
    with pytest.raises(stages.NoTimeError, match=r"no time: none of \d+ checks was begun"):
        gpu_script.load("check").run(now)
    assert [row["ok"] for row in now.earlier("check")] == [True]


@pytest.mark.parametrize("below", ["", "folder"])
def test_a_file_in_place_of_the_folder_is_refused_before_any_stage(
    tmp_path, monkeypatch, capsys, below
):
    (tmp_path / "file").write_text("kept")
    monkeypatch.setattr(gpu_script, "run_apart", lambda *_: pytest.fail("a stage was run"))
    assert gpu_script.main(["check", "--dry-run", "--out", str(tmp_path / "file" / below)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"--out: expected a folder, got `{tmp_path / 'file' / below}` (")
    assert (tmp_path / "file").read_text() == "kept"


def test_help_lists_each_stage_with_what_it_does(capsys):
    with pytest.raises(SystemExit):
        gpu_script.main(["--help"])
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    for name, stage in gpu_script.STAGES.items():
        assert [name, stage.what] in lines


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
