"""Second question of a rule: which elements of the inputs does a set of elements depend on?

Where the input is zero and would be zero in any case, it is not needed; where a factor of a product
is zero, the other one is not. Most rules answer with the transpose of their support.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ssl_lightning.graph.flow import Flow, Value, as_list, binary, filled, like
from ssl_lightning.graph.ops import Op, Ref
from ssl_lightning.graph.support import first, leaf, operands, reduced_dims, spatial_dims


def transpose(op: Op, flow: Flow, needed: Value, support: Callable[..., Value]) -> dict[str, Value]:
    r"""Run ``support`` backwards: an input is needed where it changes a needed result.

    .. math:: need(x)_i = [\textstyle\sum_j need(y)_j \, \partial y_j / \partial x_i \ne 0]

    All terms are non-negative, because support functions are monotone, so nothing cancels.
    """
    names = [n for n in dict.fromkeys(op.inputs()) if n not in flow.trace.tensors]
    masks = {n: flow.alive[n] for n in op.inputs()}
    leaves = {n: [t.clone().requires_grad_() for t in as_list(flow.alive[n])] for n in names}
    masks.update({n: like(flow.alive[n], tensors) for n, tensors in leaves.items()})
    with torch.enable_grad():
        outs = as_list(support(op, masks))
    pairs = [p for p in zip(outs, as_list(needed), strict=True) if p[0].requires_grad]
    flat = [t for tensors in leaves.values() for t in tensors]
    grads: tuple[Tensor | None, ...] = (None,) * len(flat)
    if pairs:
        results, cotangents = zip(*pairs, strict=True)
        grads = torch.autograd.grad(results, flat, cotangents, allow_unused=True)
    hits = iter(
        torch.zeros_like(t) if g is None else binary(g) for t, g in zip(flat, grads, strict=True)
    )
    return {n: like(flow.alive[n], [next(hits).detach() for _ in leaves[n]]) for n in names}


def everything(op: Op, flow: Flow, needed: Value) -> dict[str, Value]:
    """All inputs are needed."""
    return {name: filled(flow.alive[name], 1.0) for name in op.inputs()}


def nothing(op: Op, flow: Flow, needed: Value) -> dict[str, Value]:
    """No input is needed: only its shape is read."""
    return {}


def same_elements(op: Op, flow: Flow, needed: Value) -> dict[str, Value]:
    """Each element of the result depends on the same element of the input."""
    return {first(op): needed}


def embedding_needs(op: Op, flow: Flow, needed: Value) -> dict[str, Value]:
    """Of the table, the channels that are needed; and the indices."""
    table, *indices = op.inputs()
    rows = needed.reshape(-1, needed.shape[-1]).amax(0)
    whole = {name: torch.ones_like(flow.alive[name]) for name in indices}
    return {table: rows.expand(flow.alive[table].shape), **whole}


def sum_needs(op: Op, flow: Flow, needed: Value) -> dict[str, Value]:
    """A sum needs both operands wherever it is needed, zero or not."""
    names = [arg.name for arg in op.args[:2] if isinstance(arg, Ref)]
    return {name: binary(needed.sum_to_size(flow.alive[name].shape)) for name in names}


def quotient_needs(op: Op, flow: Flow, needed: Value) -> dict[str, Value]:
    """A quotient needs its denominator only where its numerator can be non-zero."""
    above = operands(op, flow.alive)[0] * needed
    result: dict[str, Value] = {}
    for arg, mask in zip(op.args[:2], (needed, above), strict=True):
        if isinstance(arg, Ref):
            found = binary(mask.sum_to_size(flow.alive[arg.name].shape))
            before = result.get(arg.name, torch.zeros(()))
            result[arg.name] = torch.maximum(before, found)
    return result


def window_needs(op: Op, flow: Flow, needed: Value) -> dict[str, Value]:
    """A channel after local response normalisation depends on its neighbours.

    Of an even window both ends are taken, which is one neighbour more than it has.
    """
    module = leaf(op)
    positions = getattr(module, "index", torch.arange(needed.shape[1])).cpu()
    far = (positions[:, None] - positions[None, :]).abs() > module.size // 2
    near = torch.einsum("oi,no...->ni...", (~far).float(), needed)
    return {first(op): binary(near)}


def channel_needs(op: Op, flow: Flow, needed: Value) -> dict[str, Value]:
    """A needed element of a channel may depend on the whole channel (also the one not largest)."""
    mask = needed.flatten(start_dim=-spatial_dims(op)).amax(-1)
    shape = flow.alive[first(op)].shape
    return {first(op): mask.view(*mask.shape, *[1] * spatial_dims(op)).expand(shape)}


def indices_needs(op: Op, flow: Flow, needed: Value) -> dict[str, Value]:
    """What pooling found, and where, may both depend on the whole channel."""
    return channel_needs(op, flow, torch.maximum(needed[0], needed[1]))


def unpool_needs(op: Op, flow: Flow, needed: Value) -> dict[str, Value]:
    """An index is needed where its value can be non-zero."""
    x, indices = op.inputs()
    found = channel_needs(op, flow, needed)
    return {**found, indices: found[x] * by_channel_of(flow.alive[x], spatial_dims(op))}


def by_channel_of(mask: Tensor, dims: int) -> Tensor:
    """Return where the channel of an element has any, same shape; positions are the last dims."""
    return mask.amax(tuple(range(-dims, 0)), keepdim=True).expand_as(mask)


def reduced_needs(op: Op, flow: Flow, needed: Value) -> dict[str, Value]:
    """The largest element, or the spread, depends on all elements, zero or not."""
    x = flow.alive[first(op)]
    dims, keepdim = reduced_dims(op, x.dim())
    parts = as_list(needed)
    mask = parts[0] if len(parts) == 1 else torch.maximum(*parts)
    for dim in () if keepdim else reversed(dims):
        mask = mask.unsqueeze(dim)
    return {first(op): mask.expand_as(x)}


def whole_groups(op: Op, flow: Flow, needed: Value) -> dict[str, Value]:
    """A normalised element depends on all elements that it is normalised with."""
    x = first(op)
    if op.kind in ("layer_norm", "rms_norm"):
        dims = tuple(range(-len(op.args[1]), 0))
        return {x: needed.amax(dims, keepdim=True).expand_as(needed)}
    if op.kind == "batch_norm":  # by the statistics of the batch
        dims = tuple(d for d in range(needed.dim()) if d != 1)
        return {x: needed.amax(dims, keepdim=True).expand_as(needed)}
    groups = op.args[1] if op.kind == "group_norm" else needed.shape[1]
    rows = needed.reshape(needed.shape[0], groups, -1)
    return {x: rows.amax(-1, keepdim=True).expand_as(rows).reshape(needed.shape)}
