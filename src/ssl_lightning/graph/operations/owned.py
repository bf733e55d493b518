"""What the operations of layers with tensors of their own have in common."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ssl_lightning.graph.flow import Flow, Value
from ssl_lightning.graph.labels import spread
from ssl_lightning.graph.ops import Op
from ssl_lightning.graph.rule import first

UNIFORM = 1e-9
"""Largest relative difference between positions of a channel that is called constant."""


def owns(op: Op, flow: Flow, *names: str, start: int = 1) -> bool:
    """Whether an operation reads its module's own tensors, in this order from an argument on."""
    module = flow.model.get_submodule(op.module)
    for position, name in enumerate(names, start=start):
        given = op.args[position] if len(op.args) > position else None
        if given is None and getattr(module, name, None) is not None:
            return False
        own = f"{op.module}.{name}".lstrip(".")
        if given is not None and flow.trace.owner(op, position) != own:
            return False
    return True


def known_outputs(op: Op, flow: Flow, count: int) -> Tensor:
    """Return the output labels of a module: those of its earlier run, or new ones."""
    site = flow.sites.get(op.module)
    return site.outputs if site else flow.labels.fresh(count)


def same_channels(op: Op, flow: Flow) -> Tensor:
    """The result has its input's channels, and the module is rewritten for those that remain."""
    channels = flow.labels.per_index(flow.slices[first(op)], 1)
    flow.add_site(op, channels, channels)
    return spread(channels, op.shape, 1)


def layer_varies(
    op: Op, flow: Flow, support: Callable[..., Value], dim: int, padded: bool = False
) -> Value:
    """A layer's result varies where it reads something that does with a non-zero weight.

    Behind zero padding, a constant that is not zero gives another result at the border.

    Args:
        op: the operation of a convolution or a linear layer.
        flow: the analysis.
        support: the function of its rule.
        dim: the dimension of what it reads that numbers the channels.
        padded: whether it pads.
    """
    settle_channels(op, flow, dim)
    x, weight = first(op), op.args[1].name
    source = flow.alive if padded else flow.varies
    found: Tensor = support(op, {**flow.varies, x: source[x], weight: flow.alive[weight]})
    if bool(flow.varies[weight].any()):
        found = found + support(op, {**flow.varies, x: flow.alive[x]})
    return found


def settle_channels(op: Op, flow: Flow, dim: int) -> None:
    """Call varying what a layer reads unless whole channels of it are constant.

    A constant must be the same at all positions, for a map may have another size next time.
    """
    x = first(op)
    alive, varies, value = flow.alive[x], flow.varies[x], flow.values[x]
    if not flow.absorbs(op):
        flow.varies[x] = alive
        return
    rows = value.movedim(dim, 0).reshape(value.shape[dim], -1)
    spread_of = rows.amax(1) - rows.amin(1)
    whole = ~varies.movedim(dim, 0).reshape(rows.shape).any(1)
    uniform = (spread_of <= UNIFORM * rows.abs().amax(1).clamp_min(1e-300)).cpu() & whole
    if not bool(uniform.all()):
        view = [-1 if d == dim % value.dim() else 1 for d in range(value.dim())]
        flow.varies[x] = torch.where(uniform.view(view), varies, alive)


def as_tuple(sizes: object) -> tuple[object, ...]:
    """Return sizes, given as a number, a list or the word ``same``, as a tuple."""
    return tuple(sizes) if isinstance(sizes, (tuple, list)) else (sizes,)
