"""Parts of a tensor: slices, splits, rows of a table; one of several results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from ssl_lightning.graph.flow import Flow, Value
from ssl_lightning.graph.labels import spread, varies
from ssl_lightning.graph.ops import Op
from ssl_lightning.graph.rule import Rule, as_alive, first, fix_all, literal, rows


def item_labels(op: Op, flow: Flow) -> Value:
    """One of several results."""
    return op.run(flow.slices)


def split_labels(op: Op, flow: Flow) -> Value:
    """Equal parts lose the same of their slices, so that code that halves can still do so."""
    labels = flow.slices[first(op)]
    dim = op.argument(2, "dim", 0) % labels.dim()
    if varies(labels, dim) and len({shape[dim] for shape in op.shape}) > 1:
        if type(flow.model.get_submodule(op.module)) is nn.MultiheadAttention:
            return op.run(flow.slices)  # it is replaced by a layer that reads no sizes
        return fix_all(op, flow)
    parts = op.run(flow.slices)
    for part in parts[1:] if varies(labels, dim) else ():
        flow.labels.union(parts[0], part)
    return [flow.labels.along_one_dim(part) for part in parts]


def index_labels(op: Op, flow: Flow) -> Value:
    """Code that names a position by number fixes the slices along that dimension."""
    labels = flow.slices[first(op)]
    dim = op.argument(1, "dim", 0) % labels.dim()
    if varies(labels, dim) and not takes_everything(op, labels.shape[dim]):
        return fix_all(op, flow)
    return op.run(flow.slices)


def takes_everything(op: Op, size: int) -> bool:
    """Whether ``x[start:end:step]`` is all of a dimension."""
    if op.kind != "slice":
        return False
    start, end = op.argument(2, "start"), op.argument(3, "end")
    whole = (start or 0) in (0, -size) and (end is None or end >= size)
    return whole and op.argument(4, "step", 1) == 1


def embedding_support(op: Op, alive: Mapping[str, Value]) -> Tensor:
    """Zero in channels in which all rows of the table are."""
    channels: Tensor = alive[first(op)].amax(0)
    return channels.expand(op.shape)


def embedding_labels(op: Op, flow: Flow) -> Tensor:
    """Every row of the table has the same channels; no row and no index can be removed."""
    for name in op.inputs()[1:]:
        flow.labels.fix(flow.slices[name])
    channels = flow.labels.per_index(flow.slices[first(op)], 1)
    return spread(channels, op.shape, len(op.shape) - 1)


def embedding_needs(op: Op, flow: Flow, needed: Value) -> dict[str, Value]:
    """Of the table, the channels that are needed; and the indices."""
    table, *indices = op.inputs()
    channels = needed.reshape(-1, needed.shape[-1]).amax(0)
    whole = {name: torch.ones_like(flow.alive[name]) for name in indices}
    return {table: channels.expand(flow.alive[table].shape), **whole}


SPLIT = Rule(literal, split_labels, operands="first", results="any", in_place=False, sized=True)
INDEX = Rule(literal, index_labels, operands="first", results="any", in_place=False)

TABLE = {
    "getitem": Rule(literal, item_labels, results="any", aliases=True),
    **dict(rows(SPLIT, "split split_with_sizes chunk")),
    **dict(rows(replace(INDEX, sized=True), "slice narrow")),
    **dict(rows(INDEX, "select unbind")),
    "embedding": Rule(
        embedding_support, embedding_labels, embedding_needs, as_alive, constants=False
    ),
}
