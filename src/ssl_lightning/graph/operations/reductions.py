"""Sums, means, largest elements and spreads over some dimensions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ssl_lightning.graph.flow import Flow, Value, as_list
from ssl_lightning.graph.labels import varies
from ssl_lightning.graph.ops import Op
from ssl_lightning.graph.rule import Rule, as_alive, first, fix_all, fixed, literal, rows


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


def reduced_support(op: Op, alive: Mapping[str, Value]) -> Value:
    """Zero where all that is reduced is; indices, if they are asked for, can be anything."""
    x: Tensor = alive[first(op)]
    dims, keepdim = reduced_dims(op, x.dim())
    found: Tensor = x.sum(dims, keepdim)
    return [found, torch.ones(op.shape[1])] if isinstance(op.shape, list) else found


def reduced_labels(op: Op, flow: Flow) -> Value:
    """Reducing over positions leaves channels as they are; over channels fixes them.

    But where the channels are only added up, those that are zero can be removed.
    """
    labels = flow.slices[first(op)]
    dims, keepdim = reduced_dims(op, labels.dim())
    if any(varies(labels, dim) for dim in dims):
        return fixed(op.shape) if adds_up(op, flow) else fix_all(op, flow)
    for dim in dims:
        labels = labels.narrow(dim, 0, 1) if keepdim else labels.select(dim, 0)
    return [labels, labels] if isinstance(op.shape, list) else labels


def adds_up(op: Op, flow: Flow) -> bool:
    """Whether zeros among what an operation reduces, a computed value, change nothing."""
    if first(op) in flow.trace.tensors:
        return False
    if op.kind != "linalg_vector_norm":
        return op.kind == "sum"
    return float(op.argument(1, "ord", 2)) > 0


def reduced_needs(op: Op, flow: Flow, needed: Value) -> dict[str, Value]:
    """The largest element, or the spread, depends on all elements, zero or not."""
    x = flow.alive[first(op)]
    dims, keepdim = reduced_dims(op, x.dim())
    parts = as_list(needed)
    mask = parts[0] if len(parts) == 1 else torch.maximum(*parts)
    for dim in () if keepdim else reversed(dims):
        mask = mask.unsqueeze(dim)
    return {first(op): mask.expand_as(x)}


def sum_varies(op: Op, flow: Flow) -> Tensor:
    """A sum over positions varies where a term does; one over channels may lose zeros only."""
    x = first(op)
    if any(varies(flow.slices[x], dim) for dim in reduced_dims(op, flow.slices[x].dim())[0]):
        flow.varies[x] = flow.alive[x]
    found: Tensor = literal(op, flow.varies)
    return found


MEAN = Rule(literal, reduced_labels, operands="first", in_place=False)
SPREAD = Rule(reduced_support, reduced_labels, reduced_needs, as_alive, constants=False)

TABLE = {
    "mean": MEAN,
    "sum": replace(MEAN, varies=sum_varies),
    "linalg_vector_norm": replace(SPREAD, needs=None),
    **dict(rows(SPREAD, "amax amin var std")),
    **dict(rows(replace(SPREAD, results="several"), "max min")),
}
