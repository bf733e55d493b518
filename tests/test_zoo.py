"""Reading the zoo: entries are found, listed and loaded, and nothing damaged is ever parsed."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import yaml

from conftest import ROOT
from ssl_lightning import create_backbone, publishing, zoo
from ssl_lightning.cli import main
from ssl_lightning.zoo.cards import CARD, CONFIG, PAGE, REQUIRED, SCHEMA, Card, digest
from ssl_lightning.zoo.records import SeedResult, median_result
from zoo_runs import ENTRIES, NAME, OTHER, ZOO


def test_the_zoo_of_the_repository_is_found(monkeypatch):
    monkeypatch.delenv("SSL_ZOO_DIR", raising=False)
    assert {NAME, OTHER} <= set(zoo.list_models())
    assert zoo.list_models() == ENTRIES


@pytest.mark.parametrize("name", ENTRIES)
def test_the_layers_of_a_card_add_up(name):
    """Whatever a layer is wrapped in, its multiply-adds are told under its name."""
    card = zoo.card(name)
    assert sum(compact for compact, _ in card.layer_macs.values()) == card.compact.macs
    assert sum(dense for _, dense in card.layer_macs.values()) == card.dense.macs


@pytest.mark.parametrize("name", ENTRIES)
def test_a_card_of_a_network_that_lost_nothing_has_one_size(name):
    card = zoo.card(name)
    whole = all(left == of for kinds in card.groups.values() for left, of in kinds.values())
    if whole and not card.penalties and card.budget is None:
        assert card.compact == card.dense, "else one of them was counted at another input size"
    assert card.compact.macs <= card.dense.macs
    assert card.compact.num_parameters <= card.dense.num_parameters


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
def test_the_table_of_the_zoo_shows_the_cards(name):
    card = zoo.card(name)
    rows = (ROOT / "zoo" / "README.md").read_text().splitlines()
    row = next(r for r in rows if r.startswith(f"| [{name}]("))
    assert f" {card.test_error:.2f} |" in row
    assert f"{card.compact.macs:,}" in row
    assert f"{card.compact.num_parameters:,}" in row


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
    for use in (zoo.card, zoo.load, publishing.verify, publishing.write_page):
        with pytest.raises(ValueError, match="Cannot be the name of a zoo entry"):
            use(name)
    with pytest.raises(ValueError, match="Cannot be the name of a zoo entry"):
        publishing.publish(tmp_path, name, tmp_path)


def test_unknown_names_get_the_nearest():
    with pytest.raises(ValueError, match=r"Did you mean.* lenet_mnist_shape"):
        zoo.load("lenet_mnist_shap")


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
        ({"schema": None}, rf"expected {SCHEMA}, got none: this is no card"),
        ({"seed": "0"}, "card.seed: expected int"),
        ({"test_error": 101}, "percent from 0 to 100"),
        ({"test_error": 1}, "median validation error"),
        ({"compact": {"macs": 1, "num_parameters": 1}}, "median validation error.* got SeedRes"),
        ({"controls": [], "unmeasured": {}}, "expected a reason for controls, got none"),
        ({"seeds": []}, "expected at least one run"),
        ({"controls": [{"kind": "luck", "seeds": []}]}, "expected magnitude, random, small_dense"),
        ({"schema": 1}, "expected 4, got 1. Read it with the version of ssl_lightning that wrote"),
        ({"schema": True}, "expected 4, got True. Read it with the version"),
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


def test_a_root_stands_second_everywhere(copied):
    with pytest.raises(FileNotFoundError, match="No zoo at nowhere"):
        zoo.load(NAME, "nowhere")
    assert zoo.card(NAME, copied).name == NAME
    weights = [zoo.load(NAME, copied).conv1.weight for _ in range(2)]
    assert torch.equal(*weights)


def test_list_and_show_tell_the_figures(capsys):
    card = zoo.card(NAME)
    for arguments in (["list"], ["show", NAME]):
        assert main(["zoo", *arguments]) == 0
        out = capsys.readouterr().out
        assert NAME in out
        assert f"{card.test_error:.2f}" in out
    assert "4/20 filters" in out


def test_wrong_use_is_named(capsys):
    assert main(["zoo", "verfy"]) == 1
    assert "Did you mean verify" in capsys.readouterr().err
    assert main(["zoo", "show", "../x"]) == 1
    assert "Cannot be the name" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        main(["zoo"])
    assert stop.value.code == 2


@pytest.mark.parametrize(
    ("errors", "seed"), [([0.7], 0), ([0.7, 0.8], 0), ([0.8, 0.7, 0.7], 1), ([0.9, 0.7, 0.8], 2)]
)
def test_of_equal_medians_the_lowest_seed_counts(errors, seed):
    results = [SeedResult(i, error, 1.0, 1, 1) for i, error in enumerate(errors)]
    assert median_result(results).seed == median_result(results[::-1]).seed == seed
