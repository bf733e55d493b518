"""Sums, products and quotients of two operands, element by element."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ssl_lightning.graph.flow import Flow, Value, binary
from ssl_lightning.graph.labels import varies
from ssl_lightning.graph.ops import Op, Ref
from ssl_lightning.graph.rule import Rule, first, fix_all, rows


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

TABLE = {
    **dict(rows(SUM, "add sub maximum minimum")),
    "mul": Rule(product_support, tie_operands, varies=product_varies, operands="two"),
    "div": Rule(quotient_support, tie_operands, quotient_needs, quotient_varies, operands="two"),
    "expand_as": Rule(expanded_support, tie_operands),
}
