"""Networks with random statistics and zero patterns, for the tests of graph and compaction."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from ssl_lightning.compaction import Plan, compact, make_plan
from ssl_lightning.graph import norm_followers, trace

WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


@torch.no_grad()
def randomise_(net: nn.Module, seed: int = 0) -> nn.Module:
    """Give every vector (biases, scales, shifts) and every running statistic random values.

    Matrices that start as zeros (the heads of some transformers) get some too: else the network's
    output is constant, and everything can be removed.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, p in net.named_parameters():
        if p.dim() <= 1:
            p.copy_(torch.randn(p.shape, generator=generator) * 0.3 + name.endswith("weight"))
        elif not bool(p.any()):
            p.copy_(torch.randn(p.shape, generator=generator) * 0.1)
    for name, b in net.named_buffers():
        if name.endswith("running_mean"):
            b.copy_(torch.randn(b.shape, generator=generator) * 0.3)
        if name.endswith("running_var"):
            b.copy_(torch.rand(b.shape, generator=generator) + 0.5)
    return net


@torch.no_grad()
def zero_(layer: nn.Module, outputs: list[int] | slice | Tensor, norm: nn.Module | None = None):
    """Zero outputs of a layer, bias included, and the same channels of a norm behind it."""
    layer.weight[outputs] = 0
    for p in (layer.bias, *((norm.weight, norm.bias) if norm is not None else ())):
        if p is not None:
            p[outputs] = 0


@torch.no_grad()
def zero_randomly_(net: nn.Module, x, fraction: float, seed: int = 0, norms: bool = True):
    """Zero random outputs of every weighted layer, and the norm's channels behind them."""
    generator = torch.Generator().manual_seed(seed)
    modules = dict(net.named_modules())
    followers = norm_followers(trace(net, x)) if norms else {}
    for name, m in modules.items():
        if isinstance(m, WEIGHTED) and m.weight.dim() > 1:
            norm = modules.get(followers.get(name, "no norm"))
            norm = norm if norm is not None and norm.weight is not None else None
            zero_(m, torch.rand(len(m.weight), generator=generator) < fraction, norm)
    return net


def outputs_of(net: nn.Module, *x: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return torch.utils._pytree.tree_leaves(net(*x))


def assert_same(net: nn.Module, small: nn.Module, *x: Tensor, tolerance: float) -> None:
    found, expected = outputs_of(small, *x), outputs_of(net, *x)
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        scale = max(float(b.abs().max()), 1e-20) if b.numel() else 1.0
        assert not b.numel() or float((a - b).abs().max()) <= tolerance * scale


def check_equal(
    net: nn.Module, *x: Tensor, batches: tuple[int, ...] = (1, 3), double: bool = True
) -> tuple[nn.Module, Plan]:
    """Plan and compact; compare in float32 and float64 for several batch sizes; return both."""
    net.eval()
    before = copy.deepcopy(net.state_dict())
    plan = make_plan(net, x)
    small = compact(net, plan)
    assert not [note for note in plan.notes if "nothing was removed:" in note], plan.notes
    for key, value in net.state_dict().items():
        assert torch.equal(value, before[key])
    full64 = copy.deepcopy(net).double() if double else None
    small64 = compact(full64, plan) if double else None  # constants were rounded in `small`
    for batch in batches:
        inputs = [torch.randn(batch, *t.shape[1:]) if t.is_floating_point() else t for t in x]
        assert_same(net, small, *inputs, tolerance=1e-5)
        if double:
            inputs = [t.double() if t.is_floating_point() else t for t in inputs]
            assert_same(full64, small64, *inputs, tolerance=1e-10)
    return small, plan


def kept(plan: Plan) -> dict[str, tuple[int, int]]:
    """Return the numbers of kept inputs and outputs of every module."""
    return {name: (len(s.inputs), len(s.outputs)) for name, s in plan.modules.items()}
