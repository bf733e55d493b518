"""Schedules of strength and learning rate."""

from __future__ import annotations

import dataclasses
import math
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ssl_lightning.schedules import (
    SCHEDULES,
    Constant,
    Cosine,
    Ramp,
    Schedule,
    StageLR,
    Window,
    parse_schedule,
    schedule_to_dict,
)

EXAMPLES: dict[str, Schedule] = {
    "constant": Constant(start=2),
    "ramp": Ramp(start=1, end=3, first=0.5),
    "cosine": Cosine(start=1, end=5, first=0.25, last=0.75),
    "window": Window(start=1, end=4, ramp=2),
}


@pytest.mark.parametrize(
    ("schedule", "epoch", "factor"),
    [
        (Constant(), 0, 1),
        (Constant(2), 1.999, 0),
        (Constant(2), 2, 1),
        (Ramp(1, 3, 0.5), 0.999, 0),
        (Ramp(1, 3, 0.5), 1, 0.5),
        (Ramp(1, 3, 0.5), 2, 0.75),
        (Ramp(1, 3, 0.5), 3, 1),
        (Ramp(1, 3, 0.5), 99, 1),
        (Ramp(2, 2), 1.9, 0),
        (Ramp(2, 2), 2, 1),
        (Cosine(1, 5, 0.25, 0.75), 0.5, 0),
        (Cosine(1, 5, 0.25, 0.75), 1, 0.25),
        (Cosine(1, 5, 0.25, 0.75), 2, 0.25 + 0.5 * (1 - math.sqrt(0.5)) / 2),
        (Cosine(1, 5, 0.25, 0.75), 3, 0.5),
        (Cosine(1, 5, 0.25, 0.75), 5, 0.75),
        (Cosine(1, 5, 0.25, 0.75), 50, 0.75),
        (Window(1, 4), 0.9, 0),
        (Window(1, 4), 1, 1),
        (Window(1, 4), 3.999, 1),
        (Window(1, 4), 4, 0),
        (Window(1, 4, 2), 1, 0),
        (Window(1, 4, 2), 2, 0.5),
        (Window(1, 4, 2), 3, 1),
        (Window(1), 1e9, 1),
        (Window(2, 2), 2, 0),
    ],
)
def test_values(schedule: Schedule, epoch: float, factor: float) -> None:
    assert schedule(epoch) == pytest.approx(factor, abs=1e-12)


@pytest.mark.parametrize("kind", SCHEDULES)
def test_round_trips(kind: str) -> None:
    for schedule in (EXAMPLES[kind], SCHEDULES[kind]()):
        stored = schedule_to_dict(schedule)
        assert stored["kind"] == kind
        assert parse_schedule(stored) == schedule
        assert parse_schedule(schedule) is schedule
        assert pickle.loads(pickle.dumps(schedule)) == schedule
        assert parse_schedule({"kind": kind}) == SCHEDULES[kind]()
    assert parse_schedule(None) == Constant()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"kind": "rampe"}, "Unknown schedule kind 'rampe'. Did you mean ramp"),
        ({}, "Unknown schedule kind None"),
        ({"kind": "ramp", "stop": 3}, "no argument 'stop'. "),
        ({"kind": "ramp", "start": -1}, "Ramp.start: expected a number >= 0"),
        ({"kind": "ramp", "end": math.nan}, "Ramp.end: expected a number >= 0"),
        ({"kind": "ramp", "end": "3"}, "Ramp.end: expected a number >= 0 .*got '3'"),
        ({"kind": "window", "start": 3, "end": 2}, "expected start <= end, got start=3"),
    ],
)
def test_errors(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_schedule(given)


def test_the_base_class_is_no_schedule() -> None:
    with pytest.raises(TypeError, match="does not define"):
        Schedule()(0.0)


@pytest.mark.parametrize(
    ("schedule", "until", "zero"),
    [
        (Constant(), 1, False),
        (Constant(5), 5, True),
        (Constant(5), 5.01, False),
        (Ramp(0, 4), 0.1, False),
        (Ramp(10, 12), 10, True),
        (Ramp(10, 12), 11, False),
        (Ramp(0, math.inf), math.inf, True),
        (Ramp(3, 4), math.inf, False),
        (Cosine(0, 5, 0, 0), 100, True),
        (Cosine(0, 5, 1, 0), 100, False),
        (Cosine(0, 5, 0, 0.1), 5, False),
        (Window(3, 3), 100, True),
        (Window(3, 3.001), 100, False),
        (Window(3, 4, 5), 100, False),
        (Window(0.2, 0.3), math.inf, False),
        (Window(6), 6, True),
    ],
)
def test_is_zero(schedule: Schedule, until: float, zero: bool) -> None:
    assert schedule.is_zero(until) is zero


@dataclasses.dataclass(frozen=True)
class Comb(Schedule):
    """On in the second half of each third epoch; its corners are not among its fields."""

    every: float = 3.0

    def __call__(self, epoch: float) -> float:
        return float(epoch % self.every >= self.every - 0.5)


def test_is_zero_of_a_schedule_written_elsewhere() -> None:
    assert Comb().is_zero(2.4)
    assert not Comb().is_zero(3.0)


@settings(deadline=None, max_examples=50)
@given(
    kind=st.sampled_from(sorted(SCHEDULES)),
    start=st.floats(0, 9),
    length=st.floats(0, 9),
    extra=st.floats(0, 1),
    until=st.floats(0.01, 20),
)
def test_is_zero_agrees_with_a_fine_grid(
    kind: str, start: float, length: float, extra: float, until: float
) -> None:
    cls = SCHEDULES[kind]
    values = {"start": start, "end": start + length, "first": extra, "last": extra, "ramp": extra}
    known = {f.name for f in dataclasses.fields(cls)}
    schedule = cls(**{k: v for k, v in values.items() if k in known})
    grid = [schedule(until * (i + 0.5) / 1000) for i in range(1000)]
    if any(grid):
        assert not schedule.is_zero(until)
    assert all(0.0 <= factor <= 1.0 for factor in grid)


# --- learning rate -----------------------------------------------------------------------------


def sgd(*lrs: float) -> torch.optim.SGD:
    return torch.optim.SGD([{"params": [torch.ones(1)], "lr": lr} for lr in lrs], lr=lrs[0])


def rates(optimizer: torch.optim.Optimizer, schedule: Any, steps: int) -> list[float]:
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[-1]["lr"])
        optimizer.step()
        schedule.step()
    return found


def explicit(epochs: list[int], lr: list[float]) -> list[float]:
    """Half a cosine from lr[i], never quite to zero: the last epoch stops half an epoch short."""
    return [
        rate * (1 + math.cos(math.pi * min(e / n, 1 - 0.5 / n))) / 2
        for n, rate in zip(epochs, lr, strict=True)
        for e in range(n)
    ]


def test_stage_lr_against_the_list() -> None:
    optimizer = sgd(0.1)
    found = rates(optimizer, StageLR(optimizer, [3, 2, 1], [0.1, 0.05, 0.01]), 6)
    assert found == pytest.approx(explicit([3, 2, 1], [0.1, 0.05, 0.01]))
    assert found[3] == pytest.approx(0.05)
    assert found[5] == pytest.approx(0.01)


def test_stage_lr_constant_and_after_the_end() -> None:
    optimizer = sgd(0.1)
    schedule = StageLR(optimizer, [2, 1], [0.1, 0.02], shape="constant")
    assert rates(optimizer, schedule, 5) == pytest.approx([0.1, 0.1, 0.02, 0.02, 0.02])
    optimizer = sgd(0.1)
    found = rates(optimizer, StageLR(optimizer, [2, 2], [0.1, 0.02]), 6)
    assert all(rate > 0 for rate in found)
    assert found[4] == found[5] <= found[3]


def test_stage_lr_keeps_the_ratio_of_parameter_groups() -> None:
    optimizer = sgd(0.1, 0.3)
    found = rates(optimizer, StageLR(optimizer, [1, 1], [0.1, 0.01], shape="constant"), 2)
    assert found == pytest.approx([0.3, 0.03])


def test_stage_lr_resumes_and_pickles() -> None:
    whole = sgd(0.1)
    expected = rates(whole, StageLR(whole, [3, 3], [0.1, 0.05]), 6)
    first = sgd(0.1)
    schedule = StageLR(first, [3, 3], [0.1, 0.05])
    start = rates(first, schedule, 4)
    second = sgd(0.1)
    resumed = StageLR(second, [3, 3], [0.1, 0.05])
    second.load_state_dict(first.state_dict())
    resumed.load_state_dict(schedule.state_dict())
    assert start + rates(second, resumed, 2) == pytest.approx(expected)
    factor = pickle.loads(pickle.dumps(schedule.lr_lambdas[0]))
    assert factor(3) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("epochs", "lr", "shape"),
    [
        ([1, 2], [0.1], "cosine"),
        ([], [], "cosine"),
        ([0], [0.1], "cosine"),
        ([1], [-0.1], "cosine"),
        ([1], [0.1], "linear"),
    ],
)
def test_stage_lr_errors(epochs: list[int], lr: list[float], shape: Any) -> None:
    with pytest.raises(ValueError, match="StageLR: expected"):
        StageLR(sgd(0.1), epochs, lr, shape)
