"""The zoo: every published figure is measured again, and nothing damaged is ever parsed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load as parse_tensors

from conftest import ROOT, shared_data
from ssl_lightning import SSLLightningModule, create_backbone, load_backbone, zoo
from ssl_lightning.cli import main
from ssl_lightning.compaction import load_compact
from ssl_lightning.data import MNISTDataModule
from ssl_lightning.measure import num_parameters
from ssl_lightning.measure.sparse_record import SparseRecord, SparseRow
from ssl_lightning.measure.table4 import TABLE4
from ssl_lightning.zoo import publishing, timing, upgrading, verifying
from ssl_lightning.zoo.cards import (
    CARD,
    CONFIG,
    CURVES,
    FILES,
    GOLDEN,
    MODEL,
    PAGE,
    REQUIRED,
    SCHEMA,
    Card,
    digest,
    serial,
)
from ssl_lightning.zoo.curves import parse_curves, read_log
from ssl_lightning.zoo.listing import table_page
from ssl_lightning.zoo.measuring import measure_error, open_test_split
from ssl_lightning.zoo.pages import entry_page
from ssl_lightning.zoo.records import SeedResult, StoredFile, Weights, median_result
from ssl_lightning.zoo.runs import read_run
from ssl_lightning.zoo.timing import create_optimizer, measure_step_cost, training_step
from test_cli import short_run

ZOO = ROOT / "zoo"
ENTRIES = sorted(path.parent.name for path in ZOO.glob("*/card.json"))
NAME = "lenet_mnist_filter_channel"
OTHER = "lenet_mnist_shape"
LOG = ["--trainer.logger.init_args.save_dir=.", "--trainer.logger.init_args.name=run"]
TIMER = json.dumps(
    {
        "class_path": "lightning.pytorch.callbacks.Timer",
        "init_args": {"interval": "epoch", "verbose": False},
    }
)
PENALTIES = '[{"kind": "filter", "layers": "conv*", "strength": 0.001}]'

pytestmark = pytest.mark.filterwarnings("ignore:The number of training batches")


@pytest.fixture
def copied(tmp_path):
    """A zoo of its own with copies of two entries, to be damaged."""
    for name in (NAME, OTHER):
        shutil.copytree(ZOO / name, tmp_path / "copied" / name)
    return tmp_path / "copied"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of two short epochs, written with absolute paths."""
    folder = tmp_path_factory.mktemp("short")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert (
            main(
                short_run(
                    folder, "--model.penalties", PENALTIES, *LOG, f"--trainer.callbacks+={TIMER}"
                )
            )
            == 0
        )
    return folder / "run"


# Every entry of the repository


def test_the_zoo_of_the_repository_is_found(monkeypatch):
    monkeypatch.delenv("SSL_ZOO_DIR", raising=False)
    assert {NAME, OTHER} <= set(zoo.list_models())
    assert zoo.list_models() == ENTRIES


def find_data(name, monkeypatch):
    """Point at the complete data sets, or skip if the entry needs them and they are not here."""
    if zoo.card(name).data.name == "mnist":
        return
    if shared_data() is None:
        pytest.skip("needs the complete data sets: set SSL_DATA_DIR to their folder")
    monkeypatch.setenv("SSL_DATA_DIR", str(shared_data()))


@pytest.mark.parametrize("name", ENTRIES)
def test_every_figure_of_every_entry_is_measured_again(name, monkeypatch):
    find_data(name, monkeypatch)
    card, checks = zoo.card(name), zoo.verify(name, latency=False)
    unstored = [] if card.weights.unstored is None else ["groups left", "test error %"]
    assert [check.what for check in checks if not check.ok] == unstored
    whats = " ".join(check.what for check in checks)
    for what in ("MACs", "parameters", "test error", "groups", "penalties"):
        assert what in whats


@pytest.mark.parametrize("name", ENTRIES)
def test_the_layers_of_a_card_add_up(name):
    """Whatever a layer is wrapped in, its multiply-adds are told under its name."""
    card = zoo.card(name)
    assert sum(compact for compact, _ in card.layer_macs.values()) == card.compact.macs
    assert sum(dense for _, dense in card.layer_macs.values()) == card.dense.macs


@pytest.mark.parametrize("name", ENTRIES)
def test_every_entry_is_small_and_names_no_place_of_a_machine(name):
    folder = ZOO / name
    assert {path.name for path in folder.iterdir()} == {CARD, *zoo.card(name).files}
    large = zoo.card(name).data.name == "imagenette"  # 8 images of 227 pixels are 5 MB
    size = sum(path.stat().st_size for path in folder.iterdir())
    assert size < (46_000_000 if large else 2_000_000)
    for file in (CARD, CONFIG, PAGE):
        text = (folder / file).read_text()
        assert not [word for word in text.split() if word.strip("\"'").startswith("/")]


@pytest.mark.parametrize("name", ENTRIES)
def test_a_published_config_needs_no_checkpoint_of_the_run(name):
    """`fit --config` on it must start anew on any machine, though the run was perhaps resumed."""
    config = yaml.safe_load((ZOO / name / CONFIG).read_text())
    assert config.get("ckpt_path") is None


@pytest.mark.parametrize("name", ENTRIES)
def test_the_golden_batch_is_real_test_images(name, monkeypatch):
    card = zoo.card(name)
    if card.weights.unstored is not None:
        pytest.skip("an entry without weights has no golden outputs")
    find_data(name, monkeypatch)
    golden = parse_tensors((ZOO / name / GOLDEN).read_bytes())
    data = open_test_split(card.data, golden["input"].shape[1:])
    images = next(iter(data.test_dataloader()))[0][:8]
    torch.testing.assert_close(golden["input"], images)


@pytest.mark.parametrize("name", ENTRIES)
def test_the_table_of_the_readme_shows_the_cards(name):
    card = zoo.card(name)
    row = next(
        r for r in (ROOT / "README.md").read_text().splitlines() if r.startswith(f"| {name} |")
    )
    assert f"{card.test_error:.2f} %" in row
    assert f"{card.compact.macs:,}" in row
    assert f"{card.compact.num_parameters:,}" in row


# Loading


def test_a_loaded_network_can_be_trained_on():
    model = zoo.load(NAME)
    assert not model.training
    before = model.conv1.weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.nn.functional.cross_entropy(model(torch.randn(4, 1, 28, 28)), torch.arange(4)).backward()
    optimizer.step()
    assert not torch.equal(before, model.conv1.weight)


def test_without_weights_the_architecture_is_the_same():
    torch.manual_seed(0)
    trained, fresh = zoo.load(NAME), zoo.load(NAME, pretrained=False)
    assert str(trained) == str(fresh)
    assert str(fresh) != str(create_backbone("lenet"))
    assert not torch.equal(trained.conv1.weight, fresh.conv1.weight)


# Where entries are looked up


def test_root_beats_the_variable_beats_the_checkout(copied, monkeypatch, tmp_path):
    shutil.rmtree(copied / OTHER)
    monkeypatch.setenv("SSL_ZOO_DIR", str(copied))
    assert zoo.list_models() == [NAME]
    assert zoo.list_models(ZOO) == ENTRIES
    monkeypatch.setenv("SSL_ZOO_DIR", str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="Correct SSL_ZOO_DIR"):
        zoo.list_models()


def test_an_installation_without_entries_says_so(monkeypatch, tmp_path):
    monkeypatch.delenv("SSL_ZOO_DIR", raising=False)
    monkeypatch.setattr("ssl_lightning.zoo.entries.CHECKOUT", tmp_path)
    with pytest.raises(FileNotFoundError, match="brings no entries along"):
        zoo.list_models()
    monkeypatch.setattr("ssl_lightning.zoo.entries.PACKAGED", ZOO)
    assert zoo.list_models() == ENTRIES


@pytest.mark.parametrize(
    "name", ["../x", f"../zoo/{NAME}", str(ZOO / NAME), "a/b", "a\\b", "", ".", "..", ".hidden"]
)
def test_names_that_leave_the_folder_are_refused(name, tmp_path):
    for use in (zoo.card, zoo.load, zoo.verify, zoo.upgrade):
        with pytest.raises(ValueError, match="Cannot be the name of a zoo entry"):
            use(name)
    with pytest.raises(ValueError, match="Cannot be the name of a zoo entry"):
        zoo.publish(tmp_path, name, tmp_path)


def test_unknown_names_get_the_nearest():
    with pytest.raises(ValueError, match=r"Did you mean.* lenet_mnist_shape"):
        zoo.load("lenet_mnist_shap")


# Damage


@pytest.mark.parametrize("file", [CARD, *REQUIRED])
def test_damage_is_detected_before_anything_is_parsed(file, copied, monkeypatch):
    def parse(*_, **__):
        raise AssertionError("damaged files must not be parsed")

    monkeypatch.setattr("ssl_lightning.zoo.loading.build", parse)
    path = copied / NAME / file
    whole = path.read_bytes()
    last = len(whole) - 1
    for position in sorted({0, 1, last - 1, last, *(last * i // 8 for i in range(8))}):
        for bit in (1, 32):
            flipped = bytearray(whole)
            flipped[position] ^= bit
            path.write_bytes(flipped)
            with pytest.raises(ValueError, match=f"{file}.*(damaged|edited)|schema"):
                zoo.load(NAME, root=copied)
    path.write_bytes(whole)
    with pytest.raises(AssertionError):
        zoo.load(NAME, root=copied)


def test_a_truncated_or_missing_card_is_named(copied):
    path = copied / NAME / CARD
    whole = path.read_bytes()
    for content in (whole[:-1], whole[:100], b"", b"[" * 100_000, b"[]", b"\xff"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"card\.json is damaged or was edited"):
            zoo.card(NAME, root=copied)
    path.unlink()
    with pytest.raises(ValueError, match=f"Unknown zoo entry '{NAME}'"):
        zoo.card(NAME, root=copied)


def test_renamed_entries_are_named(copied):
    (copied / NAME).rename(copied / "mine")
    with pytest.raises(ValueError, match=f"card of '{NAME}', not of 'mine'"):
        zoo.load("mine", root=copied)


def test_a_forged_card_is_found_out_by_measuring(copied):
    """With digest and hashes in order, wrong figures still differ from the measured ones."""
    path = copied / NAME / CARD
    fields = zoo.card(NAME).to_dict()
    del fields["digest"]
    fields["test_error"] -= 0.1
    fields["seeds"][0]["test_error"] -= 0.1
    fields["compact"]["macs"] -= 1
    fields["seeds"][0]["macs"] -= 1
    fields["groups"]["conv1"]["filters"][0] -= 1
    fields["seed"] -= 1  # the published seed is the first
    fields["seeds"][0]["seed"] -= 1
    path.write_bytes(serial({**fields, "digest": digest(fields)}))
    wrong = {check.what for check in zoo.verify(NAME, copied, latency=False) if not check.ok}
    assert wrong == {"test error %", "MACs, compact", "groups left", "seed"}
    assert main(["zoo", "verify", NAME, "--root", str(copied), "--latency=false"]) == 1


# The card's contract


def forged(**changes):
    """A card's fields with changes, under a digest that belongs to them."""
    fields = zoo.card(NAME).to_dict()
    del fields["digest"]
    for key, value in changes.items():
        if value is None:
            del fields[key]
        else:
            fields[key] = value
    return {**fields, "digest": digest(fields)}


def test_a_card_survives_the_trip():
    card = zoo.card(NAME)
    assert Card.from_dict(json.loads(card.to_bytes())) == card
    assert Card.from_dict(card.to_dict()) == card


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test_error": None}, "missing: test_error"),
        ({"files": None}, "missing: files"),
        ({"latencies": 3}, "unknown: latencies"),
        ({"latency": 3}, "card.latency: expected list or tuple, got 3"),
        ({"schema": SCHEMA + 1}, rf"expected {SCHEMA}, got {SCHEMA + 1}"),
        ({"schema": None}, rf"expected {SCHEMA}, got None"),
        ({"seed": "0"}, "card.seed: expected int"),
        ({"test_error": 101}, "percent from 0 to 100"),
        ({"test_error": 1}, "median validation error"),
        ({"compact": {"macs": 1, "num_parameters": 1}}, "median validation error.* got SeedRes"),
        ({"controls": [], "unmeasured": {}}, "expected a reason for controls, got none"),
        ({"seeds": []}, "expected at least one run"),
        ({"controls": [{"kind": "luck", "seeds": []}]}, "expected magnitude, random, small_dense"),
        ({"schema": 1}, "expected 3, got 1, which had no seeds"),
        ({"schema": 2}, "expected 3, got 2, which did not say how weights are stored"),
        ({"weights": {"dtype": "int8", "unstored": None}}, "expected float32, float16, bfloat16"),
        (
            {"weights": {"dtype": "float32", "unstored": {"sha256": "", "num_bytes": 1}}},
            "card.files: expected plan.json, config.yaml, README.md and perhaps .* got README.md",
        ),
        ({"name": "../x"}, "Cannot be the name"),
        ({"files": {"../x": {"sha256": "", "num_bytes": 1}}}, "card.files: expected"),
        ({"groups": {"conv1": {"filters": [21, 20]}}}, "card.groups.conv1.filters"),
    ],
)
def test_impossible_cards_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Card.from_dict(forged(**changes))


def test_no_card_and_a_wrong_digest_are_refused():
    with pytest.raises(ValueError, match=r"card\.schema"):
        Card.from_dict([])
    with pytest.raises(ValueError, match=r"card\.digest"):
        Card.from_dict({**forged(), "digest": "0" * 64})


# Publishing


def test_publish_measures_and_verifies(run, tmp_path):
    folder = zoo.publish(run, "short", tmp_path, {"row": "none"})
    assert sorted(path.name for path in tmp_path.iterdir()) == [PAGE, "short"]
    assert {path.name for path in folder.iterdir()} == {CARD, *FILES}
    assert all(check.ok for check in zoo.verify("short", tmp_path, latency=False))
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
        zoo.publish(run, "short", tmp_path)
    assert (folder / CARD).read_bytes() == before


def test_nothing_is_left_when_measuring_fails(run, tmp_path, monkeypatch):
    def fail(*_):
        raise ValueError("no test split")

    monkeypatch.setattr(publishing, "measure_size", fail)
    with pytest.raises(ValueError, match="no test split"):
        zoo.publish(run, "short", tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []


@pytest.fixture
def spoilt(run, tmp_path):
    """A copy of the run, to be spoilt."""
    return Path(shutil.copytree(run, tmp_path / "spoilt"))


def edit_config(folder: Path, old: str, new: str) -> None:
    text = (folder / CONFIG).read_text()
    assert old in text
    (folder / CONFIG).write_text(text.replace(old, new))


def test_unfinished_and_foreign_runs_are_refused(spoilt, run, tmp_path):
    def refused(error, message):
        with pytest.raises(error, match=message):
            zoo.publish(spoilt, "short", tmp_path / "new")
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


# The command line


def test_list_and_show_tell_the_figures(capsys):
    card = zoo.card(NAME)
    for arguments in (["list"], ["show", NAME]):
        assert main(["zoo", *arguments]) == 0
        out = capsys.readouterr().out
        assert NAME in out
        assert f"{card.test_error:.2f}" in out
    assert "4/20 filters" in out


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


def test_wrong_use_is_named(capsys):
    assert main(["zoo", "verfy"]) == 1
    assert "Did you mean verify" in capsys.readouterr().err
    assert main(["zoo", "show", "../x"]) == 1
    assert "Cannot be the name" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        main(["zoo"])
    assert stop.value.code == 2


# Pages: generated, and never edited by hand


def test_the_table_of_the_zoo_is_that_of_the_cards():
    assert (ZOO / PAGE).read_text() == table_page(zoo.card(name) for name in ENTRIES)


@pytest.mark.parametrize("name", ENTRIES)
def test_every_page_is_that_of_its_card(name):
    """After a change of the pages: `ssl-lightning zoo upgrade` writes them anew."""
    assert (ZOO / name / PAGE).read_text() == entry_page(zoo.card(name))


@pytest.mark.parametrize("name", ENTRIES)
def test_every_page_is_a_model_card(name):
    from huggingface_hub import ModelCard

    data = ModelCard.load(ZOO / name / PAGE).data
    card = zoo.card(name)
    assert (data.license, data.datasets, data.metrics) == (
        "apache-2.0",
        [card.data.name],
        ["accuracy"],
    )
    (result,) = data.eval_results
    assert result.metric_value == pytest.approx(100 - card.test_error)


def test_pages_of_cards_with_everything(published):
    card = zoo.card("both", published)
    page = entry_page(card)
    for title in ("Latency", "Seeds", "Controls", "Training"):
        assert f"## {title}" in page
    assert "plain magnitude pruning" in page
    assert "![Error and sparsity per epoch](curves.png)" in page
    assert "Training took" in page
    assert "## Not measured" not in page
    assert "goal missed" in page
    kinds = {
        ("filter", "shape"): "trained with group lasso and compacted",
        ("l1",): "trained with l1 on single weights and compacted",
        ("l1", "filter"): "trained with group lasso and l1 on single weights and compacted",
    }
    for given, sentence in kinds.items():
        penalties = tuple({"kind": kind, "strength": 1e-3} for kind in given)
        assert f"on mnist, {sentence}: a plain" in entry_page(
            dataclasses.replace(card, penalties=penalties)
        )


def test_a_dense_network_is_an_entry_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoint = {"dirpath": str(tmp_path / "run/checkpoints"), "save_last": True}
    callbacks = [
        {"class_path": "SaveCompact"},
        {"class_path": "ModelCheckpoint", "init_args": checkpoint},
    ]
    dense = ("--model.penalties", "[]", "--trainer.callbacks", json.dumps(callbacks))
    assert main(short_run(tmp_path, *dense, *LOG)) == 0
    zoo.publish("run", "dense", "zoo")
    card = zoo.card("dense", "zoo")
    assert card.compact == card.dense
    assert card.unmeasured["step_cost"] == "the run has no penalties"
    assert "trained densely" in entry_page(card)
    assert all(check.ok for check in zoo.verify("dense", "zoo", latency=False))


def test_the_picture_shows_the_filters_that_were_kept(spoilt, tmp_path, monkeypatch):
    path = spoilt / "checkpoints" / "last.ckpt"
    content = torch.load(path, weights_only=True)
    content["callbacks"]["FilterPictures"] = {"before": torch.ones(20, 1, 5, 5)}
    torch.save(content, path)
    drawn = []
    monkeypatch.setattr(publishing, "filter_pictures", lambda panels, _: drawn.append(panels))
    publishing.write_filters(publishing.first_filters(read_run(spoilt)), tmp_path)
    assert list(drawn[0]) == ["before", "compact"]
    assert (drawn[0]["before"] == 1).all()


# Weights in half precision, or none


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_what_all_figures_are_of(run, tmp_path, dtype):
    full = zoo.publish(run, "full", tmp_path)
    half = zoo.publish(run, "half", tmp_path, dtype=dtype)
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
    assert all(check.ok for check in zoo.verify("half", tmp_path, latency=False))
    assert f"Weights are stored in {dtype}" in entry_page(card)
    module = SSLLightningModule("zoo:half", {"root": str(tmp_path)})
    assert module.backbone.conv1.weight.dtype == torch.float32


def test_an_unknown_type_is_refused(run, tmp_path):
    with pytest.raises(ValueError, match="expected float32, float16, bfloat16, got 'int8'"):
        zoo.publish(run, "half", tmp_path / "new", dtype="int8")
    assert not (tmp_path / "new").exists()


@pytest.fixture(scope="module")
def unstored(run, tmp_path_factory):
    """A zoo with an entry that keeps no weights."""
    root = tmp_path_factory.mktemp("unstored")
    arguments = ["--name", "card", "--root", str(root), "--weights=false"]
    assert main(["zoo", "publish", str(run), *arguments]) == 0
    return root


def test_an_entry_without_weights_keeps_all_but_them(run, unstored):
    card = zoo.card("card", unstored)
    assert {p.name for p in (unstored / "card").iterdir()} == {CARD, *FILES} - {MODEL, GOLDEN}
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
    checks = zoo.verify("card", unstored, latency=False)
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


# AlexNet beside the paper's Table 4

SIZES = ((96, 363), (256, 2400), (384, 2304), (384, 3456), (256, 3456))
GROUPS = {
    f"conv{i + 1}": {
        "filters": [round(filters * (1 - TABLE4[2].rows[i] / 100)), filters],
        "columns": [round(columns * (1 - TABLE4[2].columns[i] / 100)), columns],
    }
    for i, (filters, columns) in enumerate(SIZES)
}


def speedup_record(factor=1.0):
    """A record as `measure_sparse` returns it, of made-up times."""

    def fake(title, cases):
        rows = tuple(
            SparseRow(c.configuration, c.layer, c.form, c.row_sparsity, c.column_sparsity, 1, 1,
                      "onednn", 1.0, 1.0, factor * (2.0 + i), 0.1, 3.0 + i, c.paper, {}, 0, 0)
            for i, c in enumerate(cases)
        )  # fmt: skip
        machine = zoo.card(NAME).latency[0].machine
        return SparseRecord(title, "float32", machine, "avx512", {}, rows)

    return fake


def test_speedups_are_taken_at_the_sparsities_of_the_network(monkeypatch):
    seen = []
    monkeypatch.setattr(timing, "measure_sparse", lambda title, cases: seen.extend(cases))
    timing.measure_speedups(timing.zero_groups(GROUPS), 2)
    for case, rows, columns, paper in zip(
        seen, TABLE4[2].rows, TABLE4[2].columns, TABLE4[2].speedups, strict=True
    ):
        assert case.row_sparsity == pytest.approx(rows / 100, abs=0.006)
        assert case.column_sparsity == pytest.approx(columns / 100, abs=0.006)
        assert (case.form, case.paper) == ("columns", paper)
    with pytest.raises(ValueError, match="Unknown configuration of Table 4 '7'"):
        timing.measure_speedups(timing.zero_groups(GROUPS), 7)
    dense = {layer: {k: [of, of] for k, (_, of) in g.items()} for layer, g in GROUPS.items()}
    assert timing.measure_speedups(timing.zero_groups(dense), 2) is None


def test_single_zeros_are_timed_as_csr_beside_the_l1_row(monkeypatch):
    """Publishing counts them in the masked network; verifying takes the card's shares."""
    net = create_backbone("alexnet", num_classes=10)
    with torch.no_grad():
        for share, layer in zip((0.0, 0.9, 0.95, 0.8, 0.75), timing.LAYERS, strict=True):
            weight = net.get_parameter(f"{layer}.weight").view(-1)
            weight[: round(share * weight.numel())] = 0
    monkeypatch.setattr(timing, "measure_sparse", speedup_record())
    card = dataclasses.replace(zoo.card(NAME), backbone="alexnet", arguments={"num_classes": 10})
    record = publishing.speedups_of(card, 1, lambda: net)
    found = [(r.form, r.row_sparsity, round(r.column_sparsity, 3), r.paper) for r in record.rows]
    shares = (0.0, 0.9, 0.95, 0.8, 0.75)
    assert found == [("csr", 0.0, s, p) for s, p in zip(shares, TABLE4[1].speedups, strict=True)]
    card = dataclasses.replace(card, groups={}, layer_speedups=record)
    seen = []
    fake = speedup_record()
    monkeypatch.setattr(timing, "measure_sparse", lambda t, c: seen.append(c) or fake(t, c))
    assert {c.verdict for c in verifying.check_speedups(card)} == {"ok"}
    assert [c.column_sparsity for c in seen[0]] == [r.column_sparsity for r in record.rows]
    page = entry_page(dataclasses.replace(card, groups=GROUPS))
    assert "| layer | row % | weight % | limit, x |" in page
    assert "paper #1: weight %" in page
    assert "Weight %: single weights that are zero" in page


def test_the_page_shows_the_paper_beside_and_verify_times_again(monkeypatch):
    monkeypatch.setattr(timing, "measure_sparse", speedup_record())
    record = timing.measure_speedups(timing.zero_groups(GROUPS), 2)
    card = dataclasses.replace(zoo.card(NAME), groups=GROUPS, layer_speedups=record)
    assert Card.from_dict(json.loads(card.to_bytes())) == card
    page = entry_page(card)
    (line,) = [row for row in page.splitlines() if row.startswith("| `conv4` |")
               and "onednn" in row]  # fmt: skip
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells == ["`conv4`", "46.9", "84.7", "6.00", "**5.00** ± 0.10", "onednn",
                     "46.9", "84.7", "12.31", "9.73"]  # fmt: skip
    (mean,) = [row for row in page.splitlines() if row.startswith("| mean |")]
    assert "| **4.00** |" in mean
    assert "| 5.80 | 5.07 |" in mean
    for factor, verdict in ((1.2, "ok"), (0.6, "DIFFERS")):
        monkeypatch.setattr(timing, "measure_sparse", speedup_record(factor))
        assert {c.verdict for c in verifying.check_speedups(card)} == {verdict}
    assert "Table 4" not in entry_page(zoo.card(NAME))


def test_alexnet_is_published_with_its_speedups(monkeypatch):
    seen = []
    monkeypatch.setattr(publishing, "measure_speedups", lambda *given: seen.append(given))
    card = dataclasses.replace(zoo.card(NAME), groups=GROUPS)
    for backbone, arguments, number, measured in (
        ("lenet", {}, 2, False),
        ("alexnet", {"geometry": "torchvision"}, 2, False),
        ("alexnet", {"num_classes": 10}, 2, True),
        ("alexnet", {"geometry": "caffenet"}, 5, True),
    ):
        seen.clear()
        of = dataclasses.replace(card, backbone=backbone, arguments=arguments)
        publishing.speedups_of(of, number, lambda: None)
        assert seen == ([(timing.zero_groups(GROUPS), number)] if measured else [])


def test_an_unknown_row_of_the_paper_is_refused_before_anything_is_measured(
    run, tmp_path, monkeypatch
):
    monkeypatch.setattr(publishing, "measure_run", lambda *_: pytest.fail("measured"))
    for number in (3, "many"):
        with pytest.raises(ValueError, match=f"Unknown configuration of Table 4 '{number}'"):
            zoo.publish(run, "new", tmp_path / "zoo", paper={"table4": number})
    assert not (tmp_path / "zoo").exists()


# Several seeds and controls


def seeded(run: Path, folder: Path, seed: int) -> Path:
    """A copy of a run under another seed, whose compact network has other weights."""
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


@pytest.fixture(scope="module")
def seeds(run, tmp_path_factory):
    """Three runs that differ in their seeds."""
    folder = tmp_path_factory.mktemp("seeds")
    return [run, *(seeded(run, folder / f"seed{seed}", seed) for seed in (1, 2))]


@pytest.fixture(scope="module")
def published(seeds, tmp_path_factory):
    """A zoo with one entry that has all a card can have."""
    root = tmp_path_factory.mktemp("zoo")
    paper = {"row": "LeNet 2", "error": 0.8, "filters": {"conv1": 5, "conv2": 19}}
    controls = {"magnitude": seeds[1:], "small_dense": seeds[:1]}
    zoo.publish(seeds, "both", root, paper, controls, remark="One goal missed.")
    return root


def test_the_median_seed_is_published(seeds, published):
    card = zoo.card("both", published)
    data = MNISTDataModule(num_validation=2000)
    errors = [measure_error(load_compact(run / "compact"), data.val_dataloader()) for run in seeds]
    assert [result.validation_error for result in card.seeds] == errors
    assert card.validation_error == sorted(errors)[1]
    assert card.seed == errors.index(sorted(errors)[1])
    model = zoo.load("both", root=published)
    assert card.test_error == measure_error(model, data.test_dataloader())
    assert {c.kind: [r.seed for r in c.seeds] for c in card.controls} == {
        "magnitude": [1, 2],
        "small_dense": [0],
    }
    assert card.controls[1].seeds == card.seeds[:1]
    assert card.training_seconds > 0
    assert card.step_cost.batch_size == 64
    assert [record.batch_size for record in card.latency] == [1, 64]


@pytest.mark.parametrize(
    ("errors", "seed"), [([0.7], 0), ([0.7, 0.8], 0), ([0.8, 0.7, 0.7], 1), ([0.9, 0.7, 0.8], 2)]
)
def test_of_equal_medians_the_lowest_seed_counts(errors, seed):
    results = [SeedResult(i, error, 1.0, 1, 1) for i, error in enumerate(errors)]
    assert median_result(results).seed == median_result(results[::-1]).seed == seed


def set_strength(folder: Path, old: float, new: float) -> None:
    """Let a run's config and checkpoint tell of another strength."""
    edit_config(folder, f"strength: {old}", f"strength: {new}")
    path = folder / "checkpoints" / "last.ckpt"
    content = torch.load(path, weights_only=True)
    content["hyper_parameters"]["penalties"][0]["strength"] = new
    torch.save(content, path)


def test_runs_that_do_not_belong_together_are_refused(seeds, tmp_path):
    root = tmp_path / "new"
    with pytest.raises(ValueError, match=r"different seeds, got the seeds \[0, 0\]"):
        zoo.publish([seeds[0], seeds[0]], "x", root)
    other = Path(shutil.copytree(seeds[1], tmp_path / "other"))
    edit_config(other, str(seeds[1]), "runs/x")
    set_strength(other, 0.001, 0.002)
    with pytest.raises(
        ValueError,
        match=r"differ in `model\.penalties\[0\]\.strength` \(0\.001 and 0\.002\)\. Only seeds",
    ):
        zoo.publish([seeds[0], other], "x", root)
    set_strength(other, 0.002, 0.001)
    edit_config(other, "threshold: 0.95", "threshold: 0.9")
    with pytest.raises(ValueError, match=r"`trainer\..*threshold` \(0\.95 and 0\.9\)\. Only"):
        zoo.publish([seeds[0], other], "x", root)
    edit_config(other, "num_validation: 2000", "num_validation: 1000")
    with pytest.raises(ValueError, match=r"`data\..*num_validation` \(1000 and 2000\)\. Train"):
        zoo.publish(seeds[0], "x", root, controls={"random": [other]})
    with pytest.raises(ValueError, match="Unknown kind of control 'luck'"):
        zoo.publish(seeds[0], "x", root, controls={"luck": [seeds[0]]})
    with pytest.raises(ValueError, match=r"different seeds, got the seeds \[\]"):
        zoo.publish(seeds[0], "x", root, controls={"random": []})
    assert not root.exists() or not list(root.iterdir())


def test_publish_takes_runs_and_controls_on_the_command_line(seeds, tmp_path, capsys):
    runs = [str(run) for run in seeds]
    arguments = ["--name", "cli", "--root", str(tmp_path / "zoo")]
    controls = ["--controls", f"magnitude={runs[1]},{runs[2]}", f"random={runs[0]}"]
    assert main(["zoo", "publish", *runs, *arguments, *controls]) == 0
    assert "control, random, seed 0" in capsys.readouterr().out
    assert main(["zoo", "publish", *runs, *arguments]) == 1
    assert "exists already" in capsys.readouterr().err
    assert main(["zoo", "publish", *runs, *arguments, "--controls", "random"]) == 1
    assert "expected KIND=RUN,RUN" in capsys.readouterr().err


def test_controls_are_added_to_a_published_entry(seeds, published, tmp_path, capsys):
    root = tmp_path / "zoo"
    shutil.copytree(published, root)
    before, runs = zoo.card("both", root), [str(run) for run in seeds]
    given = [f"random={runs[0]},{runs[2]}", f"magnitude={runs[0]}"]
    assert main(["zoo", "control", "both", *given, "--root", str(root)]) == 0
    assert "control, random, seed 2" in capsys.readouterr().out
    after = zoo.card("both", root)
    assert {c.kind: [r.seed for r in c.seeds] for c in after.controls} == {
        "small_dense": [0],  # as it was
        "random": [0, 2],  # new
        "magnitude": [0],  # in place of the old ones
    }
    assert after.controls[1].seeds[1] in before.seeds
    changed = {file for file in after.files if after.files[file] != before.files[file]}
    assert changed == {"README.md"}
    assert "random groups" in (root / "both" / "README.md").read_text().lower()
    same = dataclasses.replace(after, controls=before.controls, files=before.files)
    assert same == before
    assert not [path for path in root.iterdir() if path.name.startswith(".")]


def test_controls_that_do_not_fit_leave_the_entry(seeds, published, spoilt, run, tmp_path):
    root = tmp_path / "zoo"
    shutil.copytree(published, root)
    before = (root / "both" / "card.json").read_bytes()
    edit_config(spoilt, str(run), "runs/x")
    edit_config(spoilt, "num_validation: 2000", "num_validation: 1000")
    for controls, message in [
        ({"random": [spoilt]}, "Cannot compare .* with both: their configs differ in `data"),
        ({"luck": seeds[:1]}, "Unknown kind of control 'luck'"),
        ({}, "expected runs of controls for both, got none"),
    ]:
        with pytest.raises(ValueError, match=message):
            zoo.add_controls("both", controls, root)
    with pytest.raises(ValueError, match="Unknown zoo entry 'bith'"):
        zoo.add_controls("bith", {"random": seeds[:1]}, root)
    assert (root / "both" / "card.json").read_bytes() == before


def test_configs_without_a_younger_option_are_compared_by_its_default(
    seeds, published, spoilt, run, tmp_path
):
    root = tmp_path / "zoo"
    shutil.copytree(published, root)
    edit_config(spoilt, str(run), "runs/x")
    edit_config(spoilt, "cutout: 0", "num_workers: 0")  # said twice, so `cutout` not at all
    assert "cutout" not in (spoilt / "config.yaml").read_text()
    zoo.add_controls("both", {"random": [spoilt]}, root)
    other = Path(shutil.copytree(seeds[1], tmp_path / "other"))
    edit_config(other, str(seeds[1]), "runs/x")
    edit_config(other, "cutout: 0", "num_workers: 0")
    zoo.publish([seeds[0], other], "together", root)
    edit_config(spoilt, "augment: true", "augment: true\n    cutout: 2")
    with pytest.raises(ValueError, match=r"differ in `data\.init_args\.cutout` \(2 and 0\)\."):
        zoo.add_controls("both", {"random": [spoilt]}, root)


def test_each_seed_may_start_from_the_dense_run_of_its_own(seeds, tmp_path):
    runs = [Path(shutil.copytree(seed, tmp_path / seed.name)) for seed in seeds[:2]]
    for run, seed in zip(runs, seeds, strict=False):
        edit_config(run, str(seed), f"runs/{run.name}")
        edit_config(run, "model:\n", f"model:\n  init_from: runs/dense-{run.name}/last.ckpt\n")
    zoo.publish(runs, "both", tmp_path / "zoo")
    assert [result.seed for result in zoo.card("both", tmp_path / "zoo").seeds] == [0, 1]


# Curves


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
    zoo.publish(spoilt, "mute", tmp_path / "zoo")
    card = zoo.card("mute", tmp_path / "zoo")
    assert "metrics.csv" in card.unmeasured["curves"]
    assert CURVES not in card.files
    assert "- curves: " in entry_page(card)


# Verifying what is not wholly here


def test_absent_data_has_a_status_of_its_own(copied, monkeypatch, capsys):
    def absent(*_):
        raise FileNotFoundError("Cannot load MNIST.")

    monkeypatch.setattr(verifying, "open_test_split", absent)
    assert main(["zoo", "verify", NAME, "--root", str(copied), "--latency=false"]) == 3
    out, err = capsys.readouterr()
    assert "not measured" in out
    assert f"{NAME} was not wholly measured: test images, test error %. Cannot load MNIST." in err
    (copied / OTHER / GOLDEN).write_bytes(b"")
    assert main(["zoo", "verify", "--all", "--root", str(copied), "--latency=false"]) == 1
    out, err = capsys.readouterr()
    assert NAME in out
    assert f"{GOLDEN} has 0 bytes" in err


def test_verify_wants_a_name_or_all(capsys):
    for arguments in ([], [NAME, "--all"]):
        assert main(["zoo", "verify", *arguments]) == 1
        assert "expected the name of an entry or `--all`" in capsys.readouterr().err


def test_latency_is_compared_by_ratios(published, monkeypatch):
    record = zoo.card("both", published).latency[0]
    timed = dataclasses.replace(record, ratio={"dense": 1.0, "masked": 1.0, "compact": 3.0})
    monkeypatch.setattr(verifying, "measure_latency", lambda *_: timed)
    verdicts = {c.what: c.verdict for c in zoo.verify("both", published) if "latency" in c.what}
    assert verdicts["latency ratio compact/dense, batch 1"] == "DIFFERS"
    assert len(verdicts) == 4
    monkeypatch.setattr(verifying.os, "cpu_count", lambda: 0)
    rows = [c for c in zoo.verify("both", published) if "latency" in c.what]
    assert {c.verdict for c in rows} == {"not measured"}
    assert "this machine has 0" in rows[0].reason


def test_the_three_networks_of_an_entry_are_timed_as_its_card_says(monkeypatch):
    card = zoo.card(NAME)
    records = {record.batch_size: record for record in card.latency}
    x, asked = torch.randn(4, 1, 28, 28), []

    def timed(models, batch_size, threads, rounds):
        asked.append((batch_size, threads, rounds))
        dense, masked, compact = (models[name].eval() for name in ("dense", "masked", "compact"))
        sizes = [num_parameters(network) for network in (dense, masked, compact)]
        assert sizes == [card.dense.num_parameters] * 2 + [card.compact.num_parameters]
        torch.testing.assert_close(compact(x), masked(x), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(compact(x), dense(x), rtol=1e-2, atol=1e-2)
        return records[batch_size]

    monkeypatch.setattr(verifying, "measure_latency", timed)
    rows = [c for c in zoo.verify(NAME) if "latency" in c.what]
    assert asked == [(r.batch_size, r.threads, r.num_rounds) for r in records.values()]
    assert [row.verdict for row in rows] == ["ok"] * 4


# Entries of schema 1


@pytest.fixture
def older(tmp_path):
    """A zoo with an entry as schema 1 stored it."""
    folder = tmp_path / "older" / NAME
    shutil.copytree(ZOO / NAME, folder)
    fields = zoo.card(NAME).to_dict()
    files = {f: fields["files"][f] for f in upgrading.OLD_FILES}
    same = ("name", "backbone", "arguments", "data", "validation_error", "test_error", "seed")
    same += ("epochs", "penalties", "groups", "dense", "compact", "licence", "paper")
    old = {"schema": 1, **{key: fields[key] for key in same}, "files": files}
    (folder / CARD).write_bytes(serial({**old, "digest": digest(old)}))
    for file in set(FILES) - set(files):
        (folder / file).unlink(missing_ok=True)
    return folder.parent


def test_older_entries_are_refused_and_upgraded(older, monkeypatch):
    data = shared_data()
    with pytest.raises(ValueError, match=r"expected 3, got 1.*`ssl-lightning zoo upgrade NAME`"):
        zoo.load(NAME, root=older)
    if data is None:
        pytest.skip("needs the complete data sets: set SSL_DATA_DIR to their folder")
    monkeypatch.setenv("SSL_DATA_DIR", str(data))
    before = {f: (older / NAME / f).read_bytes() for f in upgrading.OLD_FILES}
    zoo.upgrade(NAME, older)
    assert {f: (older / NAME / f).read_bytes() for f in upgrading.OLD_FILES} == before
    card, ours = zoo.card(NAME, older), zoo.card(NAME)
    changed = {"latency", "step_cost", "files"}  # measured again; older cards had one seed only
    changed |= {"seeds", "training_seconds", "unmeasured", "controls"}
    for field in set(ours.to_dict()) - changed - {"digest"}:
        assert getattr(card, field) == getattr(ours, field), field
    assert card.seeds == tuple(result for result in ours.seeds if result.seed == ours.seed)
    assert card.training_seconds is None
    assert {"controls", "curves", "training_seconds"} <= set(card.unmeasured)
    assert all(check.ok for check in zoo.verify(NAME, older, latency=False))
    assert [p.name for p in older.iterdir() if p.name not in (NAME, PAGE)] == []


@pytest.fixture
def second(tmp_path):
    """A zoo with two entries as schema 2 stored them."""
    for name in (NAME, OTHER):
        folder = tmp_path / "second" / name
        shutil.copytree(ZOO / name, folder)
        fields = zoo.card(name).to_dict()
        lost = ("digest", "schema", "weights", "layer_speedups")
        old = {"schema": 2, **{k: v for k, v in fields.items() if k not in lost}}
        (folder / CARD).write_bytes(serial({**old, "digest": digest(old)}))
    return tmp_path / "second"


def test_entries_of_schema_2_are_upgraded_without_measuring(second, monkeypatch):
    def never(*_):
        raise AssertionError

    monkeypatch.setattr(upgrading, "open_data", never)
    monkeypatch.setattr(upgrading, "latency_of", never)
    with pytest.raises(ValueError, match=r"expected 3, got 2.*`ssl-lightning zoo upgrade NAME`"):
        zoo.load(NAME, root=second)
    for name in (NAME, OTHER):
        zoo.upgrade(name, second)
        for path in (ZOO / name).iterdir():
            assert (second / name / path.name).read_bytes() == path.read_bytes(), path
    assert "lenet_mnist_shape" in (second / PAGE).read_text()
    assert sorted(path.name for path in second.iterdir()) == sorted([NAME, OTHER, PAGE])


@pytest.mark.parametrize("change", [
    lambda f: f["files"].pop(GOLDEN),
    lambda f: f["files"].update({"../x": f["files"][GOLDEN]}),
    lambda f: f.pop("seeds"),
    lambda f: f.update(code="import os"),
], ids=["missing", "outside", "no seeds", "unknown"])  # fmt: skip
def test_forged_cards_of_schema_2_are_refused(second, change):
    path = second / NAME / CARD
    fields = json.loads(path.read_bytes())
    del fields["digest"]
    change(fields)
    path.write_bytes(serial({**fields, "digest": digest(fields)}))
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"damaged or was edited|missing: seeds|unknown: code"):
        zoo.upgrade(NAME, second)
    assert path.read_bytes() == before


def test_damaged_older_entries_are_refused(older):
    path = older / NAME / CARD
    whole = path.read_bytes()
    for old, new, message in (
        (b'"seed": 0', b'"seed": 1', "digest differs"),
        (b'"schema": 1', b'"schema": 7', "expected 3, got 7"),
        (b'"schema": 1', b'"schema": ', "damaged"),
    ):
        path.write_bytes(whole.replace(old, new))
        with pytest.raises(ValueError, match=message):
            zoo.upgrade(NAME, older)
    path.write_bytes(whole)
    (older / NAME / GOLDEN).write_bytes(b"x")
    with pytest.raises(ValueError, match=f"{GOLDEN} has 1 bytes"):
        zoo.upgrade(NAME, older)
    assert path.read_bytes() == whole


def test_upgrading_the_present_schema_writes_the_page_only(copied):
    before = {p.name: p.read_bytes() for p in (copied / NAME).iterdir()}
    zoo.upgrade(NAME, copied)
    assert {p.name: p.read_bytes() for p in (copied / NAME).iterdir()} == before


# Training on from an entry


def from_zoo(folder: Path, *extra: str) -> list[str]:
    """Arguments of a short run that starts from an entry and prunes a layer further."""
    penalties = '[{"kind": "neuron_out", "layers": "fc1", "strength": 0.001}]'
    extra = ("--model.penalties", penalties, "--model.backbone", f"zoo:{NAME}", *extra)
    return short_run(folder, *extra, "--trainer.limit_train_batches=2")


def test_a_module_from_an_entry_has_its_weights_and_trains():
    torch.manual_seed(0)
    module = SSLLightningModule(f"zoo:{NAME}")
    assert module.backbone.training
    torch.testing.assert_close(module.backbone.conv1.weight, zoo.load(NAME).conv1.weight)
    assert (module.num_classes, module.input_shape) == (10, (1, 28, 28))
    fresh = SSLLightningModule(f"zoo:{NAME}", {"pretrained": False})
    assert not torch.equal(fresh.backbone.conv1.weight, module.backbone.conv1.weight)
    with pytest.raises(ValueError, match=r"has no argument 'pretraind'. Did you mean pretrained"):
        SSLLightningModule(f"zoo:{NAME}", {"pretraind": False})
    with pytest.raises(ValueError, match="Unknown zoo entry 'lenet'"):
        SSLLightningModule("zoo:lenet")
    with pytest.raises(ValueError, match=r"entry of the zoo.*zoo\.load"):
        create_backbone(f"zoo:{NAME}")


def test_fresh_weights_have_the_scale_of_their_own_number_of_inputs():
    torch.manual_seed(0)
    fresh, dense = zoo.load(NAME, pretrained=False), create_backbone("lenet")
    assert fresh.conv2.in_channels < dense.conv2.in_channels
    for model in (fresh, dense):
        fan_in = model.conv2.weight[0].numel()
        deviation = float(model.conv2.weight.detach().std())
        assert deviation * fan_in**0.5 == pytest.approx(1, rel=0.1)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """A finished run that started from an entry, with the zoo out of sight afterwards."""
    folder = tmp_path_factory.mktemp("tuned")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(from_zoo(folder, *LOG)) == 0
    return folder / "run"


def test_checkpoints_of_such_runs_are_compacted_without_the_zoo(tuned, tmp_path, monkeypatch):
    monkeypatch.setenv("SSL_ZOO_DIR", str(tmp_path / "nowhere"))
    checkpoint = str(tuned / "checkpoints" / "last.ckpt")
    assert main(["compact", checkpoint, "--output", str(tmp_path / "small")]) == 0
    small, saved = load_compact(tmp_path / "small"), load_compact(tuned / "compact")
    trained = load_backbone(checkpoint)
    assert (trained.name, trained.started_from.backbone) == (f"zoo:{NAME}", "lenet")
    x = torch.randn(4, 1, 28, 28)
    with torch.no_grad():
        for model in (small, saved):
            torch.testing.assert_close(model(x), trained.model(x))
    assert small.fc1.out_features < zoo.load(NAME, root=ZOO).fc1.out_features
    assert json.loads((tmp_path / "small" / "plan.json").read_text())["backbone"] == "lenet"


def test_such_runs_are_tested_resumed_and_published(tuned, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoint = f"--ckpt_path={tuned / 'checkpoints/last.ckpt'}"
    assert main(["test", f"--config={tuned / CONFIG}", checkpoint]) == 0
    zoo.publish(tuned, "tuned", tmp_path / "zoo")
    card = zoo.card("tuned", tmp_path / "zoo")
    assert (card.backbone, card.dense.macs) == ("lenet", 2_293_000)
    assert card.compact.macs < zoo.card(NAME, ZOO).compact.macs
    assert all(c.ok for c in zoo.verify("tuned", tmp_path / "zoo", latency=False))
    monkeypatch.setenv("SSL_ZOO_DIR", str(tmp_path / "nowhere"))
    assert main(["test", f"--config={tuned / CONFIG}", checkpoint]) == 1


def test_a_damaged_start_is_named(tuned, tmp_path):
    content = torch.load(tuned / "checkpoints" / "last.ckpt", weights_only=True)
    content["ssl_lightning"]["started_from"] = "{"
    torch.save(content, tmp_path / "bad.ckpt")
    with pytest.raises(ValueError, match=r"`started_from` in .*bad.ckpt is damaged"):
        load_backbone(tmp_path / "bad.ckpt")


# Timings


SETTINGS = {"penalties": [{"kind": "filter", "layers": "conv*", "strength": 1e-3}]}
BATCH = (torch.randn(4, 1, 28, 28), torch.arange(4))


@pytest.mark.parametrize("precision", [None, "bf16-mixed"])
@pytest.mark.parametrize("mode", ["proximal", "subgradient"])
def test_step_cost_times_both_kinds_of_step(precision, mode):
    optimizer = {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.1}}
    penalties = [{**SETTINGS["penalties"][0], "mode": mode}]
    settings = {"penalties": penalties, "optimizer": optimizer, "channels_last": True}
    threads = torch.get_num_threads()
    cost = measure_step_cost(settings, lambda: create_backbone("lenet"), BATCH, precision, rounds=2)
    assert cost.median_ms.keys() == {"without", "with"}
    assert min(cost.ratio, *cost.median_ms.values()) > 0
    assert (cost.batch_size, cost.precision.startswith("bf")) == (4, precision is not None)
    assert torch.get_num_threads() == threads


def test_a_timed_step_is_a_training_step():
    torch.manual_seed(0)
    model = create_backbone("lenet")
    with torch.no_grad():
        model.conv1.weight[3] = 1e-12
        model.conv1.bias[3] = 0
    window = {"kind": "window", "start": 5, "end": 6}
    penalties = [{**SETTINGS["penalties"][0], "schedule": window, "strength": 10.0}]
    training_step(model, penalties, {}, BATCH, mixed=False)()
    assert not model.conv1.weight[3].any()
    assert model.conv1.weight[4].all()
    assert model.conv1.weight.grad.any()


def test_what_cannot_be_timed_is_named():
    with pytest.raises(ValueError, match="has no penalties"):
        measure_step_cost({}, lambda: create_backbone("lenet"), BATCH)
    with pytest.raises(ValueError, match="Unknown optimizer 'system'"):
        create_optimizer({"class_path": "os.system"}, create_backbone("lenet"))


def test_the_page_counts_kept_rows_times_kept_columns_as_the_paper_does():
    page = entry_page(zoo.card("lenet_mnist_shape_small"))
    assert "| multiply-adds of conv1, conv2, % | 5 - 5 | - |" in page
    assert "| the same, kept rows x kept columns | 0.4 - 2.4 | 1.4 - 2.8 |" in page
    page = entry_page(zoo.card("lenet_mnist_filter_channel"))
    assert "kept rows x kept columns" not in page  # a plain network computes no more than these


@pytest.mark.parametrize("name", ENTRIES)
def test_the_table_tells_what_is_left_of_every_sparse_entry(name):
    card = zoo.card(name)
    line = next(row for row in table_page([card]).splitlines() if row.startswith("| ["))
    left = [cell.strip() for cell in line.split("|")][-3]
    if not card.penalties:
        assert left == "-"
        return
    page = entry_page(card)
    for part in left.split("; "):
        what, numbers = part.split(" ", 1)  # fails where nothing is told
        assert f"| {what} left | {numbers} | " in page


def test_where_the_paper_names_no_groups_all_layers_are_counted():
    lost = [card.layer_macs for card in map(zoo.card, ENTRIES) if card.backbone == "resnet20"]
    assert {sum(compact > 0 for compact, _ in layers.values()) for layers in lost} == {14, 18, 20}
    page = entry_page(zoo.card("resnet20_cifar10_depth14"))
    assert "| layers left | 14 of 20 | - |" in page
    assert "filters left" not in page  # the layers that are left have all of theirs
    page = entry_page(zoo.card("resnet20_cifar10_channel"))
    assert "| filters left | 615 of 698 | - |" in page
    assert "layers left" not in page
