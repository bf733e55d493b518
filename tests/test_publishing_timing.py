"""What a step costs, and layers beside the paper's Table 4."""

from __future__ import annotations

import copy
import dataclasses
import json

import pytest
import torch
from torch.utils.data import DataLoader

from ssl_lightning import create_backbone, publishing, zoo
from ssl_lightning.measure.engine import quiet
from ssl_lightning.measure.sparse_record import SparseRecord, SparseRow
from ssl_lightning.measure.table4 import TABLE4
from ssl_lightning.publishing import timing, verifying, writing
from ssl_lightning.publishing.pages import entry_page
from ssl_lightning.publishing.stepping import TrainingSteps
from ssl_lightning.publishing.timing import (
    create_optimizer,
    in_force,
    measure_step_cost,
    step_module,
)
from ssl_lightning.zoo.cards import Card
from zoo_runs import NAME

pytestmark = pytest.mark.filterwarnings("ignore:The number of training batches")


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


def stepped(model, settings=None, penalties=(), steps=1):
    module = step_module(settings or {}, model, list(penalties))
    with quiet(), TrainingSteps(module, BATCH) as step:
        for _ in range(steps):
            step()
    return module


def test_a_timed_step_is_a_training_step():
    torch.manual_seed(0)
    model = create_backbone("lenet")
    with torch.no_grad():
        model.conv1.weight[3] = 1e-12
        model.conv1.bias[3] = 0
    before = model.conv1.weight.detach().clone()
    stepped(model, penalties=[{**SETTINGS["penalties"][0], "strength": 10.0}])
    assert not model.conv1.weight[3].any()
    assert model.conv1.weight[4].all()
    assert not torch.equal(model.conv1.weight[4], before[4])


def test_from_one_batch_to_the_next_is_more_than_the_module_s_step():
    module = step_module({}, create_backbone("mlp"), [])
    with quiet(), TrainingSteps(module, BATCH) as step:
        assert step.seconds == step.whole_seconds == 0
        step()
        assert 0 < step.seconds < step.whole_seconds


def test_each_call_is_one_step_of_the_module(trainer):
    """The same as as many batches of a fit."""
    torch.manual_seed(0)
    model = create_backbone("lenet")
    twin = copy.deepcopy(model)
    stepped(model, SETTINGS, SETTINGS["penalties"], steps=3)
    module = step_module(SETTINGS, twin, SETTINGS["penalties"])
    with quiet():
        trainer(max_epochs=1).fit(module, DataLoader([BATCH] * 3, batch_size=None))
    for mine, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_the_settings_of_the_config_are_those_of_the_step():
    settings = {"label_smoothing": 0.3, "channels_last": True, "backbone": "mlp", "init_from": "x"}
    module = step_module(settings, create_backbone("lenet"), [])
    assert (module.label_smoothing, module.layout) == (0.3, torch.channels_last)


def test_an_error_of_a_step_is_raised_where_it_is_called():
    class Broken(torch.nn.Module):
        num_classes = 10

        def __init__(self):
            super().__init__()
            self.fc = torch.nn.Linear(784, 10)

        def forward(self, x):
            raise RuntimeError("no such operator")

    with pytest.raises(RuntimeError, match="no such operator"):
        stepped(Broken())


def test_the_penalties_of_the_busiest_epoch_are_timed():
    one = {"kind": "filter", "strength": 1e-3}
    windows = [{"kind": "window", "start": s, "end": s + 2} for s in (0, 4, 5)]
    given = [one, *({**one, "layers": f"fc{i}", "schedule": w} for i, w in enumerate(windows))]
    assert in_force(given) == [one, {**one, "layers": "fc1"}, {**one, "layers": "fc2"}]


def test_what_cannot_be_timed_is_named():
    with pytest.raises(ValueError, match="has no penalties"):
        measure_step_cost({}, lambda: create_backbone("lenet"), BATCH)
    with pytest.raises(ValueError, match=r"Unknown optimizer 'os\.system'"):
        create_optimizer({"class_path": "os.system"}, create_backbone("lenet").parameters())


@pytest.mark.parametrize(
    "given", [None, "ssl_lightning.module.parts.default_optimizer", "SGD", "torch.optim.SGD"]
)
def test_an_optimizer_that_a_config_names_without_arguments_is_timed(given):
    found = create_optimizer(given, create_backbone("lenet").parameters())
    assert isinstance(found, torch.optim.SGD)


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
    record = writing.speedups_of({}, net, 1)
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


def test_layers_are_timed_where_the_paper_row_asks_for_it(monkeypatch):
    """Whatever the network is called: it must have these layers."""
    seen = []
    monkeypatch.setattr(writing, "measure_speedups", lambda *given: seen.append(given))
    net = create_backbone("alexnet", num_classes=10)
    assert writing.table4_row(None) is writing.table4_row({"row": "LeNet 2"}) is None
    assert writing.speedups_of(GROUPS, net, None) is None
    assert seen == []
    writing.speedups_of(GROUPS, net, writing.table4_row({"table4": 5}))
    assert seen == [(timing.zero_groups(GROUPS), 5)]
    timing.check_layers(net)
    for other in (create_backbone("alexnet", geometry="torchvision"), create_backbone("resnet20")):
        with pytest.raises(ValueError, match=r"expected conv1 of \(96, 3, 11, 11\), got"):
            timing.check_layers(other)


def test_a_network_without_these_layers_is_refused_before_anything_is_measured(
    run, tmp_path, monkeypatch
):
    monkeypatch.setattr(writing, "measure_run", lambda *_: pytest.fail("measured"))
    with pytest.raises(ValueError, match=r"got \(20, 1, 5, 5\). Leave `table4` out of `paper`"):
        publishing.publish(run, "new", tmp_path / "zoo", paper={"table4": 2})
    assert not (tmp_path / "zoo").exists()


def test_an_unknown_row_of_the_paper_is_refused_before_anything_is_measured(
    run, tmp_path, monkeypatch
):
    monkeypatch.setattr(writing, "measure_run", lambda *_: pytest.fail("measured"))
    for number in (3, "many"):
        with pytest.raises(ValueError, match=f"Unknown configuration of Table 4 '{number}'"):
            publishing.publish(run, "new", tmp_path / "zoo", paper={"table4": number})
    assert not (tmp_path / "zoo").exists()
