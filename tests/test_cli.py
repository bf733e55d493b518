"""The command line as users type it, in this process (exit status, output) and with bad input."""

from __future__ import annotations

import json
import logging
import os
import struct
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from conftest import ROOT, shared_data
from ssl_lightning import StageLR
from ssl_lightning.cli import COMMANDS, main, own_error

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
LOGGERS = sorted((ROOT / "configs" / "logger").glob("*.yaml"))
QUICK = str(ROOT / "configs" / "quickstart.yaml")

pytestmark = [
    pytest.mark.filterwarnings("ignore:The number of training batches"),
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working folder, and no Weights & Biases key."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    # Lightning's log handler keeps the stream of the test that imported it, closed by now
    monkeypatch.setattr(logging, "raiseExceptions", False)
    return tmp_path


def short_run(folder: Path, *extra: str) -> list[str]:
    """Arguments of a quickstart of two short epochs, pruned in the second."""
    return [
        "fit",
        f"--config={QUICK}",
        "--trainer.max_epochs=2",
        "--trainer.limit_train_batches=8",
        "--trainer.limit_val_batches=1",
        "--trainer.log_every_n_steps=4",
        "--trainer.enable_progress_bar=false",
        f"--trainer.default_root_dir={folder / 'run'}",
        "--model.penalties",
        '[{"kind": "filter", "layers": "conv*", "strength": 0.001}]',
        "--trainer.callbacks",
        json.dumps(
            [
                {
                    "class_path": "ThresholdPruning",
                    "init_args": {"start": 1, "threshold": 0.95, "relative": True},
                },
                {"class_path": "SparsityMonitor"},
                {"class_path": "FilterPictures"},
                {"class_path": "SaveCompact"},
                {
                    "class_path": "ModelCheckpoint",
                    "init_args": {"dirpath": str(folder / "run/checkpoints"), "save_last": True},
                },
            ]
        ),
        *extra,
    ]


def test_the_main_job(folder, capsys):
    """fit, test, compact, benchmark, report: files, figures and agreement."""
    assert main(short_run(folder)) == 0
    run = folder / "run"
    checkpoint = str(run / "checkpoints" / "last.ckpt")
    assert {"config.yaml", "filters.png", "compact", "checkpoints"} <= {
        p.name for p in run.iterdir()
    }
    assert main(["test", f"--config={run / 'config.yaml'}", f"--ckpt_path={checkpoint}"]) == 0
    assert "test/error" in capsys.readouterr().out
    assert main(["compact", checkpoint, "--output", str(folder / "small")]) == 0
    assert "parameters: 431,080 ->" in capsys.readouterr().out
    assert (
        main(
            [
                "benchmark",
                checkpoint,
                "--repeats=2",
                "--threads=1",
                f"--compacted={folder / 'small'}",
            ]
        )
        == 0
    )
    report = json.loads((run / "report.json").read_text())
    assert report["errors"].keys() == {"masked", "compact"}
    assert report["errors"]["masked"] == pytest.approx(report["errors"]["compact"], abs=0.02)
    assert [run["threads"] for run in report["benchmark"]["runs"]] == [1]
    assert report["sources"] == {"masked": checkpoint, "compact": str(folder / "small")}
    sizes = report["benchmark"]["models"]
    assert sizes["compact"]["macs"] < sizes["masked"]["macs"] == sizes["dense"]["macs"]
    assert main(["report", str(run)]) == 0
    assert (run / "report.png").stat().st_size > 10_000
    assert not (run / "report-engines.png").exists()
    several = ["--forms=[masked,csr]", "--batch_size=[1,3]", "--dtype=[float32,bfloat16]"]
    arguments = ["--per_layer=false", "--repeats=2", "--threads=1", "--data=none"]
    assert main(["benchmark", checkpoint, *several, *arguments]) == 0
    assert "Left out: csr, eager (bfloat16)" in capsys.readouterr().out
    runs = json.loads((run / "report.json").read_text())["benchmark"]["runs"]
    assert [(run["dtype"], run["batch_size"]) for run in runs] == list(
        product(["float32", "bfloat16"], [1, 3])
    )
    assert list(runs[0]["engines"]["eager"]) == ["masked", "csr"]
    assert main(["report", str(run)]) == 0
    assert (run / "report-engines.png").stat().st_size > 10_000
    assert "Unknown form 'sparse'" in failing(["benchmark", checkpoint, "--forms=sparse"], capsys)
    assert not [p for p in folder.rglob("*") if "tmp" in p.name]


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_predict_and_validate(folder, capsys):
    assert main(short_run(folder)) == 0
    shared = [
        f"--config={QUICK}",
        f"--ckpt_path={folder / 'run/checkpoints/last.ckpt'}",
        "--trainer.limit_predict_batches=1",
    ]
    assert main(["validate", *shared]) == 0
    assert "val/error" in capsys.readouterr().out
    assert main(["predict", *shared]) == 0


def test_settings_on_the_command_line_beat_those_of_the_checkpoint(folder):
    assert main(short_run(folder)) == 0
    checkpoint = folder / "run/checkpoints/last.ckpt"
    penalties = '[{"kind": "filter", "layers": "conv2", "strength": 0.125}]'
    again = short_run(folder, f"--ckpt_path={checkpoint}", "--model.penalties", penalties)
    assert main([*again, "--trainer.max_epochs=3"]) == 0
    stored = yaml.safe_load((folder / "run/config.yaml").read_text())
    assert [p["strength"] for p in stored["model"]["penalties"]] == [0.125]


def wandb_records(data: bytes) -> Iterator[bytes]:
    """Yield the records of a LevelDB log, the format of Weights & Biases' run files."""
    block, position, parts = 32768, 7, b""  # seven bytes of file header
    while position + 7 <= len(data):
        if block - position % block < 7:  # a header does not fit: the block's end is padding
            position += block - position % block
            continue
        length, kind = struct.unpack_from("<HB", data, position + 4)
        position += 7
        parts += data[position : position + length]
        position += length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def read_wandb(file: Path) -> dict[str, list]:
    """Return the records of a Weights & Biases run file, by kind."""
    from wandb.proto import wandb_internal_pb2

    records: dict[str, list] = {}
    for data in wandb_records(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        if kind:
            records.setdefault(kind, []).append(getattr(record, kind))
    return records


def test_weights_and_biases_offline(folder):
    """The written run file holds metrics, sparsity, the config, a picture and the compact model."""
    import wandb

    overlay = f"--config={ROOT / 'configs/logger/wandb.yaml'}"
    arguments = short_run(folder)
    assert main([*arguments[:2], overlay, *arguments[2:]]) == 0
    wandb.teardown()  # waits for the process that writes the file; `finish` may return before
    (file,) = (folder / "runs/wandb").glob("offline-run-*/run-*.wandb")
    records = read_wandb(file)
    logged = {"/".join(i.nested_key) or i.key for h in records["history"] for i in h.item}
    assert {"train/loss", "val/error", "sparsity/conv1/filters", "groups/filter"} <= logged
    assert any(key.split("/")[0] == "filters" for key in logged)
    config = {i.key or i.nested_key[0]: i.value_json for c in records["config"] for i in c.update}
    assert json.loads(config["config"])["data"]["init_args"]["source"] == "bundled"
    files = {entry.path for a in records["artifact"] for entry in a.manifest.contents}
    artifacts = [a for a in records["artifact"] if a.type == "model"]
    assert len(artifacts) == 1
    assert {"model.safetensors", "plan.json"} <= files


def test_weights_and_biases_never_asks_for_a_key(monkeypatch, tmp_path):
    from ssl_lightning.cli.training import keep_wandb_offline_without_key

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    keep_wandb_offline_without_key()
    assert os.environ["WANDB_MODE"] == "offline"
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_API_KEY", "x")
    keep_wandb_offline_without_key()
    assert "WANDB_MODE" not in os.environ


@pytest.mark.parametrize("config", CONFIGS, ids=lambda p: p.stem)
def test_every_config_builds_and_its_penalties_fit(config, folder, monkeypatch):
    from lightning.pytorch import LightningDataModule

    from ssl_lightning import SSLLightningModule
    from ssl_lightning.cli.training import SSLCLI

    monkeypatch.setattr("sys.argv", ["cli"])
    text = config.read_text()
    assert text.startswith("# "), "a config says in its first line what it does"
    content = yaml.safe_load(text)
    args = [f"--config={config}", "--trainer.accelerator=cpu", "--trainer.precision=32-true"]
    cli = SSLCLI(
        SSLLightningModule, LightningDataModule, subclass_mode_data=True, run=False, args=args
    )
    start = content["model"].get("init_from", "")
    assert not start or (ROOT / "configs" / f"{Path(start).parts[1]}.yaml").is_file()
    assert cli.trainer.default_root_dir.endswith(f"runs/{config.stem}")
    regularizer = cli.model.sparsity.regularizer
    assert len(regularizer.penalties) == len(content["model"].get("penalties", []))
    cli.model._trainer = None
    assert set(cli.model.input_shape) == set(cli.datamodule.input_shape)
    classifies = "loss" not in content["model"]
    assert cli.model.num_classes == (cli.datamodule.num_classes if classifies else None)
    last = cli.trainer.max_epochs
    for penalty in regularizer.penalties:
        assert any(penalty.schedule(epoch) > 0 for epoch in range(last))
    for callback in cli.trainer.callbacks:
        occasions = getattr(callback, "occasions", None)
        assert occasions is None or occasions.start < last


@pytest.mark.parametrize("config", CONFIGS, ids=lambda p: p.stem)
def test_every_config_can_be_resumed_after_a_kill(config, folder):
    """Where save_top_k is 0, Lightning writes last.ckpt only when training ends."""
    import lightning.pytorch as pl
    from lightning.pytorch.callbacks import LambdaCallback, ModelCheckpoint
    from lightning.pytorch.demos.boring_classes import BoringModel

    callbacks = yaml.safe_load(config.read_text())["trainer"]["callbacks"]
    given = [c["init_args"] for c in callbacks if c["class_path"].endswith("ModelCheckpoint")]
    [every] = [kept.get("every_n_epochs", 1) for kept in given if kept.get("save_last")]
    last = folder / "runs" / config.stem / "checkpoints" / "last.ckpt"
    stored = []
    trainer = pl.Trainer(
        max_epochs=every + 1,
        limit_train_batches=1,
        limit_val_batches=1,
        accelerator="cpu",
        logger=False,
        callbacks=[
            *(ModelCheckpoint(**kept) for kept in given),
            LambdaCallback(on_train_epoch_start=lambda *_: stored.append(last.is_file())),
        ],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(BoringModel())
    assert stored[-1]


SMALL = {"alexnet": "4", "resnet20": "8", "resnet56": "4"}


@pytest.mark.filterwarnings("ignore:Budget. latency is .* above the limit")  # a busy machine
@pytest.mark.parametrize(
    "config", [c for c in CONFIGS if "imagenet_" not in c.stem], ids=lambda p: p.stem
)
def test_every_config_trains(config, folder, monkeypatch):
    data = shared_data()
    source = yaml.safe_load(config.read_text())["data"]["init_args"].get("source", "made-up")
    local = source not in ("bundled", "made-up")
    if local and data is None:
        pytest.skip("needs the complete data sets: set SSL_DATA_DIR to their folder")
    monkeypatch.setenv("SSL_DATA_DIR", str(data))
    batch = next((n for prefix, n in SMALL.items() if config.stem.startswith(prefix)), "16")
    arguments = ["fit", f"--config={config}", "--trainer.fast_dev_run=2"]
    arguments += [f"--data.init_args.batch_size={batch}", "--data.init_args.eval_batch_size=16"]
    arguments += ["--trainer.enable_progress_bar=false", "--trainer.callbacks=[]"]
    assert main([*arguments, "--model.init_from=null"]) == 0


def test_the_papers_recipe_trains_on_1000_classes(folder):
    """One image per class of ImageNet, in the layout of the complete set."""
    data = shared_data()
    if data is None or not (data / "imagenet-samples.npz").is_file():
        pytest.skip("needs imagenet-samples.npz: set SSL_DATA_DIR to its folder")
    with np.load(data / "imagenet-samples.npz") as samples:
        blob, offsets, wnids = samples["blob"].tobytes(), samples["offsets"], samples["wnids"]
    for split, i in product(("train", "val"), range(1000)):
        image = folder / "imagenet" / split / str(wnids[i]) / "0.JPEG"
        image.parent.mkdir(parents=True)
        image.write_bytes(blob[offsets[i] : offsets[i + 1]])
    config = ROOT / "configs" / "alexnet_imagenet_rows_columns.yaml"
    arguments = ["fit", f"--config={config}", f"--data.init_args.root={folder / 'imagenet'}"]
    arguments += ["--data.init_args.num_validation=100", "--data.init_args.num_workers=0"]
    arguments += ["--data.init_args.batch_size=4", "--data.init_args.eval_batch_size=4"]
    arguments += ["--trainer.precision=bf16-mixed", "--trainer.fast_dev_run=3"]
    arguments += ["--trainer.enable_progress_bar=false", "--trainer.callbacks=[]"]
    assert main([*arguments, "--trainer.accelerator=cpu"]) == 0
    cached = ["--data.init_args.cache_size=128", f"--data.init_args.cache_dir={folder / 'cache'}"]
    assert main([*arguments, "--trainer.accelerator=cpu", *cached]) == 0


@pytest.mark.parametrize("overlay", LOGGERS, ids=lambda p: p.stem)
def test_every_overlay_parses_over_every_kind_of_config(overlay, folder, capsys):
    for config in CONFIGS:
        with pytest.raises(SystemExit) as stop:
            main(["fit", f"--config={config}", f"--config={overlay}", "--print_config"])
        assert stop.value.code in (0, None)
        printed = yaml.safe_load(capsys.readouterr().out)
        wanted = yaml.safe_load(overlay.read_text())["trainer"]["logger"]["class_path"]
        assert printed["trainer"]["logger"]["class_path"] == wanted


def test_help_lists_every_command(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in COMMANDS)
    assert main([]) == 2
    assert main(["--version"]) == 0


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name, capsys):
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code in (0, None)
    assert "usage:" in capsys.readouterr().out


def failing(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that must fail, and return the one paragraph it says."""
    try:
        status = main(arguments)
    except SystemExit as stop:
        status = int(stop.code or 0)
    assert status != 0
    text = capsys.readouterr().err
    assert "Traceback" not in text
    return text[text.index("error:") :]


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--model.backbone=lenett"], "Unknown backbone `lenett`. Did you mean lenet"),
        (["--model.bakbone=lenet"], "model.bakbone"),
        (['--model.penalties=[{"kind": "filtre", "strength": 1}]'], "Did you mean filter"),
        (['--model.penalties=[{"kind": "filter", "strength": -1}]'], "strength >= 0, got -1"),
        (
            ['--model.penalties=[{"kind": "filter", "layers": "konv*", "strength": 1}]'],
            "'konv*' matches no layer",
        ),
        (["--model.num_classes=7"], "the data has 10 classes"),
        (["--model.optimizer.init_args.lr=1e30"], "training loss is"),
        (["--ckpt_path=nothing.ckpt"], "No checkpoint at nothing.ckpt"),
        (["--data.init_args.source=lokal"], "lokal"),
        (["--data.init_args.root=nowhere", "--data.init_args.source=local"], "nowhere"),
    ],
)
def test_mistakes_are_named_and_nothing_is_left_behind(folder, capsys, extra, message):
    text = failing(short_run(folder, *extra), capsys)
    assert message in text
    left = {p.name for p in folder.rglob("*") if p.is_file()} - {
        "config.yaml",
        "hparams.yaml",
        "metrics.csv",
        ".lock",
    }
    assert not left


@pytest.mark.parametrize(
    ("callback", "settings", "message"),
    [
        ("ThresholdPruning", ["start=1", "threshold=-1"], "expected a threshold >= 0, got -1.0"),
        ("CompactDuringFit", ["at=[]"], "CompactDuringFit: "),
    ],
)
def test_mistakes_in_callbacks_are_one_sentence(folder, capsys, callback, settings, message):
    name = f"ssl_lightning.callbacks.{callback}"
    given = [f"--trainer.callbacks.{setting}" for setting in settings]
    text = failing(short_run(folder, f"--trainer.callbacks+={name}", *given), capsys)
    assert message in text
    assert len(text.splitlines()) == 1, "the parser's list of what it tried is left out"


@pytest.mark.parametrize("strategy", ["ddp_spawn", "ddp_fork"])
def test_launchers_are_refused_before_processes_start(folder, capsys, strategy):
    text = failing(
        short_run(folder, f"--trainer.strategy={strategy}", "--trainer.devices=2"), capsys
    )
    assert text.startswith("error: ddp_spawn, ddp_fork")
    assert not list(folder.rglob("config.yaml"))


def test_only_errors_of_this_package_stand_for_those_around_them():
    def around(inner: Exception) -> Exception:
        try:
            raise KeyError("another library's") from inner
        except KeyError as outer:
            return outer

    with pytest.raises(ValueError, match="expected as many") as ours:
        StageLR(None, epochs=[], lr=[])
    wrapped = around(around(ours.value))
    assert own_error(wrapped) is ours.value
    assert own_error(ours.value) is ours.value
    foreign = around(ValueError("nobody raised it here"))
    assert own_error(foreign) is foreign


def test_a_misspelt_key_in_a_config_is_named(folder, capsys):
    text = (ROOT / "configs/quickstart.yaml").read_text().replace("channels_last", "chanels_last")
    (folder / "bad.yaml").write_text(text)
    assert "chanels_last" in failing(["fit", "--config=bad.yaml"], capsys)


@pytest.mark.parametrize("command", ["compact", "benchmark", "test"])
@pytest.mark.parametrize("damage", ["truncated", "text", "empty"])
def test_damaged_checkpoints_are_named(folder, capsys, command, damage):
    whole = folder / "whole.ckpt"
    torch.save({"state_dict": {"backbone.w": torch.ones(1000)}}, whole)
    data = {"truncated": whole.read_bytes()[:900], "text": b"no checkpoint", "empty": b""}[damage]
    bad = folder / "bad.ckpt"
    bad.write_bytes(data)
    given = [f"--config={QUICK}", f"--ckpt_path={bad}"] if command == "test" else [str(bad)]
    text = failing([command, *given], capsys)
    assert "bad.ckpt cannot be read as a checkpoint" in text
    assert sorted(p.name for p in folder.iterdir()) == ["bad.ckpt", "whole.ckpt"]


def test_checkpoints_of_other_networks_are_named(folder, capsys):
    hparams = {"backbone": "lenet", "backbone_args": {}}
    torch.save({"state_dict": {"backbone.w": torch.ones(2)}, "hyper_parameters": hparams}, "a.ckpt")
    assert "a.ckpt does not fit the backbone 'lenet'" in failing(["compact", "a.ckpt"], capsys)
    diverged = {"backbone.w": torch.full((2,), float("nan"))}
    torch.save({"state_dict": diverged, "hyper_parameters": hparams}, "b.ckpt")
    assert "`w` in b.ckpt holds NaN" in failing(["compact", "b.ckpt"], capsys)
    torch.save({"state_dict": {}}, "c.ckpt")
    assert "does not name its backbone" in failing(["compact", "c.ckpt"], capsys)
    torch.save([1], "d.ckpt")
    assert "no `state_dict`" in failing(["compact", "d.ckpt"], capsys)


def test_report_of_nothing(folder, capsys):
    assert "No report at" in failing(["report", "nowhere"], capsys)
    Path("bad.json").write_text("{")
    assert "expected JSON" in failing(["report", "bad.json"], capsys)
    assert "unknown command 'fitt'. Did you mean fit" in failing(["fitt"], capsys)


def test_the_script_and_the_console_command_are_this_main(monkeypatch):
    import tomllib

    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"ssl-lightning": "ssl_lightning.cli:main"}
    assert "from ssl_lightning.cli import main" in (ROOT / "cli.py").read_text()


REFUSED = {
    "a callback": ["--trainer.callbacks+=ThresholdPruning", "--trainer.callbacks.start=9"],
    "the setup": ["--model.penalties", '[{"kind": "filter", "layers": "none*", "strength": 1.0}]'],
    "the data": ["--model.backbone_args={num_classes: 3}"],
    "the parser": ["--model.backbone=lenett"],
    "the checkpoint": ["--ckpt_path=none.ckpt"],
}


@pytest.mark.parametrize("logger", ["CSVLogger", "TensorBoardLogger"])
@pytest.mark.parametrize("case", REFUSED)
def test_a_refused_run_leaves_nothing(folder, capsys, case, logger):
    logs = f'{{"class_path": "{logger}", "init_args": {{"save_dir": "{folder}/logs"}}}}'
    arguments = [*short_run(folder), "--trainer.logger", logs, *REFUSED[case]]
    assert "error: " in failing(arguments, capsys)
    assert [str(path) for path in folder.rglob("*")] == []
    run = folder / "run"
    run.mkdir()
    (run / "config.yaml").write_text("of an older run")
    failing(arguments, capsys)
    assert [str(path) for path in folder.rglob("*")] == [str(run), str(run / "config.yaml")]
    assert (run / "config.yaml").read_text() == "of an older run"


def test_a_run_that_began_keeps_its_folder(folder, capsys):
    diverging = ["--model.optimizer.lr=1e30", "--trainer.logger=false"]
    assert "The training loss is" in failing([*short_run(folder), *diverging], capsys)
    assert sorted(path.name for path in (folder / "run").iterdir()) == [".lock", "config.yaml"]


def given(name, **arguments):
    return {"class_path": name, "init_args": arguments}


PRUNING, CALLBACKS_ = "ThresholdPruning", "`trainer.callbacks`: "
MISTAKES = [
    ("trainer.callbacks", [given(PRUNING, treshold=1)],
     CALLBACKS_ + "ThresholdPruning has no argument 'treshold'. Did you mean threshold?"),
    ("trainer.callbacks", [given("TresholdPruning")],
     CALLBACKS_ + "there is no class 'TresholdPruning'. Did you mean ThresholdPruning or "),
    ("trainer.callbacks", [given(PRUNING, start="x")],
     CALLBACKS_ + "ThresholdPruning: `start`: expected int, got 'x'."),
    ("trainer.callbacks", [given(PRUNING, threshold=1)],
     CALLBACKS_ + "ThresholdPruning needs the argument start. Give it under `init_args`."),
    ("trainer.max_epoch", 3,
     "There is no option `trainer.max_epoch`. Did you mean trainer.max_epochs"),
    ("trainer.max_epochs", "x", "`trainer.max_epochs`: expected int or None, got 'x'."),
    ("model.lr_interval", "day",
     "`model.lr_interval`: expected Literal['epoch', 'step'], got 'day'."),
    ("model.penaltys", [], "There is no option `model.penaltys`. Did you mean model.penalties?"),
    ("model.optimizer", given("torch.optim.SGD", lrr=1),
     "`model.optimizer`: SGD has no argument 'lrr'. Did you mean lr?"),
    ("data", given("MNISTDataModule", bach_size=3),
     "`data`: MNISTDataModule has no argument 'bach_size'. Did you mean batch_size"),
    ("data", "MNIST", "`data`: there is no class 'MNIST'. "),
    ("trainer.callbacks", [{"class_path": PRUNING, "start": 1}],
     CALLBACKS_ + "expected `{class_path: ThresholdPruning, init_args: {...}}`, got {'class_path': "
     "'ThresholdPruning', 'start': 1}."),
    ("trainer.callbacks", [{"class_path": PRUNING, "init_arg": {"start": 1}}],
     CALLBACKS_ + "expected `{class_path: ThresholdPruning, init_args: {...}}`, got {"),
    ("trainer.callbacks", [{PRUNING: {"start": 1}}],
     CALLBACKS_ + "expected `{class_path: NAME, init_args: {...}}`, got {'ThresholdPruning': "),
    ("trainer.callbacks", [given("SparsityMonitor"), {"class_path": PRUNING, "start": 1}],
     CALLBACKS_ + "expected `{class_path: NAME, init_args: {...}}`: arguments of a class are"),
    ("trainer.callbacks", 3, CALLBACKS_ + "expected list[Callback], Callback or None, got '3'."),
    ("trainer.callbacks", [given("CompactDuringFit", at="one")],
     CALLBACKS_ + "CompactDuringFit: `at`: expected int or list[int], got 'one'."),
    ("trainer.logger", given("CSVLoger"),
     "`trainer.logger`: there is no class 'CSVLoger'. Did you mean CSVLogger or "),
    ("trainer.logger", {"CSVLogger": {"save_dir": "x"}},
     "`trainer.logger`: expected `{class_path: NAME, init_args: {...}}`, got {'CSVLogger': "),
    ("trainer.precision", "16-mixd", "`trainer.precision`: expected Literal[64, 32, 16], Literal["),
    ("trainer.limit_train_batches", "x",
     "`trainer.limit_train_batches`: expected int, float or None, got 'x'."),
    ("trainer.callbacs", {}, "There is no option `trainer.callbacs`. Did you mean trainer.callb"),
    ("trainr", {}, "wrong.yaml: There is no option `trainr`. Did you mean trainer"),
    ("trainer", [1], "wrong.yaml: expected `trainer` to be a section of options such as `train"),
    ("model", 3, "wrong.yaml: expected `model` to be a section of options such as `model."),
    ("model", None, "wrong.yaml: expected `model` to be a section of options such as `model."),
    ("model.optimizer", given("SDG"),
     "`model.optimizer`: there is no class 'SDG'. Did you mean SGD?"),
    ("model.optimizer", {"class_path": "SGD", "lr": 0.1},
     "`model.optimizer`: expected `{class_path: NAME, init_args: {...}}`: "),
    ("model.optimizer", given("SGD", lr="x"),
     "`model.optimizer`: SGD: `lr`: expected float or Tensor, got 'x'."),
    ("model.lr_scheduler", given("StepLr"),
     "`model.lr_scheduler`: there is no class 'StepLr'. Did you mean StepLR"),
    ("model.lr_scheduler", {"class_path": "StepLR"},
     "`model.lr_scheduler`: StepLR needs the argument step_size. Give it under `init_args`."),
    ("model.lr_scheduler", given("StepLR", step_size="x"),
     "`model.lr_scheduler`: StepLR: `step_size`: expected int, got 'x'."),
    ("model.backbone", given("toy.ToyNet", dropout="wide"),
     "`model.backbone`: ToyNet: `dropout`: expected float, got 'wide'."),
    ("model.backbone", {"class_path": "toy.ToyNet", "dropout": 3},
     "`model.backbone`: expected `{class_path: toy.ToyNet, init_args: {...}}`, got {"),
    ("model.backbone", given("toy.ToyNett"),
     "`model.backbone`: there is no class 'ToyNett' in toy. Did you mean ToyNet"),
    ("model.backbone", given("mynets.Net"),
     "`model.backbone`: cannot import mynets.Net: No module named 'mynets'. If it is in a folder "
     "of its own, name that in PYTHONPATH."),
    ("budget", {"mac": 0.5}, "`budget`: Budget has no argument 'mac'. Did you mean macs?"),
    ("budget", {"macs": "x"}, "`budget`: Budget: `macs`: expected float or None, got 'x'."),
    ("budget", 0.5, "`budget`: expected arguments of Budget such as `{macs: 0.5}`, got '0.5'."),
]  # fmt: skip


@pytest.mark.parametrize(("option", "value", "sentence"), MISTAKES)
def test_a_mistake_in_a_config_is_one_sentence(folder, option, value, sentence, capsys):
    section, _, key = option.partition(".")
    content = {section: {key: value} if key else value}
    (folder / "wrong.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(SystemExit) as status:
        main(["fit", f"--config={QUICK}", f"--config={folder / 'wrong.yaml'}"])
    assert status.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert sentence in said
    assert said.count("\n") == 1
    assert [path.name for path in folder.iterdir()] == ["wrong.yaml"]


WRONG_ARGUMENTS = [
    ("test --ckpt_path X", "Expected `data`, got none. Give the config of the run: `--config"),
    ("fit", "Expected `data`, got none."),
    ("fit x", "Expected no further argument, got 'x'. Omit it."),
    ("compact", "Expected the argument `checkpoint`, got none. `--help` says what it is."),
    ("compact a.ckpt b", "Expected no further argument, got 'b'."),
    ("compact a.ckpt --prefr auto", "There is no option `prefr`. Did you mean prefer?"),
    ("fit --budget.mac 3", "`budget`: Budget has no argument 'mac'. Did you mean macs?"),
    ("compact a.ckpt --prefer", "`prefer`: expected a value, got none. Write it behind `--"),
    ("export a.ckpt --batch x", "`batch`: expected int or Literal['dynamic'], got 'x'."),
    ("export --masked a.ckpt", "`masked`: expected bool, got 'a.ckpt'."),
    ("benchmark a.ckpt --engine eager", "There is no option `engine`. Did you mean engines?"),
    ("benchmark paper-table4 --layr x", "There is no option `layr`. Did you mean layers?"),
    ("benchmark training --backbone", "`backbone`: expected a value, got none. Write it behind"),
    ("benchmark training --backbone a --kindz", "There is no option `kindz`. Did you mean kinds?"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "sentence"), WRONG_ARGUMENTS)
def test_a_wrong_argument_is_one_sentence(folder, arguments, sentence, capsys):
    with pytest.raises(SystemExit) as status:
        main(arguments.split())
    assert status.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {sentence}")
    assert said.count("\n") == 1


def test_broken_yaml_is_named_with_its_line(folder, capsys):
    (folder / "broken.yaml").write_text("trainer:\n  devices: [1\nmodel: {}\n")
    text = failing(["fit", f"--config={QUICK}", "-c", "broken.yaml"], capsys)
    assert text.startswith("error: broken.yaml, line 3: expected YAML, got what is none: ")
    assert text.count("\n") == 1


def test_a_switch_needs_no_value(capsys):
    assert "No checkpoint at a.ckpt" in failing(["export", "a.ckpt", "--masked"], capsys)
    assert "No checkpoint at a.ckpt" in failing(["export", "a.ckpt", "--masked=false"], capsys)
