"""The maths of group lasso and l1, against loops, bisection and optimality conditions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ssl_lightning.groups import KINDS, GroupSet, Member
from ssl_lightning.penalties import (
    GroupLasso,
    Penalty,
    group_lasso,
    group_lasso_subgradient,
    parse_penalty,
    prox_group_lasso,
)
from ssl_lightning.penalties.functional import prox_group_lasso_metric, shrink_elements_

CASES = {
    "matrix_rows": ((4, 3), (0,)),
    "matrix_columns": ((4, 3), (1,)),
    "filter": ((3, 2, 3, 3), (0,)),
    "channel": ((3, 2, 3, 3), (1,)),
    "shape": ((3, 2, 2, 2), (1, 2, 3)),
    "kernel": ((3, 2, 3, 3), (0, 1)),
    "depth": ((3, 2, 3), ()),
    "element": ((5,), (0,)),
    "grouped_channel": ((2, 3, 2, 3, 3), (0, 2)),
    "depthwise": ((4, 1, 1, 3, 3), (0, 2)),
    "conv3d_shape": ((2, 2, 2, 2, 2), (1, 2, 3, 4)),
}
BULKS = {"identity": 0.0, "typical": 0.7, "kills_all": 1e3}


def slices(shape: tuple[int, ...], dims: tuple[int, ...]) -> list[list[int]]:
    """Flat indices of the elements of every group, by a loop."""
    found: dict[tuple[int, ...], list[int]] = {}
    for flat, place in enumerate(np.ndindex(*shape)):
        found.setdefault(tuple(place[d] for d in dims), []).append(flat)
    return list(found.values())


def by_group(function: Any, w: Tensor, dims: tuple[int, ...], *others: Tensor) -> Tensor:
    """Apply a function of lists of floats to every group and put the results back."""
    flat = [t.double().flatten().tolist() for t in (w, *others)]
    result = [0.0] * w.numel()
    for indices in slices(tuple(w.shape), dims):
        values = function(*[[t[i] for i in indices] for t in flat])
        for i, value in zip(indices, values, strict=True):
            result[i] = value
    return torch.tensor(result, dtype=torch.float64).view(w.shape)


def norm(values: list[float]) -> float:
    return math.sqrt(sum(v * v for v in values))


def shrunk(values: list[float], threshold: float) -> list[float]:
    n = norm(values)
    return [v * (1 - threshold / n) if n > threshold else 0.0 for v in values]


def shrunk_in_metric(values: list[float], steps: list[float], strength: float) -> list[float]:
    """Bisection for the norm n with sum of w^2 / (n + strength s)^2 = 1."""
    if strength == 0:
        return values
    shifts = [strength * s for s in steps]

    def excess(n: float) -> float:
        return sum((v / (n + a)) ** 2 for v, a in zip(values, shifts, strict=True)) - 1

    if excess(0.0) <= 0:
        return [0.0] * len(values)
    low, high = 0.0, norm(values)
    for _ in range(300):
        middle = (low + high) / 2 if low else high / 2
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    return [v * high / (high + a) for v, a in zip(values, shifts, strict=True)]


def random(shape: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def objective_gap(v: Tensor, w: Tensor, steps: Tensor, strength: float, dims: Any) -> float:
    """Largest distance of 0 from the subdifferential of the proximal objective at v."""

    def gap(v: list[float], w: list[float], s: list[float]) -> list[float]:
        pull = [(a - b) / c for a, b, c in zip(v, w, s, strict=True)]
        n = norm(v)
        if n == 0:
            return [max(0.0, norm(pull) - strength)] * len(v)
        return [p + strength * a / n for p, a in zip(pull, v, strict=True)]

    return float(by_group(gap, v, dims, w, steps).abs().max())


# --- value and subgradient ---------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_value(case: str) -> None:
    shape, dims = CASES[case]
    w = random(shape)
    expected = sum(norm(w.flatten()[i].tolist()) for i in slices(shape, dims))
    assert float(group_lasso(w, dims)) == pytest.approx(expected)


@pytest.mark.parametrize("case", CASES)
def test_subgradient(case: str) -> None:
    shape, dims = CASES[case]
    w = random(shape).requires_grad_()
    group_lasso(w, dims).backward()
    found = group_lasso_subgradient(w.detach(), dims)
    torch.testing.assert_close(found, w.grad)
    expected = by_group(lambda v: [x / norm(v) for x in v], w.detach(), dims)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_subgradient_is_finite_at_and_near_zero(dtype: torch.dtype) -> None:
    w = torch.zeros(4, 3, dtype=dtype)
    w[1] = 1e-25
    w[2] = torch.finfo(dtype).tiny
    w[3] = 3.0
    found = group_lasso_subgradient(w, (0,))
    assert found.dtype == dtype
    assert bool(found.isfinite().all())
    assert float(found.float().norm(dim=1).max()) <= 1.01
    assert found[0].tolist() == [0, 0, 0]
    torch.testing.assert_close(found[3].double().square().sum().item(), 1.0, atol=1e-2, rtol=0)


# --- proximal maps -----------------------------------------------------------------------------


@pytest.mark.parametrize("bulk", BULKS)
@pytest.mark.parametrize("case", CASES)
def test_prox(case: str, bulk: str) -> None:
    shape, dims = CASES[case]
    w = random(shape)
    typical = float(group_lasso(w, dims)) / len(slices(shape, dims))
    threshold = BULKS[bulk] * typical
    found = prox_group_lasso(w, dims, threshold)
    torch.testing.assert_close(found, by_group(lambda v: shrunk(v, threshold), w, dims))
    if bulk == "identity":
        assert torch.equal(found, w)
    elif bulk == "kills_all":
        assert not bool(found.any())
    else:
        assert objective_gap(found, w, torch.ones_like(w), threshold, dims) < 1e-12
    metric = prox_group_lasso_metric(w, dims, torch.full_like(w, 0.5), 2 * threshold)
    torch.testing.assert_close(metric, found)


@pytest.mark.parametrize("spread", [0.0, 1.0, 3.0, 8.0])
@pytest.mark.parametrize("bulk", BULKS)
@pytest.mark.parametrize("case", CASES)
def test_prox_in_metric(case: str, bulk: str, spread: float) -> None:
    shape, dims = CASES[case]
    w, steps = random(shape), 10 ** (spread * (2 * torch.rand(shape, dtype=torch.float64) - 1))
    scale = float(np.median([norm((w / steps).flatten()[i].tolist()) for i in slices(shape, dims)]))
    strength = BULKS[bulk] * scale
    expected = by_group(lambda v, s: shrunk_in_metric(v, s, strength), w, dims, steps)
    found = prox_group_lasso_metric(w, dims, steps, strength)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    assert torch.equal(found == 0, expected == 0)
    single = prox_group_lasso_metric(w.float(), dims, steps.float(), strength)
    torch.testing.assert_close(single.double(), expected, rtol=1e-4, atol=1e-6)


def test_prox_in_metric_satisfies_the_optimality_condition() -> None:
    w, steps = random((6, 5)), 10 ** random((6, 5), 1)
    for strength in (0.01, 0.5, 2.0):
        found = prox_group_lasso_metric(w, (0,), steps, strength)
        assert objective_gap(found, w, steps, strength, (0,)) < 1e-9


def test_metric_with_extreme_steps_stays_finite_in_float32() -> None:
    w = torch.tensor([[1.0, 1.0, 1.0], [1e3, 1e-3, 0.0], [1e-20, 1e-20, 1e-20], [0.0, 0.0, 0.0]])
    steps = torch.tensor([1e-20, 1.0, 1e20]).expand(4, 3)
    found = prox_group_lasso_metric(w, (0,), steps, 1.0)
    assert bool(found.isfinite().all())
    expected = by_group(lambda v, s: shrunk_in_metric(v, s, 1.0), w, (0,), steps.clone())
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-30)


def test_a_step_of_zero_holds_an_element() -> None:
    w = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    found = prox_group_lasso_metric(w, (0,), torch.tensor([[0.0, 1.0]]).double(), 1.0)
    assert float(found[0, 0]) == pytest.approx(3.0)
    n = float(found.norm())
    assert float(found[0, 1]) == pytest.approx(4.0 * n / (n + 1.0))
    nothing = prox_group_lasso_metric(w, (0,), torch.zeros(1, 2).double(), 1.0)
    torch.testing.assert_close(nothing, w)
    small = prox_group_lasso_metric(torch.tensor([[0.0, 0.5]]), (0,), torch.tensor([[0.0, 1]]), 1.0)
    assert small.tolist() == [[0.0, 0.0]]


def test_zero_groups_stay_zero() -> None:
    w = torch.zeros(2, 3)
    w[1] = 1.0
    for threshold in (0.0, 0.1, 1e30):
        assert prox_group_lasso(w, (0,), threshold)[0].tolist() == [0, 0, 0]
        metric = prox_group_lasso_metric(w, (0,), torch.ones(2, 3), threshold)
        torch.testing.assert_close(metric, prox_group_lasso(w, (0,), threshold))


@settings(deadline=None, max_examples=50)
@given(
    case=st.sampled_from(sorted(CASES)),
    seed=st.integers(0, 2**20),
    size=st.floats(0.0, 5.0),
    spread=st.floats(0.0, 4.0),
)
def test_prox_is_nonexpansive_and_moreau_holds(
    case: str, seed: int, size: float, spread: float
) -> None:
    shape, dims = CASES[case]
    a, b = random(shape, seed), random(shape, seed + 1)
    pa, pb = prox_group_lasso(a, dims, size), prox_group_lasso(b, dims, size)
    assert float((pa - pb).norm()) <= float((a - b).norm()) + 1e-12
    # Moreau: what is left over is the projection onto the dual ball of radius `size`
    onto = by_group(lambda v: [x * min(1, size / max(norm(v), 1e-300)) for x in v], a, dims)
    torch.testing.assert_close(a - pa, onto, atol=1e-10, rtol=1e-8)
    steps = 10 ** (spread * (2 * torch.rand(shape, dtype=torch.float64) - 1))
    ma, mb = (prox_group_lasso_metric(x, dims, steps, size) for x in (a, b))
    root = steps.sqrt()
    assert float(((ma - mb) / root).norm()) <= float(((a - b) / root).norm()) * (1 + 1e-9) + 1e-12


def soft(weight: Tensor, threshold: Any) -> Tensor:
    found = weight.clone()
    shrink_elements_(GroupLasso(), found, threshold, 1.0)
    return found


def test_elements_are_soft_thresholded() -> None:
    w = random((5, 7))
    for threshold in (0.0, 0.5, 10.0):
        expected = [math.copysign(max(abs(x) - threshold, 0), x) for x in w.flatten().tolist()]
        torch.testing.assert_close(soft(w, threshold).flatten(), torch.tensor(expected).double())
    thresholds = random((5, 7), 1).abs()
    found = soft(w, thresholds)
    torch.testing.assert_close(found, w.sign() * (w.abs() - thresholds).clamp_min(0))
    assert bool((found[w.abs() <= thresholds] == 0).all())
    assert soft(w.bfloat16(), thresholds.float()).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_prox_of_half_precision(dtype: torch.dtype) -> None:
    w = random((4, 6), dtype=dtype)
    exact = prox_group_lasso(w.double(), (0,), 1.0)
    found = prox_group_lasso(w, (0,), 1.0)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), exact, rtol=1e-2, atol=1e-2)
    metric = prox_group_lasso_metric(w, (0,), torch.ones_like(w), 1.0)
    assert metric.dtype == dtype
    torch.testing.assert_close(metric.double(), exact, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("bad", [-1.0, math.nan])
def test_negative_thresholds(bad: float) -> None:
    w = torch.ones(2, 2)
    for call in (
        lambda: prox_group_lasso(w, (0,), bad),
        lambda: prox_group_lasso_metric(w, (0,), w, bad),
    ):
        with pytest.raises(ValueError, match="expected a number >= 0"):
            call()


def test_nested_groups_stepped_from_small_to_large_are_exact() -> None:
    """Kernels in filters in a layer, and elements in kernels: the tree of Jenatton et al."""
    w = random((2, 2, 2))
    levels = [((0, 1, 2), 0.1), ((0, 1), 0.2), ((0,), 0.3), ((), 0.4)]
    found = w
    for dims, strength in levels:
        found = prox_group_lasso(found, dims, strength)

    def objective(v: Tensor) -> Tensor:
        fit = 0.5 * (v - w).square().sum()
        return fit + sum((s * group_lasso(v, dims) for dims, s in levels), torch.zeros(()))

    best = float(objective(found))
    generator = torch.Generator().manual_seed(0)
    for size in (1e-1, 1e-2, 1e-3, 1e-4):
        for _ in range(200):
            step = size * torch.randn(w.shape, generator=generator, dtype=w.dtype)
            assert float(objective(found + step)) >= best
            assert float(objective(found + step * (found != 0))) >= best
    wrong = w
    for dims, strength in reversed(levels):
        wrong = prox_group_lasso(wrong, dims, strength)
    assert float(objective(wrong)) > best


# --- penalties as data -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_penalty_round_trips(kind: str) -> None:
    given: dict[str, Any] = {
        "kind": kind,
        "strength": 1e-3,
        "layers": ["a*", "b"],
        "mode": "subgradient",
        "schedule": {"kind": "ramp", "end": 4},
    }
    penalty = parse_penalty(given)
    assert penalty.kind == kind
    stored = penalty.to_dict()
    assert parse_penalty(stored) == penalty
    assert {**given, "schedule": stored["schedule"]}.items() <= stored.items()
    assert stored["schedule"]["end"] == 4
    assert parse_penalty(penalty) is penalty


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"kind": "filtr", "strength": 1}, "unknown kind 'filtr'. Did you mean filter"),
        ({"strength": 1}, "unknown kind None"),
        ({"kind": ["filter"], "strength": 1}, "unknown kind"),
        ("filter", "expected mappings"),
        ({"kind": "filter", "strengh": 1}, "no argument 'strengh'. Did you mean strength"),
        ({"kind": "filter", "strength": 1, "gamma": 3}, "no argument 'gamma'"),
        ({"kind": "filter", "strength": -1}, "expected a finite strength >= 0, got -1"),
        ({"kind": "filter", "strength": math.nan}, "expected a finite strength >= 0, got nan"),
        ({"kind": "filter", "strength": math.inf}, "expected a finite strength"),
        ({"kind": "filter", "strength": "1e-3"}, "expected a finite strength .*got '1e-3'"),
        ({"kind": "l1", "strength": True}, "expected a finite strength"),
        ({"kind": "filter", "strength": 1, "mode": "prox"}, "unknown mode 'prox'. Did you mean pr"),
        ({"kind": "filter", "strength": 1, "scaling": "sqrt"}, "unknown scaling 'sqrt'. Did you"),
        ({"kind": "filter", "strength": 1, "members": "x"}, "expected members 'all' or 'weight'"),
        ({"kind": "l1", "strength": 1, "layers": []}, "expected `layers` to be a glob"),
        ({"kind": "l1", "strength": 1, "schedule": {"kind": "x"}}, "Unknown schedule kind"),
    ],
)
def test_errors(given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_penalty(given)


SIZES = {"filter": 36, "channel": 54, "shape": 6, "kernel": 9, "depth": 216, "l1": 1, "element": 1}


def test_every_kind_of_a_convolution_is_scaled() -> None:
    conv = nn.Conv2d(4, 6, 3)
    assert {name for name, kind in KINDS.items() if kind.view(conv) is not None} == set(SIZES)


@pytest.mark.parametrize("kind", SIZES)
def test_scaling_of_strength(kind: str) -> None:
    view = KINDS[kind].view(nn.Conv2d(4, 6, 3))
    assert view is not None
    group_set, size = GroupSet("", kind, (Member("w", *view),)), SIZES[kind]
    assert Penalty(2.0, kind=kind).group_strength(group_set) == pytest.approx(2 * size**0.5)
    assert Penalty(2.0, kind=kind, scaling="none").group_strength(group_set) == 2.0


@settings(deadline=None, max_examples=200)
@given(
    seed=st.integers(0, 2**32 - 1),
    decades=st.floats(0.0, 12.0),
    size=st.integers(1, 40),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_a_fixed_number_of_newton_steps_is_enough(seed, decades, size, dtype):
    """What runs on an accelerator, where nobody asks whether the steps suffice."""
    generator = torch.Generator().manual_seed(seed)

    def draw() -> Tensor:
        return 10 ** (decades * (torch.rand(30, size, generator=generator, dtype=dtype) - 0.5))

    w, step = draw(), draw()
    expected = prox_group_lasso_metric(w, (0,), step, 0.3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ssl_lightning.steps.HOST_DEVICES", frozenset())
        found = prox_group_lasso_metric(w, (0,), step, 0.3)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(found, expected, rtol=100 * eps, atol=100 * eps * float(w.max()))
