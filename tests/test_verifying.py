"""Every published figure is measured again."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from safetensors.torch import load as parse_tensors

from ssl_lightning import publishing, zoo
from ssl_lightning.cli import main
from ssl_lightning.measure import num_parameters
from ssl_lightning.publishing import verifying
from ssl_lightning.publishing.measuring import open_test_split
from ssl_lightning.zoo.cards import CARD, GOLDEN, digest, serial
from zoo_runs import ENTRIES, NAME, OTHER, ZOO, find_data

pytestmark = pytest.mark.filterwarnings("ignore:The number of training batches")


@pytest.mark.parametrize("name", ENTRIES)
def test_every_figure_of_every_entry_is_measured_again(name, monkeypatch):
    find_data(name, monkeypatch)
    card, checks = zoo.card(name), publishing.verify(name, latency=False)
    unstored = [] if card.weights.unstored is None else ["groups left", "test error %"]
    assert [check.what for check in checks if not check.ok] == unstored
    whats = " ".join(check.what for check in checks)
    for what in ("MACs", "parameters", "test error", "groups", "penalties"):
        assert what in whats


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
    wrong = {check.what for check in publishing.verify(NAME, copied, latency=False) if not check.ok}
    assert wrong == {"test error %", "MACs, compact", "groups left", "seed"}
    assert main(["zoo", "verify", NAME, "--root", str(copied), "--latency=false"]) == 1


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
    verdicts = {
        c.what: c.verdict for c in publishing.verify("both", published) if "latency" in c.what
    }
    assert verdicts["latency ratio compact/dense, batch 1"] == "DIFFERS"
    assert len(verdicts) == 4
    monkeypatch.setattr(verifying.os, "cpu_count", lambda: 0)
    rows = [c for c in publishing.verify("both", published) if "latency" in c.what]
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
    rows = [c for c in publishing.verify(NAME) if "latency" in c.what]
    assert asked == [(r.batch_size, r.threads, r.num_rounds) for r in records.values()]
    assert [row.verdict for row in rows] == ["ok"] * 4
