"""The queue of stage ``cifar``: what it says, and how its runs are started, resumed and kept."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import yaml

from conftest import ROOT
from ssl_lightning.data.augment import CropFlip

TOOLS = ROOT / "tools" / "gpu"
sys.path.append(str(TOOLS))

import cifar  # noqa: E402
import data_check  # noqa: E402
import mps  # noqa: E402
import stages  # noqa: E402
import trained  # noqa: E402

CONFIGS = ROOT / "configs"
TOGETHER, ROWS = trained.read_queue(TOOLS / "queue.yaml", CONFIGS)
BY_NAME = {row.name: row for row in ROWS}
DENSE, CHANNEL = BY_NAME["resnet20_cifar10_dense"], BY_NAME["resnet20_cifar10_channel"]


def context(tmp_path: Path, **changes) -> stages.Context:
    given = {"out": tmp_path / "out", "device": "cpu", "deadline": time.monotonic() + 300}
    return stages.Context(**{**given, "dry_run": True, "root": tmp_path, **changes})


def training(tmp_path: Path, rows=(DENSE, CHANNEL), **changes) -> cifar.Training:
    return cifar.Training(context(tmp_path, **changes), rows, tmp_path / "work", tmp_path)


def write_checkpoint(folder: Path, name: str) -> Path:
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    path = folder / "checkpoints" / name
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("data", name)
    return path


def ended(status: int) -> subprocess.Popen:
    process = subprocess.Popen([sys.executable, "-c", f"raise SystemExit({status})"])
    process.wait()
    return process


def finish(training: cifar.Training, name: str) -> None:
    training.records[name] |= {"epochs": training.runs[name].epochs, "test_error": 9.0}
    write_checkpoint(training.runs[name].folder, "last.ckpt")


# The queue


def test_dense_runs_come_first_and_all_see_as_many_epochs():
    names = [row.name for row in ROWS]
    entries = {path.name for path in (ROOT / "zoo").glob("resnet20_cifar10_*")}
    assert names[0] == "resnet20_cifar10_dense"
    assert set(names[: len(entries) + 1]) == entries | {"resnet20_cifar10_half"}
    assert names.index("resnet56_cifar10_dense") > max(names.index(entry) for entry in entries)
    for row in ROWS:
        before = sum(BY_NAME[row.start].epochs) if row.start else 0
        assert before + sum(row.epochs) == (300 if row.teacher else 200)


def test_controls_differ_from_their_entry_by_what_they_are_of():
    for row in ROWS:
        entry, _, kind = row.name.rpartition("_")
        if kind in ("magnitude", "random"):
            importance = {"magnitude": "l2", "random": "random"}[kind]
            assert row.values["budget.importance"] == importance
            if entry in BY_NAME:
                same = BY_NAME[entry]
                assert (row.epochs, row.start, row.teacher) == (
                    same.epochs,
                    same.start,
                    same.teacher,
                )


@pytest.mark.parametrize("name", BY_NAME)
def test_checkpoints_of_a_row_fit_into_an_archive(name):
    from ssl_lightning import create_backbone

    row = BY_NAME[name]
    backbone = yaml.safe_load((row.config).read_text())["model"]["backbone"]
    network = create_backbone("resnet20" if backbone.startswith("zoo:") else backbone)
    weights = 4 * sum(p.numel() for p in network.parameters())
    assert len(row.seeds) * weights * 2 < 0.95 * stages.MAX_BYTES  # and momentum


BAD = {
    "no_rows": ({"together": 2}, "expected the keys `together` and `rows`"),
    "unknown_key": ({"seed": 1}, "row a: expected `name`, `seeds`.*Correct the row"),
    "no_config": ({"config": "b"}, r"row a: no file b\.yaml in configs/"),
    "stages": ({"lr": [0.1]}, r"as many `epochs` as `lr`, got \[1, 2\] and \[0\.1\]"),
    "from": ({"from": "z"}, r"`from` to be an earlier row with the seeds \[0\], got 'z'"),
    "teacher": ({"teacher": "a"}, "`teacher` to be an earlier row"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_wrong_queue_is_refused(tmp_path, name):
    change, message = BAD[name]
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "a.yaml").write_text("")
    row = {"name": "a", "seeds": [0], "epochs": [1, 2], "lr": [0.1, 0.1]}
    content = change if "together" in change else {"together": 2, "rows": [row | change]}
    (tmp_path / "queue.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match=message):
        trained.read_queue(tmp_path / "queue.yaml", tmp_path / "configs")


def test_two_rows_of_one_name_are_refused(tmp_path):
    (tmp_path / "a.yaml").write_text("")
    row = {"name": "a", "seeds": [0], "epochs": [1], "lr": [0.1]}
    (tmp_path / "queue.yaml").write_text(yaml.safe_dump({"together": 2, "rows": [row, row]}))
    with pytest.raises(ValueError, match=r"expected different names, got \['a', 'a'\]"):
        trained.read_queue(tmp_path / "queue.yaml", tmp_path)


def test_a_cpu_trains_the_first_seeds_one_on_each_core(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 3)
    together, rows = cifar.for_device("cpu", TOGETHER, ROWS)
    assert together == 3
    assert [(row.name, row.seeds) for row in rows] == [(r.name, r.seeds[:1]) for r in ROWS]
    assert cifar.for_device("cuda", TOGETHER, ROWS) == (TOGETHER, ROWS)


# Configs


@pytest.mark.parametrize("name", BY_NAME)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_configs_of_runs_are_those_of_the_rows_in_places_of_their_own(tmp_path, name, device):
    row = BY_NAME[name]
    run = trained.Run(row, row.seeds[-1], tmp_path)
    config = trained.config_of(run, ROWS, device, compiled=device == "cuda")
    original = yaml.safe_load(row.config.read_text())
    text = yaml.safe_dump(config)
    assert original["trainer"]["default_root_dir"] + "/" not in text
    assert config["seed_everything"] == row.seeds[-1]
    assert config["trainer"]["max_epochs"] == sum(row.epochs)
    assert config["data"]["init_args"] == original["data"]["init_args"] | {"on_device": True}
    assert config["model"].get("penalties") == original["model"].get("penalties")
    wanted = original.get("budget", {})
    assert config.get("budget", {}) == wanted | {
        key.removeprefix("budget."): value
        for key, value in row.values.items()
        if key.startswith("budget.")
    }
    assert config["model"]["compile"] == (device == "cuda")
    assert config["model"]["optimizer"]["init_args"]["lr"] == row.lr[0]
    if row.start:
        assert config["model"]["backbone"] == row.start.partition("_")[0]
        start = f"runs/{row.start}-{row.seeds[-1]}/checkpoints/last.ckpt"
        assert config["model"]["init_from"] == start
    if row.teacher:
        assert f"teacher: runs/{row.teacher}-{row.seeds[-1]}/checkpoints/last.ckpt" in text


@pytest.mark.parametrize(("pays", "precision"), [(True, "bf16-mixed"), (False, "32-true")])
def test_bfloat16_is_for_processors_that_are_faster_in_it(tmp_path, monkeypatch, pays, precision):
    monkeypatch.setattr(trained, "bfloat16_pays", lambda: pays)
    config = trained.config_of(trained.Run(DENSE, 0, tmp_path), ROWS, "cpu", compiled=False)
    assert config["trainer"]["precision"] == precision


@pytest.mark.parametrize("name", BY_NAME)
def test_configs_of_runs_are_built(tmp_path, name, monkeypatch):
    from lightning.pytorch import LightningDataModule

    from ssl_lightning import SSLLightningModule
    from ssl_lightning.cli.training import SSLCLI

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["cli"])
    row = BY_NAME[name]
    config = trained.config_of(trained.Run(row, 2, tmp_path), ROWS, "cpu", compiled=False)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    args = ["--config=config.yaml", "--trainer.precision=32-true"]
    cli = SSLCLI(
        SSLLightningModule, LightningDataModule, subclass_mode_data=True, run=False, args=args
    )
    assert cli.datamodule.on_device
    last = cli.trainer.max_epochs
    for callback in cli.trainer.callbacks:
        occasions = getattr(callback, "occasions", None)
        assert occasions is None or occasions.start < last


# Folders of runs


def test_the_newest_whole_checkpoint_counts(tmp_path):
    assert trained.checkpoint_of(tmp_path) == (None, None)
    last = write_checkpoint(tmp_path, "last.ckpt")
    assert trained.checkpoint_of(tmp_path) == (last, None)
    paths = {n: write_checkpoint(tmp_path, f"epoch-{n}.ckpt") for n in (9, 10)}
    assert trained.checkpoint_of(tmp_path) == (paths[10], 11)
    paths[10].write_bytes(paths[10].read_bytes()[:-30])  # ended while it wrote
    assert trained.checkpoint_of(tmp_path) == (paths[9], 10)
    paths[9].unlink()
    assert trained.checkpoint_of(tmp_path) == (last, None)
    last.write_bytes(b"")
    assert trained.checkpoint_of(tmp_path) == (None, None)


def test_the_last_errors_of_all_logs_count(tmp_path):
    for i, text in enumerate(
        ("epoch,val/error\n0,9.5\n1,8.5\n", "val/error,test/error\n7.5,\n,7\n")
    ):
        (tmp_path / f"version_{i}").mkdir()
        (tmp_path / f"version_{i}" / "metrics.csv").write_text(text)
    assert trained.figures_of(tmp_path) == {"val_error": 7.5, "test_error": 7.0}


# The order of runs


def test_runs_wait_for_what_they_start_from(tmp_path):
    now = training(tmp_path)
    assert now.next_run().name == "resnet20_cifar10_dense-0"
    finish(now, "resnet20_cifar10_dense-1")
    for name in ("resnet20_cifar10_dense-0", "resnet20_cifar10_dense-2"):
        now.active[name] = None
    assert now.next_run().name == "resnet20_cifar10_channel-1"


def test_a_lost_checkpoint_is_asked_for(tmp_path):
    now = training(tmp_path)
    for seed in (0, 1, 2):
        finish(now, f"resnet20_cifar10_dense-{seed}")
    shutil.rmtree(tmp_path / "work" / "runs" / "resnet20_cifar10_dense-0")
    assert now.next_run().name == "resnet20_cifar10_channel-1"
    error = now.records["resnet20_cifar10_channel-0"]["error"]
    assert error.endswith("of resnet20_cifar10_dense: bring resnet20_cifar10_dense.zip again")


def test_no_row_is_begun_whose_archive_would_not_come_back(tmp_path):
    now = training(tmp_path)
    for i in range(stages.MAX_FILES - 1):
        stages.Context.save(now.context, f"other{i}", 1)
    assert now.next_run() is None
    (tmp_path / "out" / "other0.json").unlink()
    assert now.next_run().row is DENSE


def test_each_mode_is_tried_and_then_the_fastest_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(mps, "start", lambda folder: None)
    now = training(tmp_path, device="cuda")
    records, runs = now.records, now.runs
    dense, channel = ("resnet20_cifar10_dense", "resnet20_cifar10_channel")
    another = runs[f"{channel}-2"]
    assert now.mode(another) == "graphs"
    records[f"{dense}-0"] |= {"mode": "graphs", "images_per_s": 900.0}
    assert now.mode(another) == "compiled"
    now.active[f"{dense}-1"] = cifar.Process(ended(0), "compiled", tmp_path)
    assert now.mode(another) == "compiled"  # the safer of two
    records[f"{dense}-1"] |= {"mode": "compiled", "images_per_s": 800.0}
    assert now.mode(another) == "graphs"
    records[f"{channel}-0"] |= {"mode": "graphs", "images_per_s": 1000.0}
    records[f"{channel}-1"] |= {"mode": "compiled", "images_per_s": 2000.0}
    assert now.mode(another) == "compiled"  # by its own row
    assert now.mode(runs[f"{dense}-2"]) == "graphs"
    now.barred.add("graphs")
    assert now.mode(runs[f"{dense}-2"]) == "compiled"
    now.barred.add("compiled")
    assert now.mode(another) == "plain"
    assert now.environment("graphs")["TORCHINDUCTOR_CUDAGRAPHS"] == "1"
    assert "TORCHINDUCTOR_CUDAGRAPHS" not in now.environment("compiled")


def test_a_cpu_compiles_where_it_can(tmp_path):
    now = training(tmp_path, dry_run=False)
    run = now.runs["resnet20_cifar10_dense-0"]
    assert now.mode(run) == "compiled"
    now.barred.add("compiled")
    assert now.mode(run) == "plain"
    assert training(tmp_path).mode(run) == "plain"  # a dry run


@pytest.mark.parametrize(("mode", "again"), [("graphs", True), ("plain", False)])
def test_a_run_that_fails_is_tried_otherwise_or_put_down(tmp_path, mode, again):
    now, name = training(tmp_path), "resnet20_cifar10_dense-0"
    (tmp_path / "log").write_text("one\nout of memory\n")
    now.active[name] = cifar.Process(ended(1), mode, tmp_path / "log")
    now.look()
    assert not now.active
    assert (now.records[name]["error"] is None) == again
    assert (mode in now.barred) == again
    assert (now.next_run().name == name) == again
    if not again:
        assert now.records[name]["error"] == "plain: status 1: one out of memory"


def test_a_row_that_is_too_large_does_not_keep_others_from_being_kept(tmp_path, monkeypatch):
    now = training(tmp_path)
    for name in ("resnet20_cifar10_dense-0", "resnet20_cifar10_channel-0"):
        write_checkpoint(now.runs[name].folder, "epoch-3.ckpt")
        now.touched.add(now.runs[name].row.name)
    big = now.runs["resnet20_cifar10_channel-0"].folder / "config.yaml"
    big.write_bytes(random.Random(0).randbytes(9000))
    monkeypatch.setattr(stages, "MAX_BYTES", 3000)
    now.store()
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "cifar.json",
        "resnet20_cifar10_dense.zip",
    }
    assert "Cannot write `resnet20_cifar10_channel.zip`" in now.lost[0]


def test_a_checkpoint_that_is_replaced_while_it_is_copied_is_copied_again(tmp_path, monkeypatch):
    now = training(tmp_path)
    run = now.runs["resnet20_cifar10_dense-0"]
    old = write_checkpoint(run.folder, "epoch-3.ckpt")
    original, copied = shutil.copyfile, []

    def copyfile(source, target):
        copied.append(Path(source).name)
        if len(copied) == 1:  # half of it was there
            Path(target).write_bytes(old.read_bytes()[:-30])
        elif len(copied) == 2:
            write_checkpoint(run.folder, "epoch-4.ckpt")
            old.unlink()
            original(source, target)
        else:
            original(source, target)

    monkeypatch.setattr(shutil, "copyfile", copyfile)
    now.copy(run, tmp_path / "kept")
    assert copied == ["epoch-3.ckpt", "epoch-3.ckpt", "epoch-4.ckpt"]
    assert b"epoch-4.ckpt" in (tmp_path / "kept" / "checkpoints" / "last.ckpt").read_bytes()


# Batches


def test_batches_on_the_device_are_compared_with_those_of_the_cpu(tmp_path, monkeypatch):
    cifar.make_images(tmp_path)
    assert data_check.check_batches("cpu", tmp_path, 16, 16) == cifar.DRY_IMAGES + 16
    monkeypatch.setattr(CropFlip, "on_device", lambda self, images, draws: images.clone())
    with pytest.raises(AssertionError, match="train batch 0 on cpu is not that of the CPU"):
        data_check.check_batches("cpu", tmp_path, 16, 16)


# Resuming


def test_a_later_call_goes_on_from_the_archive(tmp_path):
    """One epoch of two in the first call, the other in the second, with a working folder anew."""
    cifar.make_images(tmp_path)
    started = []
    for call, epochs in enumerate(((1,), (1, 1))):
        rows = (cifar.dry(DENSE, epochs),)
        cifar.train(context(tmp_path), rows, 1, tmp_path / f"work{call}", tmp_path)
        record = context(tmp_path).earlier("cifar")["runs"][0]
        assert record["epochs"] == record["of"] == len(epochs)
        folder = tmp_path / f"work{call}" / "runs" / record["name"]
        started.append(sorted(p.name for p in folder.glob("version_*")))
        checkpoints = {path.name for path in (folder / "checkpoints").iterdir()}
        assert checkpoints == {"last.ckpt", f"epoch-{call}.ckpt"}
        assert record["test_error"] is not None
    log = (folder / started[1][-2] / "metrics.csv").read_text()
    assert "\n1," in log or ",1," in log
    assert (folder / "config.yaml").read_text().count("ckpt_path")
    assert len(started[1]) == len(started[0]) + 2  # logs of both calls, training and test apart
    cifar.train(context(tmp_path), rows, 1, tmp_path / "work2", tmp_path)  # nothing is left to do
    assert not (tmp_path / "work2" / f"{record['name']}.yaml").exists()


def test_runs_are_ended_when_the_minutes_are_over(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar, "STOP_MINUTES", 0)
    sleeping = tmp_path / "fit_and_test.py"
    sleeping.write_text("import time; time.sleep(600)")
    monkeypatch.setattr(cifar, "HERE", tmp_path)
    processes = []
    original = subprocess.Popen

    def popen(*arguments, **settings):
        processes.append(original(*arguments, **settings))
        return processes[-1]

    monkeypatch.setattr(cifar.subprocess, "Popen", popen)
    now = context(tmp_path, deadline=time.monotonic() + 2)
    with pytest.raises(stages.NoTimeError, match="no time: no run completed an epoch"):
        cifar.train(now, (DENSE,), 2, tmp_path / "work", tmp_path)
    assert len(processes) == 2
    assert all(process.poll() is not None for process in processes)
    assert [record["epochs"] for record in now.earlier("cifar")["runs"]] == [0, 0, 0]


def test_the_service_for_several_processes_is_left_out_where_it_is_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert mps.start(tmp_path / "work") is None
    (tmp_path / mps.CONTROL).write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / mps.CONTROL).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    assert mps.start(tmp_path / "work") is None
