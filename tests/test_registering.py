"""All functions that register something behave alike."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

from ssl_lightning import (
    Constant,
    Engine,
    GroupKind,
    GroupLasso,
    Rule,
    register_backbone,
    register_engine,
    register_kind,
    register_penalty_function,
    register_rule,
    register_schedule,
    register_shrinker,
)
from ssl_lightning.backbones import BACKBONES
from ssl_lightning.graph.layers import OWN_LAYERS
from ssl_lightning.graph.operations import RULES
from ssl_lightning.groups import KINDS
from ssl_lightning.measure import ENGINES
from ssl_lightning.penalties.functions import FUNCTIONS
from ssl_lightning.schedules import SCHEDULES


def factories() -> list[Any]:
    def one() -> nn.Module:
        return nn.Identity()

    def two() -> nn.Module:
        return nn.Identity()

    return [one, two]


def functions() -> list[Any]:
    @dataclass(frozen=True)
    class One(GroupLasso):
        """As in a cell of a notebook."""

    @dataclass(frozen=True)
    class Two(GroupLasso):
        """Another."""

    return [One, Two]


def schedules() -> list[Any]:
    @dataclass(frozen=True)
    class One(Constant):
        """As in a cell of a notebook."""

    @dataclass(frozen=True)
    class Two(Constant):
        """Another."""

    return [One, Two]


def engines() -> list[Any]:
    def prepare(model: nn.Module, inputs: Any) -> Any:
        return lambda: inputs.run(model)

    return [Engine("mine", prepare=prepare), Engine("mine", prepare=prepare, timed=False)]


class Layer(nn.Module):
    """Of the user's own."""


def shrink(value: Any, **options: Any) -> Any:
    return register_shrinker(Layer, {"weight": 0}, channel_dim=value, **options)


CASES: dict[str, tuple[Callable[..., Any], Callable[[], list[Any]], dict[Any, Any], Any]] = {
    "backbone": (lambda v, **o: register_backbone("mine", v, **o), factories, BACKBONES, "mine"),
    "penalty_function": (
        lambda v, **o: register_penalty_function("mine", v, **o),
        functions,
        FUNCTIONS,
        "mine",
    ),
    "schedule": (lambda v, **o: register_schedule("mine", v, **o), schedules, SCHEDULES, "mine"),
    "kind": (
        lambda v, **o: register_kind("mine", v, **o),
        lambda: [GroupKind(("in",)), GroupKind(("out",))],
        KINDS,
        "mine",
    ),
    "engine": (lambda v, **o: register_engine(v, **o), engines, ENGINES, "mine"),
    "rule": (
        lambda v, **o: register_rule("erfinv", v, **o),
        lambda: [Rule.pointwise(), Rule.identity()],
        RULES,
        "erfinv",
    ),
    "shrinker": (shrink, lambda: [1, -1], OWN_LAYERS, Layer),
}


@pytest.mark.parametrize("case", CASES)
def test_a_registration_is_undone_repeated_and_replaced_alike(case: str) -> None:
    register, values, table, key = CASES[case]
    before = dict(table)
    (one, two), (again, _) = values(), values()
    with register(one):
        first = table[key]
        with register(again):  # as when a notebook's cell runs twice
            pass
        taken = rf"register_{case}: the name '.*' already means .*`replace=True`"
        with pytest.raises(ValueError, match=taken):
            register(two)
        assert table[key] is first
        with register(two, replace=True) as inner:
            assert table[key] is not first
        assert table[key] is first
        inner.undo()
        assert table[key] is first
    assert table == before


@pytest.mark.parametrize("name", [3, None, "", "a b", "a:b", "-a", nn.Linear])
def test_names_are_checked_alike(name: Any) -> None:
    calls: list[Callable[[], Any]] = [
        lambda: register_backbone(name, factories()[0]),
        lambda: register_penalty_function(name, functions()[0]),
        lambda: register_schedule(name, schedules()[0]),
        lambda: register_kind(name, GroupKind(("in",))),
        lambda: Engine(name, prepare=lambda *_: None),  # type: ignore[arg-type,return-value]
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"expected a name of letters, digits, `_` and `-`"):
            call()


WRONG: list[tuple[Callable[[], Any], str]] = [
    (lambda: register_engine("mine"), "register_engine: expected an Engine, got 'mine'"),  # type: ignore[arg-type]
    (lambda: Engine("all", prepare=lambda *_: print), "'all' means every engine"),
    (lambda: Engine("mine", prepare=lambda *_: print, packages="numpy"), "of `packages`"),  # type: ignore[arg-type]
    (lambda: Engine("mine", prepare=lambda *_: print, dtypes=("float32",)), "of `dtypes`"),  # type: ignore[arg-type]
    (lambda: Engine("mine", export=print, load=print, suffix="npz"), "suffix such as '.onnx'"),  # type: ignore[arg-type]
    (lambda: register_backbone("mine", nn.Identity, input_shape="1,8,8"), "positive integers"),
    (lambda: register_backbone("mine", nn.Identity, input_shape=28), "positive integers"),  # type: ignore[arg-type]
    (lambda: register_backbone("mine", nn.Identity, input_shape=(0, 8)), "positive integers"),
    (lambda: register_rule("erfinv", Rule), "expected a Rule, such as Rule.pointwise()"),  # type: ignore[arg-type]
    (lambda: register_rule("erfinv", Rule.pointwise), "expected a Rule, such as"),  # type: ignore[arg-type]
    (lambda: register_shrinker(Layer, ["weight"]), "expected a mapping of names to whole numbers"),  # type: ignore[arg-type]
    (lambda: register_shrinker(Layer, {"weight": "0"}), "expected a mapping of names"),  # type: ignore[dict-item]
]


@pytest.mark.parametrize(("call", "message"), WRONG)
def test_what_could_not_work_is_refused_in_a_sentence(
    call: Callable[[], Any], message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


def test_an_overload_packet_is_an_operation() -> None:
    with register_rule(torch.ops.aten.erfinv, Rule.pointwise()):
        assert "erfinv" in RULES
