"""Optimizer step plus proximal step: where do they converge? Against an independent solver."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop

from ssl_lightning.penalties import Regularizer
from ssl_lightning.steps import STEP_SIZES, check_optimizer, has_stepped, step_sizes

ROWS, COLUMNS, STRENGTH = 5, 3, 0.6
GENERATOR = np.random.default_rng(3)
MIX = GENERATOR.normal(size=(20, ROWS * COLUMNS)) / 5 + np.eye(20, ROWS * COLUMNS)
HESSIAN = MIX.T @ MIX
TARGET = GENERATOR.normal(size=ROWS * COLUMNS) * np.repeat([2.0, 0.05, 1.0, 0.1, 0.7], COLUMNS)

RUNS: dict[str, tuple[type[Optimizer], dict[str, Any]]] = {
    "sgd": (SGD, {"lr": 0.2}),
    "sgd momentum": (SGD, {"lr": 0.02, "momentum": 0.9}),
    "sgd nesterov": (SGD, {"lr": 0.02, "momentum": 0.9, "nesterov": True}),
    "sgd dampening": (SGD, {"lr": 0.05, "momentum": 0.8, "dampening": 0.5}),
    "sgd for loop": (SGD, {"lr": 0.02, "momentum": 0.9, "foreach": False}),
    "sgd foreach": (SGD, {"lr": 0.02, "momentum": 0.9, "foreach": True}),
    "sgd fused": (SGD, {"lr": 0.02, "momentum": 0.9, "fused": True}),
    "sgd tensor lr": (SGD, {"lr": torch.tensor(0.2)}),
    "adam": (Adam, {"lr": 0.02, "weight_decay": 0.0}),
    "adam betas": (Adam, {"lr": 0.02, "betas": (0.5, 0.9), "eps": 1e-3}),
    "adam amsgrad": (Adam, {"lr": 0.05, "amsgrad": True}),
    "adam foreach": (Adam, {"lr": 0.02, "foreach": True}),
    "adam fused": (Adam, {"lr": 0.02, "fused": True}),
    "adamw": (AdamW, {"lr": 0.02, "weight_decay": 0.0}),
    "rmsprop": (RMSprop, {"lr": 0.01}),
    "rmsprop momentum": (RMSprop, {"lr": 0.002, "momentum": 0.9}),
    "rmsprop centered": (RMSprop, {"lr": 0.05, "centered": True, "eps": 0.5}),
    "adagrad": (Adagrad, {"lr": 0.3}),
    "adagrad decay": (Adagrad, {"lr": 0.3, "lr_decay": 1e-3}),
    "adagrad fused": (Adagrad, {"lr": 0.3, "fused": True}),
}


def minimiser(strength: float = STRENGTH) -> np.ndarray:
    """Proximal gradient in float64 numpy; rows are the groups."""
    w = np.zeros(ROWS * COLUMNS)
    step = 1 / np.linalg.eigvalsh(HESSIAN)[-1]
    for _ in range(3000):
        w = w - step * HESSIAN @ (w - TARGET)
        rows = w.reshape(ROWS, COLUMNS)
        for row in rows:
            n = math.sqrt(float(row @ row))
            row *= max(0.0, 1 - step * strength / n) if n > 0 else 0.0
        w = rows.reshape(-1)
    return w.reshape(ROWS, COLUMNS)


def layer() -> nn.Linear:
    net = nn.Linear(COLUMNS, ROWS, bias=False).double()
    with torch.no_grad():
        net.weight.copy_(torch.from_numpy(TARGET).view(ROWS, COLUMNS) + 0.1)
    return net


def loss_of(net: nn.Linear) -> torch.Tensor:
    away = net.weight.flatten() - torch.from_numpy(TARGET)
    return 0.5 * away @ torch.from_numpy(HESSIAN) @ away


def train(net: nn.Linear, optimizer: Optimizer, regularizer: Regularizer, steps: int = 700) -> None:
    base = [float(group["lr"]) for group in optimizer.param_groups]
    for step in range(steps):
        for group, lr in zip(optimizer.param_groups, base, strict=True):
            factor = 1.0 if isinstance(optimizer, Adagrad) else 1 - 0.99 * step / steps
            group["lr"] = torch.tensor(lr * factor) if torch.is_tensor(group["lr"]) else lr * factor
        optimizer.zero_grad()
        loss_of(net).backward()
        regularizer.add_subgradient_()
        optimizer.step()
        regularizer.proximal_step_(optimizer)


def penalty(**settings: Any) -> dict[str, Any]:
    return {"kind": "neuron_out", "strength": STRENGTH, "scaling": "none", **settings}


@pytest.mark.parametrize("run", RUNS)
def test_every_optimizer_converges_to_the_minimiser_with_exact_zeros(run: str) -> None:
    cls, settings = RUNS[run]
    net = layer()
    train(net, cls(net.parameters(), **settings), Regularizer(net, [penalty()]))
    expected = torch.from_numpy(minimiser())
    zero = (expected == 0).all(1)
    assert 0 < int(zero.sum()) < ROWS
    assert torch.equal((net.weight == 0).all(1), zero)
    torch.testing.assert_close(net.weight.detach(), expected, atol=2e-3, rtol=2e-3)


def test_every_row_of_the_table_is_tested() -> None:
    assert {cls for cls, _ in RUNS.values()} == set(STEP_SIZES)


def test_two_penalties_on_the_same_groups_add_up() -> None:
    for settings in ({"lr": 0.1}, {"lr": 0.01, "betas": (0.9, 0.95)}):
        net = layer()
        cls: Callable[..., Optimizer] = SGD if "betas" not in settings else Adam
        both = [penalty(strength=0.25), penalty(strength=0.35)]
        regularizer = Regularizer(net, both)
        assert regularizer.strengths() == {":neuron_out": pytest.approx(STRENGTH)}
        train(net, cls(net.parameters(), **settings), regularizer)
        expected = torch.from_numpy(minimiser())
        torch.testing.assert_close(net.weight.detach(), expected, atol=2e-3, rtol=2e-3)


def test_subgradient_mode_comes_near_but_not_to_zero() -> None:
    net = layer()
    train(net, SGD(net.parameters(), lr=0.05), Regularizer(net, [penalty(mode="subgradient")]))
    expected = torch.from_numpy(minimiser())
    torch.testing.assert_close(net.weight.detach(), expected, atol=5e-3, rtol=0)
    assert not bool((net.weight == 0).any())


class Other(Adam):
    """An optimizer that is not in the table, though its class's base is."""


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.Adadelta(p),
        lambda p: torch.optim.LBFGS(p),
        lambda p: Other(p),
        lambda p: SGD(p, lr=0.1, maximize=True),
    ],
)
def test_other_optimizers_are_refused(make: Callable[..., Optimizer]) -> None:
    net = layer()
    optimizer = make(net.parameters())
    with pytest.raises(ValueError, match=r"No proximal step is known for .* mode: subgradient"):
        check_optimizer(optimizer)
    with pytest.raises(ValueError, match="No proximal step"):
        Regularizer(net, [penalty()]).proximal_step_(optimizer)
    Regularizer(net, [penalty(mode="subgradient")]).proximal_step_(optimizer)


def stepped(parameters: Any, cls: Callable[..., Optimizer] = SGD, **settings: Any) -> Optimizer:
    optimizer = cls(parameters, **settings)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.full_like(parameter, 0.5) if parameter.requires_grad else None
    optimizer.step()
    return optimizer


def test_step_sizes_by_hand() -> None:
    w = nn.Parameter(torch.ones(2, dtype=torch.float64))
    sizes = {
        "momentum": step_sizes(stepped([w], lr=0.1, momentum=0.75, dampening=0.5), {"w": w}),
        "adam": step_sizes(stepped([w], Adam, lr=0.1, eps=0.5), {"w": w}),
        "rmsprop": step_sizes(
            stepped([w], RMSprop, lr=0.1, alpha=0.75, momentum=0.5, eps=0.5), {"w": w}
        ),
        "adagrad": step_sizes(stepped([w], Adagrad, lr=0.1, eps=0.5), {"w": w}),
    }
    assert sizes["momentum"]["w"] == pytest.approx(0.2)
    found = {name: float(torch.as_tensor(size["w"]).max()) for name, size in sizes.items()}
    assert found == {
        "momentum": pytest.approx(0.2),
        "adam": pytest.approx(0.1 / (0.5 + 0.5)),
        "rmsprop": pytest.approx(0.2 / (0.25 + 0.5)),
        "adagrad": pytest.approx(0.1 / (0.5 + 0.5)),
    }


def test_amsgrad_uses_the_largest_second_moment() -> None:
    w = nn.Parameter(torch.ones(1, dtype=torch.float64))
    optimizer = Adam([w], lr=0.1, betas=(0.0, 0.5), eps=0.0, amsgrad=True)
    for gradient in (4.0, 0.0):
        w.grad = torch.full_like(w, gradient)
        optimizer.step()
    # second moments 8, then 4; the larger is corrected by 1 - 0.5^2
    assert float(step_sizes(optimizer, {"w": w})["w"]) == pytest.approx(0.1 / math.sqrt(8 / 0.75))


def test_step_sizes_do_not_touch_the_optimizers_state() -> None:
    for cls in (Adam, RMSprop, Adagrad):
        w = nn.Parameter(torch.ones(2))
        optimizer = stepped([w], cls, lr=0.1)
        before = {k: v.clone() for k, v in optimizer.state[w].items() if torch.is_tensor(v)}
        step_sizes(optimizer, {"w": w})
        for key, value in before.items():
            assert torch.equal(optimizer.state[w][key], value)


def test_shared_frozen_unused_and_foreign_parameters() -> None:
    used, frozen, foreign = (nn.Parameter(torch.ones(2)) for _ in range(3))
    frozen.requires_grad_(False)
    parameters = {"a": used, "b": used, "frozen": frozen, "foreign": foreign}
    found = step_sizes(stepped([used, frozen], lr=0.1), parameters)
    assert found == {"a": 0.1, "b": 0.1, "frozen": None}
    assert step_sizes(Adam([used]), {"a": used}) == {"a": None}


def test_has_stepped() -> None:
    optimizer = stepped([nn.Parameter(torch.ones(2))], lr=0.1)
    assert has_stepped(optimizer)
    optimizer.found_inf = torch.tensor(0.0)  # type: ignore[attr-defined]
    assert has_stepped(optimizer)
    optimizer.found_inf = torch.tensor(1.0)  # type: ignore[attr-defined]
    assert not has_stepped(optimizer)
