"""Publishing beside a user's own files, of runs and folders that others made or left behind."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from ssl_lightning import publishing, zoo
from ssl_lightning.cli import main
from ssl_lightning.export import export_int8
from ssl_lightning.files import appearing, mark, replacing, replacing_together, restore
from ssl_lightning.publishing.agreeing import check_log
from ssl_lightning.publishing.controls import measure_control
from ssl_lightning.publishing.pictures import epoch_of
from ssl_lightning.publishing.rewriting import write_page
from ssl_lightning.publishing.settings import in_json
from ssl_lightning.report.training_log import read_curves, read_log
from ssl_lightning.zoo.listing import write_table
from test_cli import short_run
from zoo_runs import LOG, NAME, OTHER, edit_config, train

pytestmark = pytest.mark.filterwarnings("ignore:The number of training batches")


def write_log(folder, text):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.csv").write_text(text)


# --- logs -----


TRAINED = "epoch,step,train/loss,val/error\n0,7,,41\n0,7,1,\n1,15,,31\n1,15,1,\n2,23,,21\n2,23,1,\n"


@pytest.mark.parametrize("column", ["val/error", "test/error"])
def test_validating_and_testing_change_no_curves(tmp_path, column):
    write_log(tmp_path / "version_0", TRAINED)
    before = read_log(tmp_path, 3), read_curves(tmp_path)
    write_log(tmp_path / "version_1", f"epoch,step,{column}\n0,0,99\n")
    assert (read_log(tmp_path, 3), read_curves(tmp_path)) == before
    assert before[1]["val/error"] == [41, 31, 21]


def test_a_second_run_has_curves_of_its_own(tmp_path):
    write_log(tmp_path / "version_0", TRAINED)
    write_log(tmp_path / "version_1", "epoch,step,train/loss,val/error\n0,7,1,20\n1,15,1,19\n")
    assert read_curves(tmp_path)["val/error"] == [20, 19]
    write_log(tmp_path / "version_2", "epoch,step,train/loss,val/error\n1,15,1,18\n2,23,1,17\n")
    assert read_curves(tmp_path)["val/error"] == [20, 18, 17]  # resumed


def test_logs_of_other_runs_are_no_reason_to_refuse_this_one(tmp_path):
    write_log(tmp_path / "version_0", TRAINED.replace("2,23", "2,9999"))  # replaced by the next
    write_log(tmp_path / "version_1", "epoch,step,train/loss,val/error\n0,7,1,20\n1,15,1,19\n")
    write_log(tmp_path / "finetune", TRAINED)
    (tmp_path / "finetune" / "config.yaml").write_text("")
    check_log(tmp_path, {"global_step": 16})
    with pytest.raises(ValueError, match="its parts are of different runs"):
        check_log(tmp_path, {"global_step": 8})


def test_runs_in_folders_below_are_others(tmp_path):
    (tmp_path / "config.yaml").write_text("")
    write_log(tmp_path / "version_0", TRAINED)
    write_log(tmp_path / "finetune" / "version_1", TRAINED.replace("41", "5"))
    (tmp_path / "finetune" / "config.yaml").write_text("")
    assert read_curves(tmp_path)["val/error"] == [41, 31, 21]
    assert read_curves(tmp_path / "finetune")["val/error"] == [5, 31, 21]


# --- a folder that is not, or not only, a zoo -----


def test_a_page_of_the_user_is_not_replaced(copied, tmp_path, run):
    root = tmp_path / "project"
    shutil.copytree(copied, root)
    (root / "README.md").write_text("# My project\n")
    (root / "errors_mine.png").write_bytes(b"mine")
    for action in (
        lambda: publishing.publish(run, "new", root),
        lambda: write_table(root),
        lambda: write_page(NAME, root),
        lambda: zoo.pull("user/name", root, hub=object()),
    ):
        with pytest.raises(FileExistsError, match="is not the page of a zoo"):
            action()
    assert (root / "README.md").read_text() == "# My project\n"
    (root / "README.md").unlink()
    write_table(root)
    write_table(root)
    assert (root / "errors_mine.png").read_bytes() == b"mine"


def test_files_beside_an_entry_remain(copied):
    (copied / NAME / "model.onnx").write_bytes(b"exported")
    (copied / NAME / "notes").mkdir()
    (copied / NAME / "notes" / "a.md").write_text("mine")
    write_page(NAME, copied)
    assert (copied / NAME / "model.onnx").read_bytes() == b"exported"
    assert (copied / NAME / "notes" / "a.md").read_text() == "mine"
    assert "model.onnx" not in zoo.card(NAME, copied).files
    assert all(check.ok for check in publishing.verify(NAME, copied, latency=False))


def test_an_unreadable_entry_is_noticed_before_anything_is_measured(copied, run, monkeypatch):
    shutil.copytree(copied / NAME, copied / "backup")

    def never(*_):
        raise AssertionError("measured")

    monkeypatch.setattr("ssl_lightning.publishing.writing.median_run", never)
    with pytest.raises(ValueError, match="is the card of"):
        publishing.publish(run, "new", copied)
    shutil.rmtree(copied / "backup")
    with pytest.raises(ValueError, match="kind of control"):
        publishing.publish(run, "new", copied, controls={"magnitud": [run]})
    with pytest.raises(ValueError, match=r"card\.paper\.row: expected a text"):
        publishing.publish(run, "new", copied, paper={"row": 3})
    assert not (copied / "new").exists()


# --- runs of other settings -----


def test_a_schedule_without_an_end_is_published(spoilt, run, tmp_path):
    edit_config(spoilt, str(run), "runs/x")
    config = yaml.safe_load((spoilt / "config.yaml").read_text())
    window = {"kind": "window", "start": 0, "end": float("inf")}
    config["model"]["penalties"][0]["schedule"] = window
    (spoilt / "config.yaml").write_text(yaml.safe_dump(config))
    path = spoilt / "checkpoints" / "last.ckpt"
    content = torch.load(path, weights_only=True)
    content["hyper_parameters"]["penalties"][0]["schedule"] = window
    torch.save(content, path)
    publishing.publish(spoilt, "endless", tmp_path / "zoo")
    card = zoo.card("endless", tmp_path / "zoo")
    assert card.penalties[0]["schedule"]["end"] == ".inf"
    assert all(c.ok for c in publishing.verify("endless", tmp_path / "zoo", latency=False))
    assert in_json({"a": [float("nan"), -float("inf"), 1.5]}) == {"a": [".nan", "-.inf", 1.5]}


@pytest.mark.parametrize("precision", ["64-true", "bf16-true"])
def test_runs_in_other_types_are_published_in_float32(tmp_path, precision):
    from zoo_runs import LOG

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Regularizer.attach: `conv1.weight` is bfloat16")
        made = train(short_run(tmp_path, f"--trainer.precision={precision}", *LOG), tmp_path)
    publishing.publish(made, "typed", tmp_path / "zoo")
    assert all(c.ok for c in publishing.verify("typed", tmp_path / "zoo", latency=False))
    kinds = {p.dtype for p in zoo.load("typed", root=tmp_path / "zoo").parameters()}
    assert kinds == {torch.float32}


def test_a_dense_control_is_that_network_trained_as_long(run, tmp_path):
    root = tmp_path / "zoo"
    with pytest.raises(ValueError, match="2 epochs, got lenet, 2 epochs, compacted"):
        publishing.publish(run, "entry", root, controls={"dense": [run]})
    kept = {"dirpath": str(tmp_path / "run/checkpoints"), "save_last": True}
    callbacks = [
        {"class_path": "SaveCompact"},
        {"class_path": "ModelCheckpoint", "init_args": kept},
    ]
    settings = ("--model.penalties", "[]", "--trainer.callbacks", json.dumps(callbacks))
    dense = train(short_run(tmp_path, *settings, *LOG), tmp_path)
    publishing.publish(run, "entry", root, controls={"dense": [dense]})
    card = zoo.card("entry", root)
    for change in ({"epochs": card.epochs + 1}, {"backbone": "mlp"}):
        of = {key: getattr(card, key) for key in ("name", "backbone", "epochs")}
        config = yaml.safe_load((run / "config.yaml").read_text())
        with pytest.raises(ValueError, match="as the dense network trained as long: expected"):
            measure_control("dense", [dense], {**of, **change}, config)
        measure_control("magnitude", [run], {**of, **change}, config)


def test_batches_of_several_processes_are_those_of_one_run(spoilt, run, tmp_path):
    """Each of two processes has half of the batches."""
    edit_config(spoilt, str(run), "runs/x")
    path = spoilt / "checkpoints" / "last.ckpt"
    content = torch.load(path, weights_only=True)
    assert content["ssl_lightning"]["num_processes"] == 1
    progress = content["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]
    config = yaml.safe_load((spoilt / "config.yaml").read_text())
    limit = config["trainer"].pop("limit_train_batches")
    config["trainer"]["limit_train_batches"] = None
    (spoilt / "config.yaml").write_text(yaml.safe_dump(config))
    from ssl_lightning.publishing.runs import open_data, read_run

    all_batches = len(open_data(config["data"]).train_dataloader())
    assert limit < all_batches
    progress["completed"] = all_batches // 2
    content["ssl_lightning"]["num_processes"] = 2
    torch.save(content, path)
    assert read_run(spoilt).epochs == 2
    content["ssl_lightning"]["num_processes"] = 1
    torch.save(content, path)
    with pytest.raises(ValueError, match="`batches per epoch`"):
        read_run(spoilt)


# --- what killed processes leave -----


def ended() -> int:
    """The number of a process that is no more."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.parametrize("writer", [replacing_together, appearing])
def test_leftovers_of_killed_processes_are_removed(tmp_path, writer):
    left, busy = (tmp_path / f"{mark(n)}-0-for-a" for n in (ended(), os.getppid()))
    for folder in (left, busy):
        folder.mkdir()
        (folder / "half").write_text("half")
    with writer(tmp_path / "a") as place, writer(tmp_path / "a2") as other:
        for each in (place, other):
            (each / "whole" if writer is appearing else each).write_text("whole")
    assert not left.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([busy.name, "a", "a2"])


def test_threads_that_write_one_target_have_folders_of_their_own(tmp_path):
    target = tmp_path / "a"
    with replacing_together(target) as one:
        one.write_text("one")
        with replacing_together(target) as two:
            two.write_text("two")
        assert target.read_text() == "two"
    assert target.read_text() == "one"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_an_entry_that_was_moved_away_comes_back(copied):
    """A process is killed between two renames."""
    away = copied / f"{mark(ended())}-0-for-{NAME}.old"
    (copied / NAME).rename(away)
    (copied / OTHER).rename(copied / f"{mark(os.getppid())}-0-for-{OTHER}.old")  # is at work
    with replacing(copied / "page") as temporary:  # sweeps what killed processes left
        temporary.touch()
    restore(copied)
    assert zoo.list_models(copied) == [NAME]
    (copied / NAME).rename(away)
    write_page(NAME, copied)
    assert zoo.list_models(copied) == [NAME]


def test_temporary_files_of_other_spaces_of_processes_are_not_ours(tmp_path):
    """Containers of one host name number their processes each from 1."""
    own, other = mark(999_999), mark(999_999).replace("-999999", "1-999999")
    assert own != other
    for name in (own, other):
        (tmp_path / f"{name}-123.ckpt").write_text("half")
    with replacing(tmp_path / "a") as temporary:
        temporary.write_text("whole")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([f"{other}-123.ckpt", "a"])


# --- names and types -----


@pytest.mark.parametrize("name", ["a?b", "a%20b"])
def test_a_sweep_refuses_folders_that_a_url_reads_otherwise(tmp_path, capsys, name):
    pytest.importorskip("optuna")
    folder = tmp_path / name
    assert main(["sweep", "--output", str(folder), "--trials", "0"]) != 0
    assert "expected a folder without" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "epoch"),
    [
        ("epoch-7", 7), ("epoch-7-v1", 7), ("epoch-7-step-160", 7), ("epoch=7-step=160", 7),
        ("epoch-7-val_error=1.20", 7), ("last", -1), ("best-3", -1),
    ],
)  # fmt: skip
def test_epochs_are_read_off_names(name, epoch):
    assert epoch_of(Path(f"{name}.ckpt")) == epoch


def test_calibration_inputs_have_the_type_of_the_example(tmp_path):
    pytest.importorskip("openvino")
    net, x = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()), torch.rand(2, 1, 6, 6)
    for given in (x.double(), (255 * x).to(torch.uint8)):
        with pytest.raises(ValueError, match="calibration inputs of the example's types"):
            export_int8(net, x, tmp_path / "a.xml", calibration=[given], evaluate=lambda _: 0.0)
    assert not list(tmp_path.iterdir())
