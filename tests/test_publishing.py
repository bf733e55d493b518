"""Publishing: what is written is measured, and what does not belong together is refused."""

from __future__ import annotations

import hashlib
import json
import shutil

import pytest
import torch
import yaml
from safetensors.torch import load as parse_tensors

from ssl_lightning import SSLLightningModule, publishing, zoo
from ssl_lightning.cli import main
from ssl_lightning.data import MNISTDataModule
from ssl_lightning.publishing import pictures, writing
from ssl_lightning.publishing.measuring import measure_error
from ssl_lightning.publishing.pages import entry_page
from ssl_lightning.publishing.runs import read_run
from ssl_lightning.report.training_log import parse_curves, read_log
from ssl_lightning.zoo.cards import CARD, CONFIG, CURVES, EVALUATIONS, FILES, GOLDEN, MODEL, PAGE
from ssl_lightning.zoo.records import StoredFile, Weights
from test_cli import short_run
from zoo_runs import LOG, NAME, ZOO, edit_config

pytestmark = pytest.mark.filterwarnings("ignore:The number of training batches")


def test_publish_measures_and_verifies(run, tmp_path):
    folder = publishing.publish(run, "short", tmp_path, {"row": "none"})
    assert sorted(path.name for path in tmp_path.iterdir()) == [PAGE, "short"]
    assert {path.name for path in folder.iterdir()} == {CARD, *FILES} - set(EVALUATIONS)
    assert all(check.ok for check in publishing.verify("short", tmp_path, latency=False))
    card = zoo.card("short", tmp_path)
    assert (card.epochs, card.paper, card.data.name) == (2, {"row": "none"}, "mnist")
    assert card.data.num_train + card.data.num_validation == 12_000
    model, data = zoo.load("short", root=tmp_path), MNISTDataModule(num_validation=2000)
    assert card.validation_error == measure_error(model, data.val_dataloader())
    assert card.compact.macs < card.dense.macs == 2_293_000
    config = yaml.safe_load((folder / CONFIG).read_text())
    assert config["trainer"]["default_root_dir"] == "runs/short"
    assert str(run) not in (folder / CONFIG).read_text()
    before = (folder / CARD).read_bytes()
    with pytest.raises(FileExistsError, match="not overwritten"):
        publishing.publish(run, "short", tmp_path)
    assert (folder / CARD).read_bytes() == before


def test_nothing_is_left_when_measuring_fails(run, tmp_path, monkeypatch):
    def fail(*_):
        raise ValueError("no test split")

    monkeypatch.setattr(writing, "measure_size", fail)
    with pytest.raises(ValueError, match="no test split"):
        publishing.publish(run, "short", tmp_path / "new")
    assert not list((tmp_path / "new").glob("*"))


def test_unfinished_and_foreign_runs_are_refused(spoilt, run, tmp_path):
    def refused(error, message):
        with pytest.raises(error, match=message):
            publishing.publish(spoilt, "short", tmp_path / "new")
        assert not (tmp_path / "new").exists() or not list((tmp_path / "new").iterdir())

    refused(ValueError, "path of this machine")  # of the folder it was copied from
    edit_config(spoilt, str(run), "runs/x")
    edit_config(spoilt, "max_epochs: 2", "max_epochs: 3")
    refused(ValueError, "2 of 3 epochs")
    edit_config(spoilt, "max_epochs: 3", "max_epochs: 2")
    edit_config(spoilt, "MNISTDataModule", "OtherDataModule")
    refused(ValueError, "Cannot publish a run on .*OtherDataModule")
    edit_config(spoilt, "OtherDataModule", "MNISTDataModule")
    for old, new in (
        ("strength: 0.001", "strength: 0.002"),
        ("seed_everything: 0", "seed_everything: 5"),
        ("label_smoothing: 0.0", "label_smoothing: 0.1"),
        ("backbone: lenet", "backbone: mlp"),
    ):
        edit_config(spoilt, old, new)
        refused(ValueError, rf"are of different runs: .* differ in .* {new.split(': ')[1]}\)")
        edit_config(spoilt, new, old)
    log = next(spoilt.rglob("metrics.csv"))
    whole = log.read_text()
    columns = whole.splitlines()[0].split(",")
    longer = ",".join("99" if name == "step" else "" for name in columns)
    log.write_text(f"{whole}{longer}\n")
    refused(ValueError, "are of different runs: .* has figures of step 99")
    log.write_text(whole)
    shutil.copy(ZOO / NAME / "model.safetensors", spoilt / "compact")
    shutil.copy(ZOO / NAME / "plan.json", spoilt / "compact")
    refused(ValueError, "does not compute what checkpoints/last.ckpt does")
    whole = (spoilt / CONFIG).read_text()
    for content in ("a: [", "", "seed_everything: 0"):
        (spoilt / CONFIG).write_text(content)
        refused(ValueError, "is not what `fit` writes")
    (spoilt / CONFIG).write_text(whole)
    shutil.rmtree(spoilt / "compact")
    refused(FileNotFoundError, r"No model\.safetensors")
    (spoilt / "checkpoints" / "last.ckpt").unlink()
    refused(FileNotFoundError, "No checkpoint at")
    (spoilt / CONFIG).unlink()
    refused(FileNotFoundError, "a run folder is what `fit` wrote")


def test_verify_and_publish_on_the_command_line(run, tmp_path, capsys):
    root = ["--root", str(tmp_path / "zoo")]
    paper = ["--paper", '{"row": "LeNet 2", "error": 0.8}']
    assert main(["zoo", "publish", str(run), "--name", "short", *root, *paper]) == 0
    assert "LeNet 2" in capsys.readouterr().out
    assert main(["zoo", "verify", "short", *root, "--latency=false"]) == 0
    assert "DIFFERS" not in capsys.readouterr().out
    assert main(["zoo", "publish", str(run), "--name", "short", *root]) == 1
    assert "not overwritten" in capsys.readouterr().err
    (tmp_path / "zoo/short" / GOLDEN).write_bytes(b"")
    assert main(["zoo", "verify", "short", *root]) == 1
    assert f"{GOLDEN} has 0 bytes" in capsys.readouterr().err


def test_a_dense_network_is_an_entry_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoint = {"dirpath": str(tmp_path / "run/checkpoints"), "save_last": True}
    callbacks = [
        {"class_path": "SaveCompact"},
        {"class_path": "ModelCheckpoint", "init_args": checkpoint},
    ]
    dense = ("--model.penalties", "[]", "--trainer.callbacks", json.dumps(callbacks))
    assert main(short_run(tmp_path, *dense, *LOG)) == 0
    publishing.publish("run", "dense", "zoo")
    card = zoo.card("dense", "zoo")
    assert card.compact == card.dense
    assert card.unmeasured["step_cost"] == "the run has no penalties with a strength"
    assert "trained densely" in entry_page(card)
    assert all(check.ok for check in publishing.verify("dense", "zoo", latency=False))


def test_the_picture_shows_the_filters_that_were_kept(spoilt, tmp_path, monkeypatch):
    path = spoilt / "checkpoints" / "last.ckpt"
    content = torch.load(path, weights_only=True)
    content["callbacks"]["FilterPictures"] = {"before": torch.ones(20, 1, 5, 5)}
    torch.save(content, path)
    drawn = []
    monkeypatch.setattr(pictures, "filter_pictures", lambda panels, _: drawn.append(panels))
    pictures.write_filters(pictures.first_filters(read_run(spoilt)), tmp_path)
    assert list(drawn[0]) == ["before", "compact"]
    assert (drawn[0]["before"] == 1).all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_what_all_figures_are_of(run, tmp_path, dtype):
    full = publishing.publish(run, "full", tmp_path)
    half = publishing.publish(run, "half", tmp_path, dtype=dtype)
    size = [(folder / MODEL).stat().st_size for folder in (full, half)]
    assert size[1] < 0.55 * size[0]
    kind = getattr(torch, dtype)
    exact, rounded = (parse_tensors((folder / MODEL).read_bytes()) for folder in (full, half))
    for name, tensor in rounded.items():
        assert tensor.dtype == kind
        assert torch.equal(tensor, exact[name].to(kind)), name
    model = zoo.load("half", root=tmp_path)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert torch.equal(model.conv1.weight, rounded["conv1.weight"].float())
    golden = parse_tensors((half / GOLDEN).read_bytes())
    with torch.inference_mode():
        torch.testing.assert_close(model(golden["input"]), golden["output"])
        assert not torch.equal(zoo.load("full", root=tmp_path)(golden["input"]), golden["output"])
    card, data = zoo.card("half", tmp_path), MNISTDataModule(num_validation=2000)
    assert card.weights == Weights(dtype)
    assert card.validation_error == measure_error(model, data.val_dataloader())
    assert all(check.ok for check in publishing.verify("half", tmp_path, latency=False))
    assert f"Weights are stored in {dtype}" in entry_page(card)
    module = SSLLightningModule("zoo:half", {"root": str(tmp_path)})
    assert module.backbone.conv1.weight.dtype == torch.float32


def test_an_unknown_type_is_refused(run, tmp_path):
    with pytest.raises(ValueError, match="expected float32, float16, bfloat16, got 'int8'"):
        publishing.publish(run, "half", tmp_path / "new", dtype="int8")
    assert not list((tmp_path / "new").glob("*"))


@pytest.fixture(scope="module")
def unstored(run, tmp_path_factory):
    """A zoo with an entry that keeps no weights."""
    root = tmp_path_factory.mktemp("unstored")
    arguments = ["--name", "card", "--root", str(root), "--weights=false"]
    assert main(["zoo", "publish", str(run), *arguments]) == 0
    return root


def test_an_entry_without_weights_keeps_all_but_them(run, unstored):
    card = zoo.card("card", unstored)
    assert {p.name for p in (unstored / "card").iterdir()} == (
        {CARD, *FILES} - {MODEL, GOLDEN, *EVALUATIONS}
    )
    content = (run / "compact" / MODEL).read_bytes()
    assert card.weights.unstored == StoredFile.of(content)
    assert CURVES in card.files
    page = entry_page(card)
    assert hashlib.sha256(content).hexdigest() in page
    assert "`ssl-lightning fit --config card/config.yaml` trains them again" in page
    assert (unstored / "card" / PAGE).read_text() == page


def test_what_needs_weights_says_that_there_are_none(unstored, capsys):
    message = r"weights of 'card' are not stored \(.* MB\): .*Train them with `ssl-lightning fit"
    with pytest.raises(FileNotFoundError, match=message) as caught:
        zoo.load("card", root=unstored)
    assert "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match=message):
        SSLLightningModule("zoo:card", {"root": str(unstored)})
    assert zoo.load("card", pretrained=False, root=unstored).num_classes == 10
    checks = publishing.verify("card", unstored, latency=False)
    assert {c.what for c in checks if not c.ok} == {"groups left", "test error %"}
    assert main(["zoo", "verify", "card", "--root", str(unstored), "--latency=false"]) == 3
    err = capsys.readouterr().err
    assert (
        "was not wholly measured: groups left, test error %. The weights of 'card' are not stored"
        in err
    )
    assert main(["zoo", "show", "card", "--root", str(unstored)]) == 0
    assert "not stored, sha256" in capsys.readouterr().out


def test_every_flipped_byte_of_an_entry_without_weights_is_found(unstored, tmp_path):
    shutil.copytree(unstored / "card", tmp_path / "card")
    for path in sorted((tmp_path / "card").iterdir()):
        whole = path.read_bytes()
        for place in {*range(0, len(whole), max(1, len(whole) // 50)), len(whole) - 1}:
            flipped = bytearray(whole)
            flipped[place] ^= 1
            path.write_bytes(flipped)
            with pytest.raises(ValueError, match=r"damaged|card\.schema"):
                zoo.load("card", pretrained=False, root=tmp_path)
        path.write_bytes(whole)
    zoo.load("card", pretrained=False, root=tmp_path)


def test_curves_hold_the_last_value_of_every_epoch(published, seeds):
    text = (published / "both" / CURVES).read_text()
    curves = parse_curves(text)
    assert len(curves["val/error"]) == 2
    assert all(value == value for value in curves["train/error"] + curves["val/error"])
    assert "sparsity/conv1/filters" in curves
    assert not [name for name in curves if name.startswith(("test/", "step"))]


def test_later_logs_of_a_resumed_run_count(tmp_path):
    for version, rows in {2: "1,5\n", 10: "1,6\n2,7\n", 0: "0,4\n1,9\n,3\n"}.items():
        folder = tmp_path / f"version_{version}"
        folder.mkdir()
        (folder / "metrics.csv").write_text(f"epoch,val/error\n{rows}")
    assert read_log(tmp_path, 3) == "epoch,val/error\n0,4\n1,6\n2,7\n"
    assert read_log(tmp_path, 2) == "epoch,val/error\n0,4\n1,6\n"
    assert read_log(tmp_path, 4) is None


def test_a_run_without_a_log_says_so(spoilt, run, tmp_path):
    edit_config(spoilt, str(run), "runs/x")
    for log in spoilt.rglob("metrics.csv"):
        log.unlink()
    publishing.publish(spoilt, "mute", tmp_path / "zoo")
    card = zoo.card("mute", tmp_path / "zoo")
    assert "metrics.csv" in card.unmeasured["curves"]
    assert CURVES not in card.files
    assert "- curves: " in entry_page(card)
