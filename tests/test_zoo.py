"""The zoo: every published figure is measured again, and nothing damaged is ever parsed."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load as parse_tensors

from conftest import ROOT
from ssl_lightning import create_backbone, zoo
from ssl_lightning.cli import main
from ssl_lightning.data import MNISTDataModule
from ssl_lightning.zoo import publishing
from ssl_lightning.zoo.cards import CARD, CONFIG, FILES, GOLDEN, SCHEMA, Card, digest, serial
from ssl_lightning.zoo.measuring import measure_error
from test_cli import short_run

ZOO = ROOT / "zoo"
ENTRIES = sorted(path.parent.name for path in ZOO.glob("*/card.json"))
NAME = "lenet_mnist_filter_channel"
OTHER = "lenet_mnist_shape"
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
        assert main(short_run(folder, "--model.penalties", PENALTIES)) == 0
    return folder / "run"


# Every entry of the repository


def test_the_zoo_of_the_repository_is_found(monkeypatch):
    monkeypatch.delenv("SSL_ZOO_DIR", raising=False)
    assert {NAME, OTHER} <= set(zoo.list_models())
    assert zoo.list_models() == ENTRIES


@pytest.mark.parametrize("name", ENTRIES)
def test_every_figure_of_every_entry_is_measured_again(name):
    checks = zoo.verify(name)
    assert [check for check in checks if not check.ok] == []
    whats = " ".join(check.what for check in checks)
    for what in (*FILES, "MACs", "parameters", "golden", "test error", "groups", "penalties"):
        assert what in whats


@pytest.mark.parametrize("name", ENTRIES)
def test_every_entry_is_small_and_names_no_place_of_a_machine(name):
    folder = ZOO / name
    assert {path.name for path in folder.iterdir()} == {CARD, *FILES}
    assert sum(path.stat().st_size for path in folder.iterdir()) < 2_000_000
    for file in (CARD, CONFIG):
        text = (folder / file).read_text()
        assert not [word for word in text.split() if word.strip("\"'").startswith("/")]


@pytest.mark.parametrize("name", ENTRIES)
def test_the_golden_batch_is_real_test_images(name):
    golden = parse_tensors((ZOO / name / GOLDEN).read_bytes())
    data = MNISTDataModule(normalize=zoo.card(name).data.normalize)
    images = next(iter(data.test_dataloader()))[0][:8]
    torch.testing.assert_close(golden["input"], images)


@pytest.mark.parametrize("name", ENTRIES)
def test_the_table_of_the_readme_shows_the_cards(name):
    card = zoo.card(name)
    row = next(
        r for r in (ROOT / "README.md").read_text().splitlines() if r.startswith(f"| {name}")
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
    for use in (zoo.card, zoo.load, zoo.verify):
        with pytest.raises(ValueError, match="Cannot be the name of a zoo entry"):
            use(name)
    with pytest.raises(ValueError, match="Cannot be the name of a zoo entry"):
        zoo.publish(tmp_path, name, tmp_path)


def test_unknown_names_get_the_nearest():
    with pytest.raises(ValueError, match=r"Did you mean.* lenet_mnist_shape"):
        zoo.load("lenet_mnist_shap")


# Damage


@pytest.mark.parametrize("file", [CARD, *FILES])
def test_every_flipped_byte_is_detected_before_anything_is_parsed(file, copied, monkeypatch):
    def parse(*_, **__):
        raise AssertionError("damaged files must not be parsed")

    monkeypatch.setattr("ssl_lightning.zoo.loading.build", parse)
    path = copied / NAME / file
    whole = path.read_bytes()
    last = len(whole) - 1
    for position in sorted({0, 1, last - 1, last, *(last * i // 60 for i in range(60))}):
        for bit in (1, 32):
            flipped = bytearray(whole)
            flipped[position] ^= bit
            path.write_bytes(flipped)
            with pytest.raises(ValueError, match=f"{file}.*(damaged|edited)|schema"):
                zoo.load(NAME, root=copied)
    path.write_bytes(whole)
    with pytest.raises(AssertionError):
        zoo.load(NAME, root=copied)


@pytest.mark.parametrize("file", FILES)
def test_truncated_swapped_and_missing_files_are_named(file, copied):
    path = copied / NAME / file
    whole = path.read_bytes()
    for content in (whole[:-1], whole[: len(whole) // 2], b"", whole + b" "):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"{file} has {len(content)} bytes, but {len(whole)}"):
            zoo.load(NAME, root=copied)
    shutil.copy(copied / OTHER / file, path)
    with pytest.raises(ValueError, match=rf"{file} (has|is damaged or another file)"):
        zoo.verify(NAME, root=copied)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=f"{file} is missing"):
        zoo.load(NAME, root=copied, pretrained=False)


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
    fields["compact"]["macs"] -= 1
    fields["groups"]["conv1"]["filters"][0] -= 1
    fields["seed"] += 1
    path.write_bytes(serial({**fields, "digest": digest(fields)}))
    wrong = {check.what for check in zoo.verify(NAME, root=copied) if not check.ok}
    assert wrong == {"test error %", "MACs, compact", "groups left", "seed"}
    assert main(["zoo", "verify", NAME, "--root", str(copied)]) == 1


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
        ({"latency": 3}, "unknown: latency"),
        ({"schema": SCHEMA + 1}, rf"expected {SCHEMA}, got {SCHEMA + 1}"),
        ({"schema": None}, rf"expected {SCHEMA}, got None"),
        ({"seed": "0"}, "card.seed: expected int"),
        ({"test_error": 101}, "percent from 0 to 100"),
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
    assert [path.name for path in tmp_path.iterdir()] == ["short"]
    assert all(check.ok for check in zoo.verify("short", tmp_path))
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

    monkeypatch.setattr(publishing, "measure_error", fail)
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


def test_list_and_show_tell_the_figures_within_a_second(capsys):
    card = zoo.card(NAME)
    for arguments in (["list"], ["show", NAME]):
        start = time.perf_counter()
        assert main(["zoo", *arguments]) == 0
        assert time.perf_counter() - start < 1
        out = capsys.readouterr().out
        assert NAME in out
        assert f"{card.test_error:.2f}" in out
    assert "5/20 filters" in out


def test_verify_and_publish_on_the_command_line(run, tmp_path, capsys):
    root = ["--root", str(tmp_path / "zoo")]
    paper = ["--paper", '{"row": "LeNet 2", "error": 0.8}']
    assert main(["zoo", "publish", str(run), "short", *root, *paper]) == 0
    assert "LeNet 2" in capsys.readouterr().out
    assert main(["zoo", "verify", "short", *root]) == 0
    assert "DIFFERS" not in capsys.readouterr().out
    assert main(["zoo", "publish", str(run), "short", *root]) == 1
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
