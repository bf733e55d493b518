"""Functions of each element: activations, dropout, copies, and masks that replace elements."""

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
}
