"""Penalty functions: maps against a numerical minimiser, slopes against autograd, and bias."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim import SGD, Adam

from ssl_lightning import MCP, SCAD, CappedLasso, GroupLasso, PenaltyFunction, Regularizer
from ssl_lightning.penalties.functions import FUNCTIONS

# --- the functions as integrals of their published derivatives --------------------------------


def lasso(n: np.ndarray, strength: float) -> np.ndarray:
    return strength * n


def mcp(n: np.ndarray, strength: float, gamma: float) -> np.ndarray:
    """Zhang 2010: the integral of (strength - x / gamma)_+ from 0 to n."""
    inside = strength * n - n**2 / (2 * gamma)
    return np.where(n <= gamma * strength, inside, gamma * strength**2 / 2)


def scad(n: np.ndarray, strength: float, a: float) -> np.ndarray:
    """Fan & Li 2001, the three pieces as they are usually printed."""
    middle = (2 * a * strength * n - n**2 - strength**2) / (2 * (a - 1))
    outer = strength**2 * (a + 1) / 2
    return np.where(
        n <= strength, strength * n, np.where(n <= a * strength, middle, np.full_like(n, outer))
    )


def capped(n: np.ndarray, strength: float, theta: float) -> np.ndarray:
    """Lebedev & Lempitsky 2016: group lasso, truncated."""
    return strength * np.minimum(n, theta)


CASES = st.one_of(
    st.just((GroupLasso(), lasso)),
    st.floats(0.05, 20.0).map(lambda g: (MCP(g), lambda n, s: mcp(n, s, g))),
    st.floats(0.05, 10.0).map(lambda t: (CappedLasso(t), lambda n, s: capped(n, s, t))),
    st.floats(2.01, 20.0).map(lambda a: (SCAD(a), lambda n, s: scad(n, s, a))),
)


def objective(v: np.ndarray, n: float, step: float, p: np.ndarray) -> np.ndarray:
    return (v - n) ** 2 / (2 * step) + p


def smallest(function: Callable[[np.ndarray], np.ndarray], high: float) -> tuple[float, float]:
    """Minimise over [0, high] by ever finer grids around the best few points of a first one."""
    points = np.linspace(0.0, high, 4001)
    width, best = high / 4000, points[np.argsort(function(points))[:5]]
    for _ in range(12):
        near = best[:, None] + width * np.linspace(-1, 1, 41)
        points = np.unique(np.clip(near, 0.0, high))
        width, best = width / 10, points[np.argsort(function(points))[:5]]
    return float(best[0]), float(function(best[:1])[0])


@settings(deadline=None, max_examples=400)
@given(case=CASES, n=st.floats(0.0, 12.0), step=st.floats(0.01, 30.0), strength=st.floats(0.05, 3))
@example((MCP(3.0), lambda n, s: mcp(n, s, 3.0)), 4.0, 3.0, 1.0)  # step = gamma
@example((MCP(1.0), lambda n, s: mcp(n, s, 1.0)), 2.1, 4.0, 1.0)  # just over a jump
@example((SCAD(3.0), lambda n, s: scad(n, s, 3.0)), 3.1, 2.0, 1.0)  # step = a - 1
@example((SCAD(3.0), lambda n, s: scad(n, s, 3.0)), 3.4, 3.0, 1.0)  # a - 1 < step < a + 1
@example((SCAD(3.0), lambda n, s: scad(n, s, 3.0)), 6.1, 9.0, 1.0)  # step > a + 1
@example((CappedLasso(2.0), lambda n, s: capped(n, s, 2.0)), 2.6, 1.0, 1.0)  # just over a jump
@example((CappedLasso(1.0), lambda n, s: capped(n, s, 1.0)), 2.0, 2.0, 1.0)  # both maps alike
@example((CappedLasso(1.0), lambda n, s: capped(n, s, 1.0)), 3.0, 4.0, 1.0)  # retained or zero
def test_shrink_minimises(case: Any, n: float, step: float, strength: float) -> None:
    function, reference = case

    def f(v: np.ndarray) -> np.ndarray:
        return objective(v, n, step, reference(v, strength))

    found = float(function.shrink(torch.tensor([n], dtype=torch.float64), step, strength)[0])
    where, value = smallest(f, max(n, 1.0))
    assert 0 <= found <= n
    scale = max(1.0, n * n / step, strength * n)
    assert float(f(np.array([found]))[0]) <= value + 1e-10 * scale
    tensor = torch.tensor([step], dtype=torch.float64)  # one step size per element
    again = float(function.shrink(torch.tensor([n], dtype=torch.float64), tensor, strength)[0])
    assert float(f(np.array([again]))[0]) <= value + 1e-10 * scale
    others = [v for v in np.linspace(0, max(n, 1.0), 2001) if abs(v - where) > 1e-2]
    if others and float(f(np.array(others)).min()) > value + 1e-3:  # one minimum only
        assert found == pytest.approx(where, abs=1e-5)
        assert again == pytest.approx(where, abs=1e-5)


@settings(deadline=None, max_examples=100)
@given(case=CASES, strength=st.floats(0.05, 3.0), seed=st.integers(0, 2**20))
def test_value_and_slope(case: Any, strength: float, seed: int) -> None:
    function, reference = case
    generator = torch.Generator().manual_seed(seed)
    norms = 12 * torch.rand(50, generator=generator, dtype=torch.float64)
    norms.requires_grad_()
    value = function.value(norms, strength)
    expected = float(reference(norms.detach().numpy(), strength).sum())
    assert value.item() == pytest.approx(expected, rel=1e-9)
    (slope,) = torch.autograd.grad(value, norms)
    found = torch.zeros_like(slope) + function.slope(norms.detach(), strength)
    torch.testing.assert_close(found, slope, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("function", [MCP(1e12), SCAD(1e12), CappedLasso(1e12)])
def test_the_limit_is_group_lasso(function: PenaltyFunction) -> None:
    norms = torch.rand(40, dtype=torch.float64) * 5
    expected = GroupLasso().shrink(norms, 0.7, 1.3)
    torch.testing.assert_close(function.shrink(norms, 0.7, 1.3), expected, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize(
    "function", [MCP(), SCAD(), MCP(0.1), SCAD(2.1), CappedLasso(), CappedLasso(9.0)]
)
@pytest.mark.parametrize("as_tensor", [False, True])
def test_large_norms_are_retained_bit_for_bit_and_zeros_remain(
    function: PenaltyFunction, as_tensor: bool
) -> None:
    step: Any = torch.tensor(2.0) if as_tensor else 2.0
    norms = torch.tensor([0.0, 1e-30, 50.0, 123.456])
    (factors,) = function.factors([norms.clone()], [step], [1.0])
    assert factors.tolist() == [0.0, 0.0, 1.0, 1.0]
    unmoved = function.factors([norms.clone()], [torch.tensor(0.0)], [1.0])[0]
    torch.testing.assert_close(unmoved[2:], torch.ones(2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MCP(0.0), "expected a finite gamma > 0, got 0.0"),
        (lambda: MCP(math.nan), "expected a finite gamma > 0, got nan"),
        (lambda: MCP(True), "expected a finite gamma > 0, got True"),
        (lambda: MCP("3"), "expected a finite gamma > 0, got '3'"),  # type: ignore[arg-type]
        (lambda: CappedLasso(0), "expected a finite theta > 0, got 0"),
        (lambda: SCAD(2.0), "expected a finite a > 2, got 2.0"),
        (lambda: SCAD(math.inf), "expected a finite a > 2, got inf"),
    ],
)
def test_bad_arguments(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# --- bound to a model -------------------------------------------------------------------------


def rows(weight: Tensor) -> nn.Linear:
    net = nn.Linear(weight.shape[1], weight.shape[0], bias=False).to(weight.dtype)
    with torch.no_grad():
        net.weight.copy_(weight)
    return net


def penalty(**settings: Any) -> dict[str, Any]:
    return {"kind": "neuron_out", "strength": 1.0, "scaling": "none", **settings}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("kind", ["neuron_out", "element"])
@pytest.mark.parametrize("lr", [0.1, 2.0, 5.0])
def test_a_proximal_step_is_the_map_of_the_norms(name: str, kind: str, lr: float) -> None:
    torch.manual_seed(0)
    weight = torch.randn(8, 3, dtype=torch.float64) * torch.arange(1, 9)[:, None]
    net = rows(weight)
    regularizer = Regularizer(net, [penalty(function=name, kind=kind)])
    regularizer.proximal_step_(SGD(net.parameters(), lr=lr))
    norms = weight.abs() if kind == "element" else weight.norm(dim=1, keepdim=True)
    expected = weight / norms * FUNCTIONS[name]().shrink(norms, lr, 1.0)
    torch.testing.assert_close(net.weight.detach(), expected)
    assert torch.equal(net.weight == 0, expected == 0)
    if kind == "element":
        assert not bool(torch.signbit(net.weight[net.weight == 0]).any())


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("kind", ["neuron_out", "element"])
def test_a_subgradient_is_that_of_the_value(name: str, kind: str) -> None:
    torch.manual_seed(0)
    net = rows(torch.randn(8, 3, dtype=torch.float64) * torch.arange(1, 9)[:, None] / 2)
    regularizer = Regularizer(net, [penalty(function=name, kind=kind, mode="subgradient")])
    weight = net.weight.detach().clone().requires_grad_()
    norms = weight.abs() if kind == "element" else weight.norm(dim=1)
    value = FUNCTIONS[name]().value(norms, 1.0)
    value.backward()
    assert float(regularizer.values()[kind]) == pytest.approx(value.item())
    net.weight.grad = torch.ones_like(net.weight)
    regularizer.add_subgradient_()
    torch.testing.assert_close(net.weight.grad, 1.0 + weight.grad)  # type: ignore[operator]


def test_adaptive_optimizers_step_elements_exactly_and_refuse_groups() -> None:
    torch.manual_seed(0)
    weight = torch.randn(8, 3, dtype=torch.float64)
    for name in ("mcp", "scad"):
        net = rows(weight)
        optimizer = Adam(net.parameters(), lr=0.3)
        elements = Regularizer(net, [penalty(function=name, kind="l1", strength=0.2)])
        attachment = elements.attach(optimizer)
        net.weight.grad = gradient = torch.randn(8, 3, dtype=torch.float64)
        optimizer.step()
        plain = weight - 0.3 * gradient / (gradient.abs() + 1e-8)
        step = 0.3 / (gradient.abs() + 1e-8)  # from 0.1 to more than 10: both forms of the map
        expected = plain.sign() * FUNCTIONS[name]().shrink(plain.abs(), step, 0.2)
        torch.testing.assert_close(net.weight.detach(), expected)
        attachment.detach()
        regularizer = Regularizer(net, [penalty(function=name)])
        message = r"no proximal map of .* for the groups :neuron_out .* Use SGD with one rate"
        with pytest.raises(ValueError, match=message):
            regularizer.attach(Adam(net.parameters()))
        with pytest.raises(ValueError, match=message):
            regularizer.proximal_step_(optimizer)
        Regularizer(net, [penalty(function=name, mode="subgradient")]).attach(optimizer)


def test_rates_that_differ_inside_groups_are_refused_when_they_do() -> None:
    net = nn.Linear(3, 2)
    regularizer = Regularizer(net, [penalty(function="mcp")])
    groups = [{"params": [net.weight], "lr": 0.1}, {"params": [net.bias], "lr": 0.1}]
    optimizer = SGD(groups)
    regularizer.attach(optimizer)
    net(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    optimizer.param_groups[1]["lr"] = 0.2
    with pytest.raises(ValueError, match="proximal_step_: no proximal map of MCP"):
        optimizer.step()
    with pytest.raises(ValueError, match=r"Regularizer\.attach: no proximal map of MCP"):
        regularizer.attach(optimizer)


def test_strengths_of_one_function_add_up_only_where_that_is_right() -> None:
    weight = torch.tensor([[3.0, 4.0]]).double()
    for name, expected in (("group_lasso", 5.0 - 2.0), ("mcp", 5.0)):
        net = rows(weight)
        regularizer = Regularizer(net, [penalty(function=name), penalty(function=name)])
        assert regularizer.strengths() == {":neuron_out": 2.0}
        regularizer.proximal_step_(SGD(net.parameters(), lr=1.0))
        assert float(net.weight.detach().norm()) == pytest.approx(expected)


# --- less bias on what is retained --------------------------------------------------------------


def fit(function: str, x: Tensor, y: Tensor, strength: float) -> Tensor:
    """Return the coefficients of a regression: ten groups of three columns, as rows."""
    net = rows(torch.zeros(10, 3, dtype=torch.float64))
    step = 1.0 / float(torch.linalg.eigvalsh(x.T @ x / len(x))[-1])
    optimizer = SGD(net.parameters(), lr=step)
    Regularizer(net, [penalty(strength=strength, function=function)]).attach(optimizer)
    for _ in range(600):
        optimizer.zero_grad()
        (0.5 * (x @ net.weight.flatten() - y).square().mean()).backward()
        optimizer.step()
    return net.weight.detach()


@pytest.mark.parametrize("function", ["mcp", "scad"])
def test_retained_groups_have_less_bias_than_under_group_lasso(function: str) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(200, 30, generator=generator, dtype=torch.float64)
    truth = torch.zeros(10, 3, dtype=torch.float64)
    truth[[1, 4, 7]] = torch.randn(3, 3, generator=generator, dtype=torch.float64).sign() * 1.5
    noise = 0.3 * torch.randn(200, generator=generator, dtype=torch.float64)
    y = x @ truth.flatten() + noise
    support = truth.any(1)
    lasso_fit, other = (fit(name, x, y, 0.3) for name in ("group_lasso", function))
    for found in (lasso_fit, other):
        assert torch.equal(found.any(1), support)
    columns = support.repeat_interleave(3)
    best = torch.zeros(30, dtype=torch.float64)
    best[columns] = torch.linalg.lstsq(x[:, columns], y[:, None]).solution[:, 0]
    bias = [float((found.flatten() - best).norm()) for found in (lasso_fit, other)]
    assert bias[0] > 0.4  # group lasso pulls each of the three groups by about the strength
    assert bias[1] < 1e-3  # as if the support had been known
