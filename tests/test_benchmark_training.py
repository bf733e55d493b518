"""What penalties cost in training: the loops, their turns, their memory, records, the command."""

from __future__ import annotations

import dataclasses
import gc
import io
import json
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import nn

from conftest import ROOT
from ssl_lightning import suggest
from ssl_lightning.backbones import register_backbone
from ssl_lightning.cli import main
from ssl_lightning.measure import training
from ssl_lightning.measure.engine import quiet
from ssl_lightning.measure.machine import machine
from ssl_lightning.measure.memory import PeakMemory
from ssl_lightning.measure.peers import torch_pruning_regularizer
from ssl_lightning.measure.training import TrainingSetting, measure_training, peaks
from ssl_lightning.measure.training_loop import TrainingLoop, WatchedRegularizer
from ssl_lightning.measure.training_record import TrainingRecord, TrainingRow
from ssl_lightning.measure.turns import take_steps
from ssl_lightning.penalties import MCP, GroupLasso
from ssl_lightning.report import training_chart, training_reasons, training_table
from toy import make_toy

LR, MOMENTUM, DECAY = 1e-3, 0.9, 1e-4
QUICK = {"batch_size": 4, "steps": 3}
CPU = torch.device("cpu")


def plain_net() -> nn.Module:
    """A convolution without a bias, so that its filters are groups of weights alone."""
    torch.manual_seed(1)
    layers = nn.Conv2d(2, 3, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(108, 10)
    return nn.Sequential(*layers)


def batch_of(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(*shape, generator=generator), torch.arange(shape[0]) % 10


BATCH = batch_of(4, 2, 8, 8)


@pytest.fixture
def toys():
    """Two backbones by name: with a shortcut and batch norms, and without either."""
    residual = register_backbone("toy-residual", make_toy, input_shape=(1, 8, 8))
    plain = register_backbone("toy-plain", plain_net, input_shape=(2, 8, 8))
    with residual, plain:
        yield


def test_every_form_is_a_row_and_what_is_missing_has_a_reason(toys):
    setting = TrainingSetting(["filter", "depth", "coupled"], **QUICK)
    lines: list[str] = []
    record = measure_training(["toy-residual", "toy-plain"], setting, lines.append)
    both = ["proximal", "subgradient"]
    wanted = {
        "toy-residual": ["filter", "depth", "coupled", "all kinds", "all kinds, mcp"],
        "toy-plain": ["filter", "coupled", "filter, mcp"],
    }
    for backbone, rows in record.blocks().items():
        forms = [("none", ""), *((form, mode) for form in wanted[backbone] for mode in both)]
        assert [(row.form, row.mode) for row in rows] == forms
    assert record.left_out == {
        "toy-plain, depth": "It has no such groups: around none of its layers leads a shortcut",
        "toy-plain, coupled in all kinds": "All of its groups are those of filter",
    }
    assert lines[1] == "toy-residual: 11 forms, 6 steps each"
    assert record.input_shapes == {"toy-residual": (1, 8, 8), "toy-plain": (2, 8, 8)}
    assert (record.steps, record.batch_size, record.threads) == (3, 4, 1)
    for row in record.rows:
        assert row.step_ms > row.penalty_ms >= 0
        assert row.ratio_low <= row.ratio <= row.ratio_high
        assert row.peak_bytes > row.penalty_bytes
        assert (row.form == "none") == (row.penalty_ms == 0) == (row.penalty_bytes == 0)


def test_one_kind_is_not_measured_twice(toys):
    setting = TrainingSetting(["filter", "filter", "depth"], ["subgradient"], **QUICK)
    record = measure_training(["toy-plain", "toy-plain"], setting)
    forms = [(row.form, row.mode) for row in record.rows]
    assert forms == [("none", ""), ("filter", "subgradient"), ("filter, mcp", "subgradient")]


def test_without_any_groups_only_the_plain_step_is_left():
    setting = TrainingSetting(["filter", "depth"], **QUICK)
    record = measure_training(["mlp"], setting)
    assert [row.form for row in record.rows] == ["none"]
    assert record.left_out["mlp, filter"] == "It has no such groups"


def test_forms_penalise_what_they_are_called(toys):
    net = make_toy()
    found, left_out = training.groups_of(net, torch.zeros(1, 1, 8, 8), ["filter", "depth"])
    forms = {
        (form.name, form.mode): form.penalties
        for form in training.forms_of(found, left_out, TrainingSetting())
    }
    assert left_out == {}
    assert forms["none", ""] == ()
    for (name, mode), penalties in forms.items():
        assert {p.mode for p in penalties} <= {mode}
        function = MCP if name.endswith("mcp") else GroupLasso
        assert {type(p.function) for p in penalties} <= {function}
    assert [p.kind for p in forms["all kinds, mcp", "proximal"]] == ["filter", "depth"]
    assert forms["depth", "proximal"][0].layers == ["conv2"]


def gradients(net, batch, autocast):
    x, y = batch
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = F.cross_entropy(net(x.to(memory_format=torch.channels_last)), y)
    return torch.autograd.grad(loss, list(net.parameters()))


@pytest.mark.parametrize("mode", ["", "subgradient", "proximal"])
@pytest.mark.parametrize("autocast", [False, True])
def test_a_step_is_sgd_and_the_penalty(mode, autocast):
    """Against steps written out: momentum, weight decay, pull or shrinkage of each filter."""
    net, strength = plain_net(), 0.5
    twin = plain_net().to(memory_format=torch.channels_last)
    penalties = [{"kind": "filter", "strength": strength, "mode": mode}] if mode else []
    kind = torch.bfloat16 if autocast else None
    loop = TrainingLoop(net, BATCH, autocast=kind, penalties=penalties)
    factor = strength * 18**0.5  # filters of 18 weights
    velocities = [torch.zeros_like(p) for p in twin.parameters()]
    for step in range(2):
        loop()
        found = gradients(twin, BATCH, autocast)
        with torch.no_grad():
            for i, (p, g) in enumerate(zip(twin.parameters(), found, strict=True)):
                g = g.clone()
                for n in range(len(p)) if p.dim() == 4 and mode == "subgradient" else ():
                    g[n] += factor * p[n] / p[n].norm()
                velocities[i] = g + DECAY * p + (MOMENTUM * velocities[i] if step else 0)
                p -= LR * velocities[i]
                for n in range(len(p)) if p.dim() == 4 and mode == "proximal" else ():
                    p[n] *= max(0.0, 1 - LR / (1 - MOMENTUM) * factor / p[n].norm().item())
        for mine, other in zip(net.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(mine, other)
    assert len(loop.stopwatch.laps()) == 2
    assert (min(loop.stopwatch.laps()) > 0) == bool(mode)


def test_bfloat16_is_autocast_over_float32_weights():
    seen = []
    net = plain_net()
    net[0].register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    TrainingLoop(net, BATCH, autocast=training.AUTOCAST["bfloat16"])()
    assert seen == [torch.bfloat16]
    assert {p.dtype for p in net.parameters()} == {torch.float32}


def loops_at(strength):
    """The loops of the toy backbone, at a strength, by form and mode."""
    setting = TrainingSetting(["channel", "shape"], **QUICK, strength=strength)
    loops, _ = training.training_loops("toy", make_toy(), setting)
    return loops


def test_every_loop_trains_a_network_of_its_own():
    before = make_toy().state_dict()
    loops = loops_at(1e-5)
    take_steps(loops, repeats=1, warmup=1)
    assert len({id(loop.model) for loop in loops.values()}) == len(loops)
    for loop in loops.values():
        for name, parameter in loop.model.named_parameters():
            if name != "conv1.bias":  # has no effect: a batch norm follows
                assert not torch.equal(parameter, before[name]), name
        assert loop.model.training
        assert loop.model.conv1.weight.count_nonzero() == before["conv1.weight"].numel()


def test_huge_penalties_leave_zeros_in_proximal_mode_only():
    loops = loops_at(1e3)
    take_steps(loops, repeats=1, warmup=0)
    for (form, mode), loop in loops.items():
        zero = not loop.model.conv2.weight.any()
        assert zero == (mode == "proximal"), (form, mode)


def test_the_watched_regularizer_is_watched_in_both_modes():
    peak = PeakMemory(CPU)
    for mode in ("proximal", "subgradient"):
        net = plain_net()
        penalties = [{"kind": "shape", "strength": 1e-3, "mode": mode}]
        WatchedRegularizer(net, penalties, BATCH[0][:1], peak).attach(
            sgd := torch.optim.SGD(net.parameters(), lr=0.1)
        )
        F.cross_entropy(net(BATCH[0]), BATCH[1]).backward()
        sgd.step()
        assert peak.bytes > 0, mode
        peak.bytes = 0


def test_peak_memory_sees_tensors_that_are_held_at_once():
    peak = PeakMemory(CPU)
    with peak():
        first = torch.zeros(1000)
        del first
        _second = torch.zeros(500)
    assert peak.bytes == 4000
    with peak():  # the most of all blocks
        _third = torch.zeros(10)
    assert peak.bytes == 4000
    with peak():
        first = torch.zeros(1000)
        _second = torch.relu(first)  # an operator's output
    assert peak.bytes == 8000


@pytest.mark.parametrize("count", [0, 10**6])
def test_memory_of_a_step_sees_what_its_penalties_allocate(count):
    held = []
    loop = TrainingLoop(
        plain_net(), BATCH, regularize=lambda: held.append(torch.empty(count)) if count else None
    )
    other = TrainingLoop(plain_net(), BATCH)
    for each in (loop, other):
        each()  # from then on the optimizer has its state
    (without, _), (whole, inside) = peaks(other), peaks(loop)
    assert inside == 4 * count
    assert whole == without if count == 0 else 4 * count < whole < 4 * count + without
    assert without >= 4 * sum(p.numel() for p in plain_net().parameters())  # the gradients


def test_garbage_of_before_is_not_taken_for_memory_given_back():
    class Cycle:
        def __init__(self):
            self.self, self.tensor = self, torch.zeros(10**6)

    peak = PeakMemory(CPU)
    with peak():
        Cycle()
        _held = torch.zeros(10)
    assert peak.bytes == 4 * 10**6 + 40
    second = PeakMemory(CPU)
    with second():
        gc.collect()
        _other = torch.zeros(20)
    assert second.bytes == 80


def test_memory_is_the_same_in_each_run():
    loop = TrainingLoop(plain_net(), BATCH, penalties=[{"kind": "filter", "strength": 1e-5}])
    loop()
    assert peaks(loop) == peaks(loop)


def test_only_steps_after_the_warmup_are_timed():
    now, order = [0.0], []

    def call(name, seconds):
        order.append(name)
        now[0] += seconds * (10 if len(order) <= 2 else 1)

    calls = {"a": lambda: call("a", 1.0), "b": lambda: call("b", 1.5)}
    turns = take_steps(calls, repeats=3, warmup=1, clock=lambda: now[0])
    assert "".join(order) == "abbaabba"
    assert turns.samples == {"a": [1000.0] * 3, "b": [1500.0] * 3}
    assert turns.ratios("b", "a") == [1.5] * 3


def test_torch_pruning_adds_to_the_gradients(toys):
    pytest.importorskip("torch_pruning")
    net = make_toy()
    with quiet():
        regularize = torch_pruning_regularizer(net, torch.randn(1, 1, 8, 8), 10)
    changed = {}

    def watched():
        before = {n: p.grad.clone() for n, p in net.named_parameters()}
        regularize()
        changed.update({n: not torch.equal(p.grad, before[n]) for n, p in net.named_parameters()})

    loop = TrainingLoop(net, batch_of(4, 1, 8, 8), regularize=watched)
    assert net.training  # the pruner left it in evaluation mode
    loop()
    assert changed["conv1.weight"]
    assert changed["conv2.weight"]
    assert min(loop.stopwatch.laps()) > 0


def test_torch_pruning_is_a_row(toys):
    pytest.importorskip("torch_pruning")
    setting = TrainingSetting(["filter"], ["proximal"], **QUICK, peers=True)
    record = measure_training(["toy-residual"], setting)
    assert (record.rows[-1].form, record.rows[-1].mode) == ("torch-pruning", "")
    assert record.rows[-1].penalty_ms > 0
    assert "torch-pruning" in record.versions


@pytest.mark.parametrize("when", ["made", "called"])
def test_where_torch_pruning_fails_its_own_words_are_the_reason(toys, monkeypatch, when):
    pytest.importorskip("torch_pruning")

    def failing(*_):
        raise IndexError("index out of range in self\nand more")

    made = failing if when == "made" else lambda *_: failing
    monkeypatch.setattr(training, "torch_pruning_regularizer", made)
    setting = TrainingSetting(["filter"], ["proximal"], **QUICK, peers=True)
    record = measure_training(["toy-plain"], setting)
    assert [row.form for row in record.rows] == ["none", "filter", "filter, mcp"]
    assert record.left_out == {"toy-plain, torch-pruning": "IndexError: index out of range in self"}


REFUSED = [
    ({"kinds": ["filtr"]}, r"Unknown group kind 'filtr'\. Did you mean filter\?"),
    ({"kinds": []}, "expected some kinds, got none"),
    ({"modes": ["proximl"]}, r"Unknown mode 'proximl'\. Did you mean proximal\?"),
    ({"modes": []}, "expected some modes, got none"),
    ({"dtype": "float16"}, r"Unknown type 'float16'\. Did you mean bfloat16 or float32\?"),
    ({"device": "tpu"}, r"Unknown device 'tpu'\. Did you mean cpu"),
    ({"steps": 2}, "expected steps of at least 3, got 2"),
    ({"batch_size": 0}, "expected batch_size of at least 1, got 0"),
    ({"threads": 0}, "expected threads of at least 1, got 0"),
]


@pytest.mark.parametrize(("given", "message"), REFUSED)
def test_impossible_settings_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        TrainingSetting(**given)


def test_a_gpu_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"torch sees no GPU here\. Measure on the device 'cpu'"):
        TrainingSetting(device="cuda")


def test_peers_that_are_not_installed_are_named(monkeypatch):
    monkeypatch.setattr(suggest, "find_spec", lambda name: None)
    wanted = r"needs torch_pruning, not installed here.*pip install 'ssl-lightning\[peers\]'"
    with pytest.raises(ValueError, match=wanted):
        TrainingSetting(peers=True)


def test_a_network_without_scores_of_classes_is_refused():
    class Pair(nn.Module):
        input_shape = (2, 8, 8)

        def forward(self, x):
            return x, x

    with (
        register_backbone("toy-pair", Pair),
        pytest.raises(ValueError, match=r"expected scores of classes .* from toy-pair, got tuple"),
    ):
        measure_training(["toy-pair"], TrainingSetting(["filter"], **QUICK))


def row(**changes: object) -> TrainingRow:
    values: dict = {
        "backbone": "resnet20",
        "form": "filter",
        "mode": "proximal",
        "step_ms": 102.4,
        "ratio": 1.024,
        "ratio_low": 1.019,
        "ratio_high": 1.031,
        "penalty_ms": 2.25,
        "peak_bytes": 198_000_000,
        "penalty_bytes": 150_000,
    }
    return TrainingRow(**{**values, **changes})


NONE_ROW = row(form="none", mode="", step_ms=100.0, ratio=1.0, ratio_low=1.0, ratio_high=1.0)
ROWS = (
    NONE_ROW,
    row(),
    row(mode="subgradient", ratio=1.5, ratio_high=1.6),
    row(form="torch-pruning", mode="", ratio=2.0, peak_bytes=297_000_000),
)


def record_of(*rows: TrainingRow, **changes: object) -> TrainingRecord:
    shapes = {row.backbone: (3, 32, 32) for row in rows}
    record = TrainingRecord(
        *(128, "bfloat16", 1, 30, shapes, machine(CPU), "AVX512", {"torch": "2.14"}, rows),
        left_out={"resnet20, depth": "It has no such groups"},
    )
    return dataclasses.replace(record, **changes)


def test_record_round_trip(tmp_path):
    record, path = record_of(*ROWS), tmp_path / "a.json"
    record.save(path)
    assert TrainingRecord.load(path) == record
    data = json.loads(path.read_text())
    assert next(iter(data)) == "schema"
    assert data["schema"] == 1
    for changes, message in (
        ({"schema": 2}, r"training benchmark\.schema: expected 1, got 2"),
        ({"schema": None}, r"training benchmark\.schema: expected 1, got None"),
        ({"steps": "many"}, r"training benchmark\.steps: expected int, got 'many'"),
    ):
        path.write_text(json.dumps({**data, **changes}))
        with pytest.raises(ValueError, match=message):
            TrainingRecord.load(path)


def text(table: object) -> str:
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


def test_table_shows_every_row_and_what_was_left_out():
    lines = [line.split() for line in text(training_table(record_of(*ROWS))).splitlines()]
    assert ["resnet20", "3x32x32"] in lines
    assert ["none", "100.0", "1", "198"] in lines
    shown = ["filter", "proximal", "102.4", "1.024", "1.019", "..", "1.031", "2.250", "198", "0.15"]
    assert shown in lines
    assert ["depth", *"-------"] in lines
    reasons = training_reasons(record_of(*ROWS))
    assert reasons == ["Left out: resnet20, depth. It has no such groups."]


def test_pictures_are_drawn(tmp_path):
    """Of several networks, of one form each, and without any form."""
    other = [dataclasses.replace(row, backbone="lenet") for row in (NONE_ROW, row())]
    records = [record_of(*ROWS, *other), record_of(*ROWS[:2]), record_of(NONE_ROW)]
    for i, record in enumerate(records):
        training_chart(record, tmp_path / f"{i}.png")
        assert (tmp_path / f"{i}.png").read_bytes().startswith(b"\x89PNG")


def test_command_writes_the_record_and_the_picture(tmp_path, capsys, toys):
    path = tmp_path / "training.json"
    arguments = ["--backbone", "toy-plain", "mlp", "--kinds", "filter", "channel"]
    arguments += ["--modes", "proximal", "--batch_size", "4", "--steps", "3", "--dtype", "bfloat16"]
    assert main(["benchmark", "training", *arguments, "--output", str(path)]) == 0
    record = TrainingRecord.load(path)
    assert list(record.blocks()) == ["toy-plain", "mlp"]
    assert record.dtype == "bfloat16"
    assert path.with_suffix(".png").is_file()
    said = " ".join(capsys.readouterr().out.split())
    assert "Left out: mlp, filter. It has no such groups" in said
    assert "all kinds, mcp" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--backbone lenett", "Unknown backbone `lenett`. Did you mean lenet"),
        ("--backbone lenet --kinds filtr", "Unknown group kind 'filtr'"),
        ("--backbone lenet --output x.png", "expected a file that ends in .json, got x.png"),
    ],
)
def test_mistakes_of_the_command_are_one_paragraph(
    arguments, message, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(training, "take_steps", lambda *_, **__: pytest.fail("measured"))
    assert main(["benchmark", "training", *arguments.split()]) == 1
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_records_need_no_torch():
    code = (
        "import sys; import ssl_lightning.measure.training_record, ssl_lightning.report.training\n"
        "assert not {'torch', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
