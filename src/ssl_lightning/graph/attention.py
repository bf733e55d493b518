"""Attention: its slices are whole heads, which the products over tokens leave apart."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ssl_lightning.graph.flow import Flow, Value
from ssl_lightning.graph.labels import spread, varies
from ssl_lightning.graph.ops import Op
from ssl_lightning.graph.slices import fix_all
from ssl_lightning.graph.support import first

HEADS = -3
"""Dimension of queries, keys and values ``(..., heads, tokens, width)`` that numbers the heads."""

PRODUCTS = frozenset({"scaled_dot_product_attention", "matmul"})
MOVES = frozenset(
    {"view", "reshape", "permute", "transpose", "unbind", "select", "getitem", "split", "chunk"}
    | {"squeeze", "unsqueeze", "contiguous", "clone"}
)
SAME_SHAPE = frozenset({"mul", "div", "layer_norm", "add", "dropout"})
DEPTH = 10  # operations between the split into heads and the product

NUMBERS = ("num_heads", "n_heads", "n_head", "heads", "num_attention_heads")
"""Attributes in which modules hold the number of their heads."""
WIDTHS = ("attn_dim", "inner_dim", "all_head_size", "dim_attn")
"""Attributes in which modules hold the number of heads times their width."""


@dataclass(frozen=True)
class Heads:
    """The heads into which a module's code splits channels.

    Attributes:
        labels: one per head.
        width: channels of a head.
    """

    labels: Tensor
    width: int


def split_labels(op: Op, flow: Flow) -> Value:
    """Labels move as the elements do; channels that are split into heads go by heads."""
    moved = op.run(flow.slices)
    split = [dim for dim in range(moved.dim()) if varies(moved, dim)]
    found = next((d for d in split if becomes_heads(op, d, flow)), None) if len(split) > 1 else None
    labels = flow.labels.along_one_dim(moved, found)
    if found is not None:
        rows = labels.movedim(found, 0).reshape(labels.shape[found], -1)[:, 0]
        width = moved.shape[split[-1]] if split[-1] != found else 1
        flow.heads.setdefault(op.module, []).append(Heads(rows, width))
    return labels


def becomes_heads(op: Op, dim: int, flow: Flow) -> bool:
    """Whether a dimension of a result becomes the one that numbers heads in a product."""
    marks = spread(torch.arange(op.shape[dim]), op.shape, dim)
    paths: list[tuple[str, Any]] = [(op.name, marks)]
    for _ in range(DEPTH):
        paths = [path for name, marks in paths for path in steps(name, marks, flow)]
        for _, marks in paths:
            if marks is True:
                return True
    return False


def steps(name: str, marks: Any, flow: Flow) -> Iterator[tuple[str, Any]]:
    """Yield where marks are after each operation that reads a value; True at a product."""
    for user in flow.trace.users.get(name, []):
        if user.kind in PRODUCTS and isinstance(marks, Tensor) and marks.dim() >= 3:
            if [d for d in range(marks.dim()) if varies(marks, d)] == [marks.dim() + HEADS]:
                yield user.name, True
        elif user.kind in MOVES and user.inputs() == [name]:
            yield user.name, user.run({name: marks})
        elif user.kind in SAME_SHAPE and isinstance(marks, Tensor) and user.shape == marks.shape:
            yield user.name, marks


def product_labels(op: Op, flow: Flow) -> Value:
    """Heads of all operands go together; nothing else can be cut."""
    names = op.inputs()
    operands = [flow.slices[name] for name in names[:3]]
    masks = [flow.slices[name] for name in names[3:]]
    batch = {tuple(labels.shape[: HEADS + 1]) for labels in operands}
    alike = len(batch) == 1 and min(labels.dim() for labels in operands) >= 3
    shared = all(mask.dim() < 3 or mask.shape[HEADS] == 1 for mask in masks)
    if not alike or not shared or not all(by_heads(labels) for labels in operands):
        return fix_all(op, flow)
    for mask in masks:
        flow.labels.fix(mask)
    rows = [flow.labels.per_index(labels, labels.dim() + HEADS) for labels in operands]
    for row in rows[1:]:
        flow.labels.union(rows[0], row)
    return spread(rows[0], op.shape, len(op.shape) + HEADS)


def by_heads(labels: Tensor) -> bool:
    """Whether labels vary along heads only."""
    return all(dim == labels.dim() + HEADS for dim in range(labels.dim()) if varies(labels, dim))


def attention_support(op: Op, alive: Any) -> Tensor:
    """A mean of values: zero where the value is for all tokens."""
    value: Tensor = alive[op.args[2].name]
    return value.amax(-2, keepdim=True).expand(op.shape)


def attention_needs(op: Op, flow: Flow, needed: Value) -> dict[str, Value]:
    """All of a head that is needed."""
    heads = needed.amax((-2, -1), keepdim=True)
    queries = {name: flow.alive[name].shape for name in op.inputs()[:3]}
    masks = {name: torch.ones(flow.alive[name].shape) for name in op.inputs()[3:]}
    alike = all(shape[:-2] == heads.shape[:-2] for shape in queries.values())
    ones = torch.ones(())
    return {**masks, **{n: (heads if alike else ones).expand(s) for n, s in queries.items()}}


def softmax_labels(op: Op, flow: Flow) -> Value:
    """What is normalised together cannot be cut; other slices stay themselves."""
    labels = flow.slices[first(op)]
    if varies(labels, op.args[1] % labels.dim()):
        return fix_all(op, flow)
    return labels


def softmax_needs(op: Op, flow: Flow, needed: Value) -> dict[str, Value]:
    """All that is normalised together."""
    dim = op.args[1]
    return {first(op): needed.amax(dim, keepdim=True).expand_as(needed)}


def new_attributes(module: Any, heads: Heads, kept: int) -> dict[str, int]:
    """Return the attributes that a module must hold with only some heads left."""
    count = len(heads.labels)
    sizes = {**dict.fromkeys(NUMBERS, (count, kept))}
    sizes |= dict.fromkeys(WIDTHS, (count * heads.width, kept * heads.width))
    return {name: new for name, (old, new) in sizes.items() if module.__dict__.get(name) == old}
