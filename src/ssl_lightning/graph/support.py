"""First question of a rule: which elements of a result can be non-zero?

Masks are float tensors of the values' own shapes. All functions are monotone: the more elements of
the inputs can be non-zero, the more of the result can. So a mask stays right when elements that
are not needed are taken away.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_lightning.graph.flow import Value
from ssl_lightning.graph.ops import Op, Ref


def ones(op: Op, alive: Mapping[str, Value]) -> Value:
    """Everything can be non-zero."""
    if isinstance(op.shape, list):
        return [torch.ones(shape) for shape in op.shape]
    return torch.ones(op.shape or ())


def literal(op: Op, values: Mapping[str, Value]) -> Value:
    """Run the operation itself: right for whatever only moves elements or adds them up."""
    return op.run(values)


def first(op: Op) -> str:
    """Name of the first value that the operation reads."""
    return op.inputs()[0]


def leaf(op: Op) -> Any:
    """Return the module that a merged operation is."""
    return op.target.__self__  # type: ignore[attr-defined]


def same(op: Op, alive: Mapping[str, Value]) -> Value:
    """Zero exactly where the input is."""
    return alive[first(op)]


def pointwise(op: Op, alive: Mapping[str, Value]) -> Value:
    """Zero where the input is zero, if the function maps 0 to 0 (it is asked)."""
    probe = op.run({first(op): torch.zeros(1)})
    return alive[first(op)] if bool((probe == 0).all()) else torch.ones(op.shape)


def operands(op: Op, values: Mapping[str, Value]) -> list[Tensor]:
    """Return both operands of a binary operation; numbers become masks of one element."""
    both = [op.args[0], op.args[1]]
    return [values[v.name] if isinstance(v, Ref) else torch.tensor(float(v != 0)) for v in both]


def either(op: Op, alive: Mapping[str, Value]) -> Tensor:
    """A sum can be non-zero where either operand can."""
    a, b = operands(op, alive)
    return a + b


def both(op: Op, alive: Mapping[str, Value]) -> Tensor:
    """A product can be non-zero where both operands can."""
    a, b = operands(op, alive)
    return a * b


def numerator(op: Op, alive: Mapping[str, Value]) -> Tensor:
    """A quotient is zero where its numerator is."""
    a, b = operands(op, alive)
    return a * torch.ones_like(b)


def convolution(op: Op, alive: Mapping[str, Value]) -> Value:
    """Zero where every product is: a kernel with a non-zero tap counts as non-zero everywhere.

    That makes the answer hold for other image sizes, at which other taps meet the padding.
    """
    weight = op.args[1].name
    if op.kind.startswith("conv_transpose"):  # which taps meet depends on position and stride
        return transposed_convolution(op, alive)
    kernels = alive[weight].sum(tuple(range(2, alive[weight].dim())), keepdim=True)
    return op.run({**alive, weight: kernels.expand_as(alive[weight])})


def transposed_convolution(op: Op, alive: Mapping[str, Value]) -> Tensor:
    """Zero in channels that read nothing: positions are not told apart."""
    x: Tensor = alive[first(op)].flatten(2).amax(-1)
    weight = alive[op.args[1].name].flatten(2).amax(-1)
    groups = op.argument(6, "groups", 1)
    parts = x.unflatten(1, (groups, -1)), weight.unflatten(0, (groups, -1))
    found = torch.einsum("ngi,gio->ngo", *parts).flatten(1)
    if isinstance(op.argument(2, "bias"), Ref):
        found = found + alive[op.args[2].name]
    result: Tensor = found.view(*found.shape, *[1] * (len(op.shape) - 2)).expand(op.shape)
    return result


def glu(op: Op, alive: Mapping[str, Value]) -> Tensor:
    """The first half times a gate that is never zero."""
    value, gate = alive[first(op)].chunk(2, op.argument(1, "dim", -1))
    result: Tensor = value * (1 + gate)
    return result


def embedding(op: Op, alive: Mapping[str, Value]) -> Tensor:
    """Zero in channels in which all rows of the table are."""
    channels: Tensor = alive[first(op)].amax(0)
    return channels.expand(op.shape)


def batch_norm(op: Op, alive: Mapping[str, Value]) -> Tensor:
    """Zero where scale times input, the shift, and scale times running mean are.

    A shift that the running mean happens to cancel counts as non-zero.
    """
    x, weight, bias, mean, _ = (alive[a.name] if isinstance(a, Ref) else None for a in op.args[:5])
    assert x is not None
    assert mean is not None, "batch norm without running statistics has no rule"
    scale = torch.ones_like(mean) if weight is None else weight
    shift = mean * scale if bias is None else bias + mean * scale
    view = [1, -1] + [1] * (x.dim() - 2)
    result: Tensor = x * scale.view(view) + shift.view(view)
    return result


def layer_norm(op: Op, alive: Mapping[str, Value]) -> Tensor:
    """Zero where scale and shift are: a zero channel is moved away from zero by the others."""
    dims = tuple(range(-len(op.args[1]), 0))
    return numbered(alive[first(op)].amax(dims, keepdim=True).expand(op.shape), op, alive)


def rms_norm(op: Op, alive: Mapping[str, Value]) -> Tensor:
    """Zero where the input or the scale is: nothing is subtracted."""
    return numbered(alive[first(op)], op, alive)


def numbered(found: Tensor, op: Op, alive: Mapping[str, Value]) -> Tensor:
    """Return where scale times what was found, and the shift, are not zero.

    They are the arguments from the third on, of the last dimensions' sizes.
    """
    given = [alive[a.name] if isinstance(a, Ref) else None for a in (*op.args, None)[2:4]]
    scale, shift = (*given, None)[:2]
    scaled = found if scale is None else found * scale
    return scaled if shift is None else scaled + shift


def group_norm(op: Op, alive: Mapping[str, Value]) -> Tensor:
    """Zero where scale and shift are, and in groups that are zero."""
    x: Tensor = alive[first(op)]
    groups = x.reshape(x.shape[0], op.args[1], -1)
    found = groups.amax(-1, keepdim=True).expand_as(groups).reshape(x.shape)
    return affine(found, op, 2, alive, 1)


def instance_norm(op: Op, alive: Mapping[str, Value]) -> Tensor:
    """Zero where scale times input and the shift are."""
    assert op.args[5] is True, "instance norm with running statistics has no rule"
    x: Tensor = alive[first(op)]
    return affine(
        x.flatten(2).amax(-1)[..., None].expand(*x.shape[:2], x[0, 0].numel()).reshape(x.shape),
        op,
        1,
        alive,
        1,
    )


def batch_statistics(op: Op, alive: Mapping[str, Value]) -> Tensor:
    """Zero where scale times a channel of any sample, and the shift, are."""
    x: Tensor = alive[first(op)]
    dims = tuple(d for d in range(x.dim()) if d != 1)
    return affine(x.amax(dims, keepdim=True).expand(x.shape), op, 1, alive, 1)


def affine(found: Tensor, op: Op, position: int, alive: Mapping[str, Value], dim: int) -> Tensor:
    """Return where scale times what was found, and the shift, are not zero.

    Scale and shift are the arguments from ``position`` on, one per channel in dimension ``dim``.
    """
    view = [1] * found.dim()
    view[dim] = -1
    scale, shift = (
        alive[a.name].view(view) if isinstance(a, Ref) else None
        for a in op.args[position : position + 2]
    )
    scaled = found if scale is None else found * scale
    return scaled if shift is None else scaled + shift


def by_channel(op: Op, alive: Mapping[str, Value]) -> Tensor:
    """Zero in a channel whose input is zero everywhere (pooling, interpolation)."""
    x: Tensor = alive[first(op)]
    mask = x.flatten(start_dim=-spatial_dims(op)).amax(-1)
    shape = op.shape[0] if isinstance(op.shape, list) else op.shape
    return mask.view(*mask.shape, *[1] * spatial_dims(op)).expand(shape)


def with_indices(op: Op, alive: Mapping[str, Value]) -> list[Tensor]:
    """Pooling, and the indices of what it found: these can be anything."""
    return [by_channel(op, alive), torch.ones(op.shape[1])]


def reduced(op: Op, alive: Mapping[str, Value]) -> Value:
    """Zero where all that is reduced is; indices, if they are asked for, can be anything."""
    x: Tensor = alive[first(op)]
    dims, keepdim = reduced_dims(op, x.dim())
    found: Tensor = x.sum(dims, keepdim)
    return [found, torch.ones(op.shape[1])] if isinstance(op.shape, list) else found


def reduced_dims(op: Op, rank: int) -> tuple[list[int], bool]:
    """Return the dimensions that an operation reduces, last first, and whether it keeps them."""
    position = 2 if op.kind == "linalg_vector_norm" else 1
    given = op.argument(position, "dim")
    if given is None or given == [] or isinstance(given, bool):  # var(x, unbiased) reduces all
        dims = list(range(rank))[::-1]
    else:
        named = [given] if isinstance(given, int) else given
        dims = sorted({dim % rank for dim in named}, reverse=True)
    keepdim = 3 if op.kind in ("var", "std") else position + 1
    return dims, bool(op.argument(keepdim, "keepdim", False))


def expanded(op: Op, alive: Mapping[str, Value]) -> Tensor:
    """Zero where what is expanded to the shape of another value is."""
    x: Tensor = alive[first(op)]
    return x.expand(op.shape)


def spatial_dims(op: Op) -> int:
    """Return 2 for ``max_pool2d``."""
    found = re.search(r"(\d)d", op.kind)
    assert found is not None, f"{op.kind} has no number of dimensions in its name"
    return int(found[1])


def padded(op: Op, alive: Mapping[str, Value]) -> Tensor:
    """Zero where the input is, and in the padding if that is filled with zeros.

    Padding with what is inside makes a channel that is not zero non-zero there.
    """
    mode, value = padding(op)
    if mode != "constant":
        dims = tuple(range(-len(op.args[1]) // 2, 0))
        found: Tensor = alive[first(op)].amax(dims, keepdim=True)
        return found.expand(op.shape)
    return F.pad(alive[first(op)], op.args[1], value=float(value != 0))


def padding(op: Op) -> tuple[str, float]:
    """Return the mode of a padding operation, and the number that it writes."""
    if op.kind.startswith(("reflection", "replication")):
        mode, value = "inside", 0.0
    elif op.kind == "pad":
        mode, value = op.argument(2, "mode", "constant"), op.argument(3, "value", 0)
    else:
        mode, value = "constant", op.argument(2, "value", 0)
    return mode, float(value or 0)


def shortcut(op: Op, alive: Mapping[str, Value]) -> Tensor:
    """Zero where the source channel of a padded shortcut is, or where it has none."""
    module = leaf(op)
    mask: Tensor = alive[first(op)][:, :, :: module.stride, :: module.stride]
    mask = F.pad(mask, (0, 0, 0, 0, 0, 1))
    return mask.index_select(1, torch.tensor([s % mask.shape[1] for s in module.source]))


def constant_layer(op: Op, alive: Mapping[str, Value]) -> Tensor:
    """Zero but for the bias, the only thing a layer without weights reads."""
    dim = leaf(op).channel_dim % len(op.shape)
    view = [-1 if d == dim else 1 for d in range(len(op.shape))]
    bias = alive[first(op)] if op.inputs() else torch.zeros(op.shape[dim])
    return bias.view(view).expand(op.shape)


def zeros(op: Op, alive: Mapping[str, Value]) -> Tensor:
    """Nothing can be non-zero."""
    return torch.zeros(op.shape)
