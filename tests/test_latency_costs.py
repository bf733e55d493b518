"""Latency from a table of layers, calibrated by whole networks, with an engine that has no clock.

The fake engine's calls know their milliseconds, which are a function of the network's layers, and
"timing" them reads that.
"""

from __future__ import annotations

import copy
import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ssl_lightning import LatencyMeter, compact, make_plan, preferred_multiple, prune_
from ssl_lightning.backbones import create_backbone
from ssl_lightning.costs import MULTIPLES, Costs, parse_targets, table
from ssl_lightning.costs.latency import Curve
from ssl_lightning.costs.shapes import LayerShape, Profile, profile
from ssl_lightning.graph import Inputs
from ssl_lightning.measure import Engine, count_macs, register_engine
from ssl_lightning.measure.engines import installed_engines, prepare_several
from ssl_lightning.measure.turns import Turns
from ssl_lightning.prune.budget import UnreachableError
from ssl_lightning.prune.ranking import in_multiples, ranking, units

IMAGE = torch.zeros(1, 3, 16, 16)


@dataclass
class Call:
    """What the fake engine prepares."""

    ms: float

    def __call__(self) -> None:
        return None


def read_ms(calls: Mapping[Any, Call]) -> Turns[Any]:
    return Turns({name: [call.ms] * 3 for name, call in calls.items()}, dict.fromkeys(calls, 1))


class Clockless:
    """An engine whose times are a function of a network's profile; it counts what it prepares."""

    def __init__(self, ms: Callable[[Profile], float], overhead: float = 0.5) -> None:
        self.ms, self.overhead = ms, overhead
        self.prepared: list[Profile] = []

    def prepare(self, model: nn.Module, inputs: Inputs) -> Call:
        found = profile(model, inputs)
        self.prepared.append(found)
        return Call(self.overhead + self.ms(found))

    def network_ms(self, model: nn.Module, x: Tensor = IMAGE) -> float:
        return self.overhead + self.ms(profile(model, Inputs(x)))

    def meter(self, model: nn.Module, x: Tensor = IMAGE, **more: Any) -> LatencyMeter:
        arguments = {"engine": "fake", "threads": 1, "cache": False, "time_calls": read_ms}
        return LatencyMeter(model, x, **{**arguments, **more})


@pytest.fixture
def engine() -> Iterator[Callable[..., Clockless]]:
    """Register a fake engine of given times."""
    registered = []

    def make(ms: Callable[[Profile], float], overhead: float = 0.5) -> Clockless:
        fake = Clockless(ms, overhead)
        registered.append(register_engine(Engine("fake", prepare=fake.prepare), replace=True))
        return fake

    yield make
    for registration in reversed(registered):
        registration.undo()


def work(shape: LayerShape) -> float:
    """Thousands of multiply-adds, written apart from what is tested."""
    kernel = math.prod(dict(shape.options).get("kernel_size", ()))
    return shape.groups * shape.inputs * shape.outputs * kernel * math.prod(shape.size) / 1e3


def bilinear(shape: LayerShape) -> float:
    memory = math.prod(shape.size) * (sum(shape.widths) + 3) / 1e4
    return 0.01 + memory + work(shape) / 1e2


def total(layer: Callable[[LayerShape], float]) -> Callable[[Profile], float]:
    return lambda found: math.fsum(n * layer(shape) for shape, n in found.layers.items())


def stairs(step: int) -> Callable[[LayerShape], float]:
    """So many channels are computed at a time."""

    def up(width: int) -> int:
        return width if width < 8 else -(-width // step) * step

    def ms(shape: LayerShape) -> float:
        size = math.prod(shape.size) * math.prod(dict(shape.options).get("kernel_size", ()))
        if shape.groups > 1 and shape.inputs == 1:
            return up(shape.groups) * size / 1e3
        return shape.groups * up(shape.inputs) * up(shape.outputs) * size / 1e5

    return ms


def bad_at_odd(shape: LayerShape) -> float:
    """Depthwise convolutions fall back to slow code where the width is no multiple of 8."""
    depthwise = shape.groups > 1 and shape.inputs == 1
    return bilinear(shape) * (6 if depthwise and shape.groups % 8 else 1)


class Net(nn.Module):
    """Plain and depthwise convolutions and a shortcut."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.expand = nn.Conv2d(width, 2 * width, 1)
        self.depthwise = nn.Conv2d(2 * width, 2 * width, 3, padding=1, groups=2 * width)
        self.project = nn.Conv2d(2 * width, width, 1)
        self.down = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.fc = nn.Linear(2 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = x + self.project(self.depthwise(self.expand(x).relu()).relu())
        return self.fc(self.down(x).relu().mean((2, 3)))


def net(seed: int = 0, width: int = 64) -> Net:
    torch.manual_seed(seed)
    return Net(width)


def small_of(model: nn.Module) -> nn.Module:
    return compact(model, make_plan(model, IMAGE)).eval()


# --- interpolation --------------------------------------------------------------------------------

WIDTHS = st.integers(1, 700)


@given(WIDTHS, WIDTHS, st.booleans(), st.lists(st.floats(0.01, 10), min_size=4, max_size=4))
@settings(deadline=None)
def test_interpolation_is_exact_for_sums_of_products(inputs, outputs, smooth, factors):
    def ms(shape: LayerShape) -> float:
        a, b, c, d = factors
        return a + b * shape.inputs + c * shape.outputs + d * shape.inputs * shape.outputs

    shape = LayerShape("Linear", 1, inputs, outputs, (1,))
    corners = shape.corners(smooth)
    assert math.isclose(sum(corners.values()), 1, rel_tol=1e-9)
    assert all(weight > 0 for weight in corners.values())
    found = sum(weight * ms(corner) for corner, weight in corners.items())
    assert math.isclose(found, ms(shape), rel_tol=1e-9)
    alike = {0: lambda w: w % 8 == 0, 1: lambda w: w % 4 == 0, 2: lambda w: w % 2 == 1}
    for corner in corners if not smooth else ():  # as fast or slow a kind of width
        for width, timed in ((inputs, corner.inputs), (outputs, corner.outputs)):
            kind = next((k for k, holds in alike.items() if holds(width)), 2)
            assert width == timed or alike[kind](timed)


@given(st.lists(st.tuples(st.floats(0.01, 100), st.floats(0.01, 100)), min_size=1, max_size=6))
def test_the_curve_rises_and_goes_through_points_that_rise(points):
    curve = Curve()
    for x, y in points:
        curve.add(x, y)
    places = sorted([0.0, *(x for x, _ in points), *range(0, 200, 7)])
    heights = [curve(x) for x in places]
    assert all(a <= b * (1 + 1e-9) for a, b in pairwise(heights))
    assert heights[-1] > 0
    values = [curve.points[x] for x in sorted(curve.points)]
    if values == sorted(values):
        assert all(math.isclose(curve(x), y) for x, y in curve.points.items())


def test_few_shapes_are_timed_for_many_widths(engine):
    fake = engine(total(bilinear))
    model = net()
    meter = fake.meter(model)
    assert meter.dense_ms == fake.network_ms(model)
    for width in range(8, 65, 8):
        assert meter(net(width=width)) > 0
    timed = len(fake.prepared)
    for width in range(9, 65, 2):
        meter(net(width=width))
    assert timed < 70
    assert len(fake.prepared) < 140


def test_the_prediction_is_the_sum_of_the_layers(engine):
    fake = engine(total(bilinear), overhead=0.0)
    model = net()
    meter = fake.meter(model)
    for seed, fraction in enumerate((0.0, 0.2, 0.5, 0.8)):
        pruned = net(seed)
        prune_(pruned, IMAGE, fraction=fraction)
        small = small_of(pruned)
        assert math.isclose(meter(small), fake.network_ms(small), rel_tol=1e-6)
        assert math.isclose(meter.measure(small), fake.network_ms(small), rel_tol=1e-6)


def test_odd_widths_have_times_of_their_own(engine):
    fake = engine(total(bad_at_odd), overhead=0.0)
    meter = fake.meter(net())
    for width in (40, 41, 48, 57):
        small = net(width=width)
        assert math.isclose(meter(small), fake.network_ms(small), rel_tol=1e-6)


def test_all_kinds_of_layers_have_a_shape():
    layers = {
        "Conv1d": (nn.Conv1d(4, 6, 3, groups=2), torch.zeros(2, 4, 9)),
        "Conv2d": (nn.Conv2d(4, 6, (3, 1), stride=2, padding="valid"), torch.zeros(1, 4, 9, 7)),
        "Conv3d": (nn.Conv3d(4, 6, 3, dilation=2), torch.zeros(1, 4, 9, 9, 9)),
        "ConvTranspose2d": (
            nn.ConvTranspose2d(4, 6, 2, stride=2, output_padding=1),
            torch.zeros(1, 4, 5, 5).to(memory_format=torch.channels_last),
        ),
        "Linear": (nn.Linear(4, 6), torch.zeros(2, 3, 4)),
        "unbatched": (nn.Conv2d(4, 6, 3), torch.zeros(4, 9, 9)),
    }
    for name, (layer, x) in layers.items():
        (shape,) = profile(layer, Inputs(x)).layers
        built, example = shape.build(torch.float32, torch.device("cpu"))
        assert type(built) is type(layer), name
        assert built.weight.shape == layer.weight.shape
        assert built(example).shape == (layer(x) if name != "unbatched" else layer(x[None])).shape
        assert example.stride() == x.stride() or name == "unbatched"


# --- calibration ----------------------------------------------------------------------------------


def fused(found: Profile) -> float:
    """Not additive: fusion saves a part, more in large networks, and each layer costs something."""
    layers = total(bilinear)(found)
    return 0.6 * layers**1.1 + 0.02 * sum(found.layers.values())


def bound_by_memory(found: Profile) -> float:
    return 0.2 * total(bilinear)(found) + found.elements / 2e4


def mostly_overhead(found: Profile) -> float:
    return 6.0 + 0.5 * total(bilinear)(found)


ENGINES = {
    "additive": total(bilinear),
    "fused": fused,
    "memory": bound_by_memory,
    "overhead": mostly_overhead,
    "stairs": total(stairs(16)),
    "bad at odd": total(bad_at_odd),
}


@pytest.mark.parametrize(
    ("name", "multiple"), [*((name, 8) for name in ENGINES), ("fused", 1), ("bad at odd", 1)]
)
def test_a_share_of_the_latency_is_what_the_network_takes(engine, name, multiple):
    fake = engine(ENGINES[name])
    model = net(width=128)
    dense = fake.network_ms(model)
    share = 0.75 if name == "overhead" else 0.5
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of odd widths
        report = prune_(
            model, IMAGE, budget={"latency": share}, engine=fake.meter(model), multiple=multiple
        )
    found = fake.network_ms(small_of(model))
    assert abs(found / dense - share) <= 0.1 * share
    assert report.latency is not None
    assert math.isclose(report.latency.dense_ms, dense)
    assert math.isclose(report.latency.found.measured, found, rel_tol=1e-6)
    assert f"latency {dense:.4g} -> {found:.4g} ms" in str(report)
    assert ("the first time" in str(report)) == (report.latency.first != report.latency.found)


def test_milliseconds_beside_another_target(engine):
    fake = engine(fused)
    for macs, limiting in ((0.9, "latency"), (0.2, "macs")):
        model = net(width=128)
        dense, before = fake.network_ms(model), count_macs(model, IMAGE)
        budget = {"latency_ms": 0.6 * dense, "macs": macs}
        prune_(model, IMAGE, budget=budget, engine=fake.meter(model), multiple=8)
        small = small_of(model)
        share, left = fake.network_ms(small) / dense, count_macs(small, IMAGE) / before
        assert left <= macs
        assert share <= 0.6 * 1.03
        assert (share >= 0.54) if limiting == "latency" else (left >= 0.15)


def test_what_no_group_can_save_is_measured_before_it_is_called_unreachable(engine):
    fake = engine(mostly_overhead)
    model = net()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(UnreachableError, match=r"latency=0\.04: .*latency: 0\.\d+ of 0\.040"):
        prune_(model, IMAGE, budget={"latency": 0.04}, engine=fake.meter(model))
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_searches_ask_for_the_compact_form_once_per_choice(engine, monkeypatch):
    fake = engine(fused)
    asked = []
    raw = LatencyMeter.raw
    monkeypatch.setattr(LatencyMeter, "raw", lambda meter, m: asked.append(1) or raw(meter, m))
    model = net(width=128)
    prune_(model, IMAGE, budget={"latency": 0.5}, engine=fake.meter(model), multiple=8)
    assert len(asked) <= 40


def test_the_dense_network_costs_what_it_is_measured_to(engine):
    fake = engine(fused)
    model = net()
    meter = fake.meter(model)
    costs = Costs(parse_targets("Budget", {"latency": 0.5}), model, IMAGE, {"latency": meter})
    assert costs.dense == {"latency": fake.network_ms(model)}
    check = meter.calibrate_(net(width=40))
    assert math.isclose(check.measured, fake.network_ms(net(width=40)))
    assert math.isclose(meter(net(width=40)), check.measured)
    assert math.isclose(meter(model), fake.network_ms(model))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"budget": {"latency": 0.5}}, "Expected an engine for the target latency=0.5"),
        ({"budget": {"latency_ms": 0.5}}, "Expected an engine for the target latency_ms=0.5"),
        ({"macs": 0.5, "engine": "fakee"}, "Unknown engine 'fakee'. Did you mean fake"),
        ({"macs": 0.5, "multiple": "auto"}, "expected an engine for multiple='auto'"),
        ({"macs": 0.5, "multiple": "most"}, "expected a whole number >= 1 as multiple, got 'most'"),
        ({"macs": 0.5, "multiple": True}, "expected a whole number >= 1 as multiple, got True"),
        ({"budget": {"latency_ms": 1e9}, "engine": "fake"}, "below what the dense network costs"),
    ],
)
def test_errors(engine, tmp_path, monkeypatch, settings, message):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    fake = engine(fused)
    model = net()
    if settings.get("engine") == "fake":
        settings = {**settings, "engine": fake.meter(model)}
    with pytest.raises(ValueError, match=message):
        prune_(model, IMAGE, **settings)


# --- the table on disk ----------------------------------------------------------------------------


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.json"))


def test_layers_are_timed_once(engine, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    fake = engine(fused)
    first = fake.meter(net(), cache=True)
    predicted = first(net(width=40))
    (path,) = files(tmp_path)
    assert path.parent == tmp_path / "ssl_lightning" / "latency"
    timed = sum(len(p.layers) for p in fake.prepared)
    fake.prepared.clear()
    second = fake.meter(net(), cache=True)
    assert math.isclose(second(net(width=40)), predicted)
    assert len(fake.prepared) == 2  # the dense network, and the reference beside it
    assert timed > 10
    fake.meter(net(), cache=True, threads=2).table.fill([table.REFERENCE])
    fake.meter(net(), cache=True, dtype="float64").table.fill([table.REFERENCE])
    assert len(files(tmp_path)) == 3
    fake.meter(net(), cache=tmp_path / "own").table.fill([table.REFERENCE])
    assert len(files(tmp_path / "own")) == 1


def test_other_versions_and_machines_are_timed_anew(engine, tmp_path, monkeypatch):
    fake = engine(fused)
    meter = fake.meter(net(), cache=tmp_path)
    meter.table.fill([table.REFERENCE])
    (path,) = files(tmp_path)
    old = path.read_text()
    monkeypatch.setattr(table, "engine_versions", lambda engines: {"torch": "9.9"})
    fake.prepared.clear()
    other = fake.meter(net(), cache=tmp_path)
    assert not other.table.stored.layers
    other.table.fill([table.REFERENCE])
    assert len(fake.prepared) == 3
    assert files(tmp_path) == [path]
    assert path.read_text() != old
    place = {**vars(other.table.stored.machine), "processor": "another"}
    monkeypatch.setattr(table, "machine", lambda device: table.Machine(**place))
    fake.meter(net(), cache=tmp_path).table.fill([table.REFERENCE])
    assert len(files(tmp_path)) == 2


DAMAGED = {
    "empty": lambda text: "",
    "cut": lambda text: text[: len(text) // 2],
    "no record": lambda text: "[]",
    "other fields": lambda text: json.dumps({**json.loads(text), "more": 1}),
    "no number": lambda text: json.dumps({**json.loads(text), "layers": {"x": math.nan}}),
    "negative": lambda text: json.dumps({**json.loads(text), "layers": {"x": -1.0}}),
    "no reference": lambda text: json.dumps({**json.loads(text), "reference_ms": 0.0}),
    "text": lambda text: json.dumps({**json.loads(text), "layers": {"x": "1"}}),
    "nested": lambda text: "[" * 100_000,
    "bytes": lambda text: b"\xff\xfe",
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_table_is_named_and_built_anew(engine, tmp_path, name):
    fake = engine(fused)
    fake.meter(net(), cache=tmp_path).table.fill([table.REFERENCE])
    (path,) = files(tmp_path)
    whole = path.read_text()
    damaged = DAMAGED[name](whole)
    path.write_bytes(damaged if isinstance(damaged, bytes) else damaged.encode())
    with pytest.warns(UserWarning, match=f"table of layer times .*{path.name} is damaged"):
        meter = fake.meter(net(), cache=tmp_path)
    meter.table.fill([table.REFERENCE])
    assert path.read_text() == whole


def test_a_folder_that_cannot_be_written_is_no_obstacle(engine, tmp_path):
    fake = engine(fused)
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="is damaged"):
        meter = fake.meter(net(), cache=tmp_path / "file" / "folder")
    with pytest.warns(UserWarning, match="Cannot keep the table of layer times"):
        meter(net())
    assert meter(net()) == pytest.approx(meter.dense_ms, rel=1e-9)


# --- multiples ------------------------------------------------------------------------------------

LIKED = {
    "smooth": (bilinear, {1}),
    "stairs of 4": (stairs(4), {4}),
    "stairs of 8": (stairs(8), {8}),
    "stairs of 16": (stairs(16), {16}),
    "stairs of 32": (stairs(32), {32}),
    "bad at odd": (bad_at_odd, {8}),
    "overhead": (lambda shape: 1.0, {1}),
}


@pytest.mark.parametrize("name", LIKED)
def test_the_multiple_that_an_engine_likes(engine, name):
    layer, liked = LIKED[name]
    engine(total(layer))
    arguments = {"threads": 1, "cache": False, "time_calls": read_ms}
    assert preferred_multiple(net(width=96), IMAGE, "fake", **arguments) in liked


def test_multiples_are_automatic_where_an_engine_is_named(engine):
    fake = engine(total(stairs(16)))
    for goal in ({"macs": 0.5}, {"fraction": 0.4}, {"budget": {"latency": 0.5}}):
        model = net()
        report = prune_(model, IMAGE, engine=fake.meter(model), **goal)
        assert report.multiple == 16
        assert all((of - n) % 16 == 0 for n, of in report.zeroed.values())
        assert any(n for n, _ in report.zeroed.values())
    model = net()
    assert prune_(model, IMAGE, macs=0.5).multiple == 1
    assert prune_(model, IMAGE, macs=0.5, engine=fake.meter(model), multiple=32).multiple == 32


def test_odd_widths_are_warned_of_where_they_cost(engine):
    fake = engine(total(stairs(16)))
    model = net()
    text = r"Widths of \d+.* take as long as \d+.* in fake: 1\.\d+ times .* Give multiple=16"
    with pytest.warns(UserWarning, match=text):
        prune_(model, IMAGE, macs=0.5, engine=fake.meter(model), multiple=1)
    for layer, multiple in ((stairs(16), 16), (stairs(16), None), (bilinear, 1)):
        fake, model = engine(total(layer)), net()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            prune_(model, IMAGE, macs=0.5, engine=fake.meter(model), multiple=multiple)


@pytest.mark.parametrize("multiple", [1, 3, 8, 32])
def test_a_budget_is_never_exceeded_in_multiples(multiple):
    for seed, macs in enumerate((0.95, 0.5)):
        model = net(seed)
        before, after = prune_(model, IMAGE, macs=macs, multiple=multiple).macs or (1, 1)
        assert after <= macs * before
        assert after == count_macs(small_of(model), IMAGE)


class Grouped(nn.Module):
    """A grouped convolution, and attention heads."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 64, 1, bias=False)
        self.grouped = nn.Conv2d(64, 64, 3, padding=1, groups=16, bias=False)
        self.last = nn.Conv2d(64, 24, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.grouped(self.first(x).relu()).relu())


def test_multiples_count_channels():
    from ssl_lightning.groups import resolve_groups

    model = Grouped()
    parameters = dict(model.named_parameters())
    for kind, expected in {
        "coupled": {"first": 1, "grouped": 1},  # 16 channels in each group already
        "filter": {"first": 32, "grouped": 32, "last": 16},
        "kernel": {"first": 1, "grouped": 1, "last": 1},
    }.items():
        sets = resolve_groups(model, [{"kind": kind}], IMAGE)
        found = units(sets, parameters, 32)
        wanted = [expected[s.layer] if kind != "coupled" else 2 for s in sets]
        assert found == wanted, kind
    vit = create_backbone("timm:vit_tiny_patch16_224", img_size=32)
    heads = resolve_groups(vit, [{"kind": "head"}], torch.zeros(1, 3, 32, 32))
    assert set(units(heads, dict(vit.named_parameters()), 32)) == {1}


def test_groups_that_are_zero_already_cannot_be_retained():
    from ssl_lightning.groups import GroupSet, Member

    sets = [GroupSet("a", "filter", (Member("a", (64, 1), (0,)),))]
    for alive, lost, left in [(64, 0, 64), (64, 1, 64), (41, 0, 40), (41, 3, 40), (41, 30, 8),
                              (39, 0, 32), (7, 0, 7), (64, 60, 8), (47, 17, 32)]:  # fmt: skip
        scores = [torch.cat([torch.zeros(64 - alive), torch.arange(1.0, alive + 1)])]
        order = ranking(sets, scores)
        chosen = order[: 64 - alive + lost]
        zero = in_multiples(sets, scores, order, chosen, [8])
        assert 64 - len({*zero.tolist(), *range(64 - alive)}) == left, (alive, lost)


# --- real engines ---------------------------------------------------------------------------------


REAL = [name for name in installed_engines() if name != "compile"]  # it takes seconds per layer


@pytest.mark.parametrize("name", REAL)
def test_real_engines(tmp_path, name):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.Flatten())
    model.append(nn.Linear(16 * 12 * 12, 4))
    before = copy.deepcopy(model.state_dict())
    meter = LatencyMeter(model, IMAGE, name, threads=1, cache=tmp_path)
    assert meter.multiple in MULTIPLES
    assert meter(model) == pytest.approx(meter.dense_ms, rel=1e-9)
    check = meter.calibrate_(nn.Sequential(*copy.deepcopy(model)[:2]))
    assert check.measured > 0
    assert check.predicted > 0
    assert len(files(tmp_path)) == 1
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", REAL)
def test_layers_prepared_together_compute_what_they_compute_alone(name):
    torch.manual_seed(0)
    parts = [
        (nn.ReLU(), torch.randn(1, 1)),
        (nn.Conv2d(4, 6, 3, groups=2).eval(), torch.randn(1, 4, 8, 8)),
        (nn.Conv2d(4, 6, 3, groups=2).eval(), torch.randn(1, 4, 8, 8)),
        (nn.Linear(5, 3).eval(), torch.randn(2, 5)),
    ]
    calls = prepare_several(name, parts)
    for (part, x), call in zip(parts, calls, strict=True):
        found: Any = call()
        found = found[0] if isinstance(found, list) else found
        torch.testing.assert_close(found, part(x).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_engines_that_read_files(name: str) -> None:
    """Of a network with gradients, as in training, whose parts are written to files."""
    pytest.importorskip(name)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    meter = LatencyMeter(model, torch.zeros(1, 16), name, threads=1, cache=False)
    assert meter(model) == pytest.approx(meter.dense_ms, rel=1e-9)
