"""What users get wrong: the error says what to do next, in one line, with a command if any."""

from __future__ import annotations

import logging
import os
import shlex
from pathlib import Path

import pytest
import torch
import yaml

from conftest import ROOT
from ssl_lightning import create_backbone, save_compact
from ssl_lightning.cli import main
from ssl_lightning.compaction import plan_and_compact
from ssl_lightning.suggest import there_are

RESNET = "fit --model.backbone resnet20 --trainer.max_epochs 1"
FIT = "fit --data MNISTDataModule --trainer.max_epochs 1"
CHECKPOINT = "runs/default/checkpoints/last.ckpt"


def store_checkpoint(path: Path, dense: bool = True) -> None:
    """What `fit` stores of LeNet: nothing of it is zero, or a filter."""
    torch.manual_seed(0)
    net = create_backbone("lenet")
    if not dense:
        with torch.no_grad():
            net.conv1.weight[:3] = 0
            net.conv1.bias[:3] = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {f"backbone.{name}": tensor for name, tensor in net.state_dict().items()}
    settings = {"backbone": "lenet", "backbone_args": {}}
    torch.save({"state_dict": state, "hyper_parameters": settings, "epoch": 1}, path)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A working folder with a dense run, its compact folder and an empty run, and no data."""
    monkeypatch.chdir(tmp_path)
    # Lightning's log handler keeps the stream of the test that imported it, closed by now
    monkeypatch.setattr(logging, "raiseExceptions", False)
    monkeypatch.setenv("SSL_DATA_DIR", str(tmp_path / "nothing"))
    store_checkpoint(Path(CHECKPOINT))
    data = {"class_path": "ssl_lightning.data.MNISTDataModule"}
    Path("runs/default/config.yaml").write_text(yaml.safe_dump({"data": data}))
    net = create_backbone("lenet")
    plan, small = plan_and_compact(net, torch.zeros(1, 1, 28, 28))
    save_compact("runs/default/compact", small, [plan], "lenet", {})
    Path("runs/empty").mkdir()
    return tmp_path


def failing(line: str, capsys) -> str:
    try:
        status = main(shlex.split(line))
    except SystemExit as stop:
        status = stop.code
    text = capsys.readouterr().err
    assert status, f"{line} did not fail"
    assert "Traceback" not in text
    return text[text.index("error: ") :].strip()


MISTAKES = [
    ("fitt", "Did you mean fit"),
    ("zoo lst", "Did you mean list"),
    ("zoo verify nothing", "Known: alexnet_imagenette_dense, "),
    ("zoo show lenet_mnist_dens", "Did you mean lenet_mnist_dense"),
    ("zoo verify", "Give one of them."),
    ("benchmark paper-table5", "Did you mean paper-table4"),
    ("evaluate calibratoin zoo:lenet_mnist_dense", "Did you mean calibration"),
    ("export lenett", "Did you mean lenet"),
    ("export zoo:lenet_mnist_dens", "Did you mean lenet_mnist_dense"),
    ("export zoo:lenet_mnist_dense --format onxx", "Did you mean onnx"),
    ("prune lenet_mnist_dense --macs 0.5", "Give zoo:lenet_mnist_dense"),
    ("prune zoo:lenet_mnist_dense", "Give --macs 0.5, say."),
    # a checkpoint that is not there, or something else in its place
    ("compact runs/default/checkpoints/lst.ckpt", f"There are: {CHECKPOINT}."),
    ("compact nothing.ckpt", f"There are: {CHECKPOINT}."),
    ("export runs/defualt/checkpoints/last.ckpt", f"There are: {CHECKPOINT}."),
    (f"{FIT} --ckpt_path nothing.ckpt", f"There are: {CHECKPOINT}."),
    ("compact runs/empty", f"There are: {CHECKPOINT}."),
    ("compact runs/default", f"Give {CHECKPOINT}."),
    ("benchmark runs/default/compact", "`ssl-lightning export runs/default/compact`"),
    ("benchmark zoo:lenet_mnist_dense", "`ssl-lightning export zoo:lenet_mnist_dense`"),
    # reports
    (f"report {CHECKPOINT}", f"`ssl-lightning benchmark {CHECKPOINT}` measures it first."),
    ("report runs/default", f"`ssl-lightning benchmark {CHECKPOINT}` writes one."),
    ("report runs/empty", "`ssl-lightning benchmark CHECKPOINT` writes one."),
    # data that is missing
    (f"{RESNET} --data CIFAR10DataModule", "`--data.source download`"),
    (f"{FIT} --data.source local", "source='bundled'"),
    ("sensitivity zoo:lenet_mnist_dense", "`--data mnist`"),
    ("evaluate calibration zoo:lenet_mnist_dense --data mnits", "Did you mean mnist"),
    ("evaluate transfer zoo:lenet_mnist_dense --data mnist --to cifar", "Did you mean cifar10"),
    ("evaluate transfer zoo:lenet_mnist_dense --data mnist --to cifar10", "`--data.source downl"),
    ("sensitivity lenet", "`--data mnist`"),
    # configs and options
    ("fit", "or --data MNISTDataModule"),
    ("fit --config nothing.yaml", "There are: runs/default/config.yaml."),
    ("fit --config runs/default", "There are: runs/default/config.yaml."),
    ("fit --config runs/default/confg.yaml", "Did you mean config?"),
    (f"test --ckpt_path {CHECKPOINT}", "`--config FILE.yaml`"),
    ("sparsify --data MNISTDataModule", "such as --budget.macs 0.5"),
    ("sparsify --data MNISTDataModule --budget.macs 0.5 --engin eager", "Did you mean engine"),
    ("sparsify --data MNISTDataModule --budget.macs 0.5", "Give --epochs 20, say."),
    ("sparsify --data MNISTDataModule --budget.macs 0.5 --epochs 0", "got 0. Give --epochs 20"),
    ("compare --data MNISTDataModule --budget.macs 0.5 --epochs 0", "got 0. Give --epochs 20"),
    ("prune lenet --mac 0.5", "Did you mean macs"),
    ("prune lenet --macs 0.5 --output runs/default", "Give another folder."),
    ("export lenet --output runs/default/config.yaml/x.onnx", "file exists. Give another path."),
    ("fit --config nothing", "There are: runs/default/config.yaml."),
    (f"{FIT} --model.backbone resnet20", "Give another --model.backbone"),
    ("zoo show lenet_mnist_filter", "Did you mean lenet_mnist_filter_channel"),
    ("report runs", f"There are: {CHECKPOINT}."),
    ("compare", "`ssl-lightning compare CONFIG --budget.macs 0.5`"),
    ("compare nothing.yaml", "There are: runs/default/config.yaml."),
    ("compare --data MNISTDataModule --budget.macs 0.5 --ways dens --epochs 3", "Did you mean den"),
    ("sweep --output x", "Give both."),
    ("zoo publish runs/nothing --name mine", "a run folder is what `fit` wrote"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "next_step"), MISTAKES)
def test_an_error_says_what_to_do_next(run, line, next_step, capsys):
    before = sorted(run.rglob("*"))
    text = failing(line, capsys)
    assert next_step in text
    assert len(text.splitlines()) == 1
    assert sorted(run.rglob("*")) == before


EXTRAS = [
    ("sweep --config c.yaml --space s.yaml --output x", "optuna", "sweep"),
    ("export zoo:lenet_mnist_dense", "onnx", "engines"),
    ("export zoo:lenet_mnist_dense --format openvino", "openvino", "engines"),
    ("export zoo:lenet_mnist_dense --int8 --data mnist", "nncf", "int8"),
    ("benchmark int8 zoo:lenet_mnist_dense --data mnist", "nncf", "int8"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "package", "extra"), EXTRAS)
def test_what_is_not_installed_can_be_installed(run, line, package, extra, capsys, monkeypatch):
    from ssl_lightning import suggest

    find = suggest.find_spec
    monkeypatch.setattr(suggest, "find_spec", lambda n: None if n == package else find(n))
    assert f"`pip install 'ssl-lightning[{extra}]'`" in failing(line, capsys)


def test_what_is_there_is_said_newest_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate("abcd"):
        path = Path("runs", name, "x.ckpt")
        path.parent.mkdir(parents=True)
        path.touch()
        os.utime(path, (number, number))
    assert there_are(Path("y.ckpt"), ".ckpt") == (
        "There are: runs/d/x.ckpt, runs/c/x.ckpt, runs/b/x.ckpt and more."
    )
    assert there_are(Path("runs/a/y.ckpt"), ".ckpt") == "There are: runs/a/x.ckpt."
    assert there_are(Path("y.ckpt"), ".yaml") == ""


def test_compact_says_why_nothing_was_removed(run, capsys):
    assert main(["compact", CHECKPOINT]) == 0
    out = capsys.readouterr().out
    assert "Nothing was removed: no filter, channel or neuron is zero. Train with a budget" in out
    assert f"ssl-lightning prune {CHECKPOINT} --macs 0.5" in out
    assert "Next:" not in out


NEXT = [
    (f"compact {CHECKPOINT}", [f"benchmark {CHECKPOINT}", "export runs/default/compact"]),
    (f"prune {CHECKPOINT} --macs 0.5", ["export runs/default/pruned"]),
    (f"benchmark {CHECKPOINT} --repeats 2 --per_layer false", ["report runs/default/report.json"]),
    (f"sensitivity {CHECKPOINT} --images 50 --shares '[0.5]'",
     [f"prune {CHECKPOINT} --macs 0.5 --importance runs/default/sensitivity/sensitivity.json"]),
]  # fmt: skip


@pytest.mark.parametrize(("line", "commands"), NEXT)
def test_a_result_suggests_the_next_command_which_works(run, line, commands, capsys):
    store_checkpoint(Path(CHECKPOINT), dense=False)
    assert main(shlex.split(line)) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "Next: " + ", or ".join(f"ssl-lightning {command}" for command in commands)
    short = ["--repeats=2", "--per_layer=false"] if commands[0].startswith("benchmark") else []
    assert main([*commands[0].split(), *short]) == 0


@pytest.mark.filterwarnings("ignore:The number of training batches")
@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_fit_with_its_summary_in_other_precisions(run, precision):
    """The summary would run the network on an example input of float32, if there were one."""
    line = "fit --data MNISTDataModule --trainer.logger=false --trainer.max_epochs=1"
    line += f" --trainer.precision={precision} --trainer.default_root_dir={run / 'other'}"
    short = " --trainer.limit_train_batches=1 --trainer.limit_val_batches=1"
    assert main(shlex.split(line + short)) == 0


@pytest.mark.filterwarnings("ignore:The number of training batches")
@pytest.mark.filterwarnings("ignore:Checkpoint directory")
def test_a_second_run_says_that_it_replaces_the_first_one_s_checkpoint(run, capsys):
    line = "fit --data MNISTDataModule --trainer.logger=false --trainer.max_epochs=1"
    line += " --trainer.limit_train_batches=1 --trainer.limit_val_batches=1"
    said = f"note: {CHECKPOINT} is of an earlier run and will be replaced."
    Path(CHECKPOINT).unlink(missing_ok=True)
    for more, expected in (
        ("", False),
        ("", True),
        (f"--trainer.max_epochs=2 --ckpt_path={CHECKPOINT}", False),
        ("--trainer.enable_checkpointing=false", False),
    ):
        assert main(shlex.split(f"{line} {more}")) == 0
        assert (said in capsys.readouterr().out) == expected


@pytest.mark.filterwarnings("ignore:The number of training batches")
@pytest.mark.parametrize(
    ("more", "command"),
    [
        ("--model.penalties '[{kind: filter, strength: 1e-3}]'", f"compact {CHECKPOINT}"),
        ("", f"prune {CHECKPOINT} --macs 0.5"),
        (
            "--budget.macs 0.5 --trainer.callbacks '[{class_path: SaveCompact}]'",
            f"benchmark {CHECKPOINT}",
        ),
    ],
)
def test_fit_suggests_what_to_do_with_its_checkpoint(run, more, command, capsys):
    short = "--trainer.max_epochs=1 --trainer.limit_train_batches=1 --trainer.limit_val_batches=1"
    line = f"fit --data MNISTDataModule --trainer.logger=false {short} {more}"
    assert main(shlex.split(line)) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"Next: ssl-lightning {command}"
    short = ["--repeats=2", "--per_layer=false"] if command.startswith("benchmark") else []
    assert main([*command.split(), *short]) == 0


def test_configs_of_the_repository_are_named(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert "configs/" in failing("fit --config configs/quickstrt.yaml", capsys)


def test_fresh_weights_are_not_tested_silently(run, capsys):
    short = "--trainer.limit_test_batches=1 --trainer.logger=false"
    assert main(["test", "--data=MNISTDataModule", *short.split()]) == 0
    assert "--ckpt_path FILE" in capsys.readouterr().out
    trained = "--model.backbone=zoo:lenet_mnist_dense"
    assert main(["test", "--data=MNISTDataModule", trained, *short.split()]) == 0
    assert "--ckpt_path FILE" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ("--ckpt_path none.ckpt", "No checkpoint at none.ckpt"),
        ("--model.init_from none.ckpt", "No checkpoint at none.ckpt"),
        ("--model.init_from zoo:lenet", "Unknown zoo entry 'lenet'"),
    ],
)
def test_where_a_run_begins_is_checked_before_its_summary(run, options, what, capfd):
    assert main(shlex.split(f"{FIT} --trainer.default_root_dir new {options}")) == 1
    out, err = capfd.readouterr()
    assert what in err
    assert "parameters" not in out
    assert not Path("new").exists()


@pytest.mark.parametrize("options", ["--trainer.max_epochs 0", "--trainer.max_steps 0"])
def test_a_run_without_a_step_says_so(run, options, capsys, monkeypatch):
    monkeypatch.delenv("SSL_DATA_DIR")
    assert main(shlex.split(f"fit --data MNISTDataModule {options}")) == 0
    assert "nothing is trained: trainer.max_epochs or max_steps is 0" in capsys.readouterr().out


def test_the_summary_has_no_figures_that_were_not_counted(run, capsys, monkeypatch):
    monkeypatch.delenv("SSL_DATA_DIR")
    for options, shown in (("", True), ("--trainer.enable_model_summary false", False)):
        line = f"fit --data MNISTDataModule --trainer.fast_dev_run true {options}"
        assert main(shlex.split(line)) == 0
        text = capsys.readouterr().out
        assert ("431,080 parameters, 431,080 of them trained, 1.72 MB" in text) == shown
        assert "FLOPs" not in text


def test_foreign_json_is_no_report(run, capsys):
    Path("foreign.json").write_text('{"a": 1}')
    assert main(["report", "foreign.json"]) == 1
    assert "foreign.json: expected a report of ssl_lightning" in capsys.readouterr().err


def test_a_finished_run_that_is_continued_says_that_nothing_is_trained(run, capsys, monkeypatch):
    monkeypatch.delenv("SSL_DATA_DIR")
    line = (
        "fit --data MNISTDataModule --trainer.limit_train_batches 2 --trainer.limit_val_batches 1 "
        "--trainer.log_every_n_steps 1 --trainer.default_root_dir again --trainer.max_epochs"
    )
    assert main(shlex.split(f"{line} 2")) == 0
    assert "nothing is trained" not in capsys.readouterr().out
    line += " {} --ckpt_path again/checkpoints/last.ckpt"
    assert main(shlex.split(line.format(2))) == 0
    said = "the checkpoint has 2 epochs behind it, and trainer.max_epochs is 2"
    assert said in " ".join(capsys.readouterr().out.split())
    assert main(shlex.split(line.format(3))) == 0
    assert "nothing is trained" not in capsys.readouterr().out
