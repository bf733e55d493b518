"""Operations on each element: functions, sums and products of two operands, masks, copies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ssl_lightning.graph.flow import Flow, Value, binary
from ssl_lightning.graph.labels import spread, varies
from ssl_lightning.graph.operations.owned import owns, same_channels
from ssl_lightning.graph.ops import Op, Ref
from ssl_lightning.graph.rule import (
    Rule,
    as_alive,
    first,
    fix_all,
    keep_labels,
    never,
    nothing,
    ones,
    rows,
    same,
    same_elements,
    untouched,
)

# --- two operands -------------------------------------------------------------------------------


def operands(op: Op, values: Mapping[str, Value]) -> list[Tensor]:
    """Return both operands of a binary operation; numbers become masks of one element."""
    both = [op.args[0], op.args[1]]
    return [values[v.name] if isinstance(v, Ref) else torch.tensor(float(v != 0)) for v in both]


def changes(op: Op, flow: Flow) -> list[Tensor]:
    """Return where both operands of a binary operation vary; numbers do not."""
    given = op.args[:2]
    return [flow.varies[v.name] if isinstance(v, Ref) else torch.zeros(()) for v in given]


def tie_operands(op: Op, flow: Flow) -> Value:
    """Slices of both operands are tied, except along a dimension that broadcasting repeats.

    Where one operand has size 1 and the other's slices differ (a spatial attention map times all
    channels), the one must keep its single slice and the other is free.
    """
    rank = len(op.shape)
    tensors = [flow.slices[arg.name] for arg in op.args[:2] if isinstance(arg, Ref)]
    tensors = [t.view(*[1] * (rank - t.dim()), *t.shape) for t in tensors]
    tied = []
    for labels, other in zip(tensors, reversed(tensors), strict=True):
        repeated = [d for d in range(rank) if labels.shape[d] != op.shape[d]]
        if any(varies(other, d) for d in repeated):
            flow.labels.fix(labels)
        else:
            tied.append(labels.expand(op.shape))
    if not tied:
        return fix_all(op, flow)
    for labels in tied[1:]:
        flow.labels.union(tied[0], labels)
    return tied[0]


def sum_support(op: Op, alive: Mapping[str, Value]) -> Tensor:
    """A sum can be non-zero where either operand can."""
    a, b = operands(op, alive)
    return a + b


def sum_needs(op: Op, flow: Flow, needed: Value) -> dict[str, Value]:
    """A sum needs both operands wherever it is needed, zero or not."""
    names = [arg.name for arg in op.args[:2] if isinstance(arg, Ref)]
    return {name: binary(needed.sum_to_size(flow.alive[name].shape)) for name in names}


def sum_varies(op: Op, flow: Flow) -> Tensor:
    """A sum varies where either operand does."""
    a, b = changes(op, flow)
    return a + b


def product_support(op: Op, alive: Mapping[str, Value]) -> Tensor:
    """A product can be non-zero where both operands can."""
    a, b = operands(op, alive)
    return a * b


def product_varies(op: Op, flow: Flow) -> Tensor:
    """A product varies where one factor does and the other can be non-zero."""
    (a, b), (da, db) = operands(op, flow.alive), changes(op, flow)
    return da * b + a * db


def quotient_support(op: Op, alive: Mapping[str, Value]) -> Tensor:
    """A quotient is zero where its numerator is."""
    a, b = operands(op, alive)
    return a * torch.ones_like(b)


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


def quotient_varies(op: Op, flow: Flow) -> Tensor:
    """A quotient varies where its numerator does, or is not zero and the denominator varies."""
    (a, b), (da, db) = operands(op, flow.alive), changes(op, flow)
    return da * torch.ones_like(b) + a * db


def expanded_support(op: Op, alive: Mapping[str, Value]) -> Tensor:
    """Zero where what is expanded to the shape of another value is."""
    x: Tensor = alive[first(op)]
    return x.expand(op.shape)


SUM = Rule(sum_support, tie_operands, sum_needs, sum_varies, operands="two")


# --- one operand, and masks ----------------------------------------------------------------------


def prelu_labels(op: Op, flow: Flow) -> Value:
    """One slope for all channels ties nothing; slopes of their own belong to their channels."""
    labels, slopes = keep_labels(op, flow), flow.slices[op.inputs()[1]]
    if slopes.numel() == 1:
        return labels
    module = flow.model.get_submodule(op.module)
    if isinstance(module, nn.PReLU) and owns(op, flow, "weight"):
        return same_channels(op, flow)
    channels = flow.labels.per_index(labels, 1)
    flow.labels.union(channels, flow.labels.per_index(slopes, 0))
    return spread(channels, op.shape, 1)


def glu_support(op: Op, alive: Mapping[str, Value]) -> Tensor:
    """The first half times a gate that is never zero."""
    value, gate = alive[first(op)].chunk(2, op.argument(1, "dim", -1))
    result: Tensor = value * (1 + gate)
    return result


def glu_labels(op: Op, flow: Flow) -> Value:
    """Both halves lose the same of their slices."""
    labels = flow.slices[first(op)]
    halves = labels.chunk(2, op.argument(1, "dim", -1))
    flow.labels.union(*halves)
    return flow.labels.along_one_dim(halves[0])


def masked_support(op: Op, alive: Any) -> Tensor:
    """Where a value is not zero, or a number or value that is not zero may replace it."""
    given = [arg for arg in op.args if isinstance(arg, (Ref, int, float))]
    given = given[1:] if op.kind == "where" else [given[0], given[2]]
    masks = [alive[v.name] if isinstance(v, Ref) else torch.tensor(float(v != 0)) for v in given]
    found: Tensor = sum(masks, torch.zeros(()))
    return found.expand(op.shape)


def masked_labels(op: Op, flow: Flow) -> Value:
    """Slices of all operands are removed together; those that broadcast remain whole."""
    names = [name for name in dict.fromkeys(op.inputs()) if flow.slices[name].dim()]
    rank = len(op.shape)
    wide = {
        n: flow.slices[n].view(*[1] * (rank - flow.slices[n].dim()), *flow.slices[n].shape)
        for n in names
    }
    dims = {d for labels in wide.values() for d in range(rank) if varies(labels, d)}
    if len(dims) != 1:
        return fix_all(op, flow)
    (dim,) = dims
    whole = [labels for labels in wide.values() if labels.shape[dim] == op.shape[dim]]
    for labels in wide.values():
        if labels.shape[dim] != op.shape[dim]:
            flow.labels.fix(labels)
    tied = [flow.labels.per_index(labels, dim) for labels in whole]
    for row in tied[1:]:
        flow.labels.union(tied[0], row)
    return spread(tied[0], op.shape, dim)


def masked_needs(op: Op, flow: Flow, needed: Value) -> dict[str, Value]:
    """Every operand, where the result is needed."""
    result = {}
    for name in dict.fromkeys(op.inputs()):
        result[name] = binary(needed.sum_to_size(flow.alive[name].shape))
    return result


def zeros_support(op: Op, alive: Mapping[str, Value]) -> Tensor:
    """Nothing can be non-zero."""
    return torch.zeros(op.shape)


POINTWISE, IDENTITY = Rule.pointwise(), Rule.identity()
MASKED = Rule(masked_support, masked_labels, masked_needs, as_alive, constants=False)
ZEROS = Rule(zeros_support, untouched, nothing, never)

TABLE = {
    **dict(
        rows(
            POINTWISE,
            "relu relu6 hardtanh leaky_relu elu selu celu silu gelu mish hardswish hardsigmoid",
            "sigmoid tanh softplus softshrink hardshrink threshold",
            "abs neg sign square pow sqrt rsqrt reciprocal exp log sin cos erf rsub",
            "clamp clamp_min clamp_max round floor ceil",
        )
    ),
    **dict(
        rows(
            replace(POINTWISE, aliases=True),
            "dropout feature_dropout alpha_dropout feature_alpha_dropout",
        )
    ),
    **dict(rows(IDENTITY, "clone contiguous detach alias to _to_copy")),
    "prelu": Rule(same, prelu_labels, same_elements),
    "glu": Rule(glu_support, glu_labels, varies=as_alive, constants=False),
    **dict(rows(MASKED, "masked_fill where")),
    **dict(rows(ZEROS, "zeros zeros_like new_zeros")),
    "ZeroLike": Rule(zeros_support, keep_labels, nothing, never),
    **dict(rows(Rule(ones, untouched, nothing), "_assert_tensor_metadata _assert_scalar")),
    **dict(rows(SUM, "add sub maximum minimum")),
    "mul": Rule(product_support, tie_operands, varies=product_varies, operands="two"),
    "div": Rule(quotient_support, tie_operands, quotient_needs, quotient_varies, operands="two"),
    "expand_as": Rule(expanded_support, tie_operands),
}
