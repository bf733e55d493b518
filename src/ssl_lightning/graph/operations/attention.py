"""Attention: its slices are whole heads, which the products over tokens leave apart."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ssl_lightning.graph.flow import Flow, Value
from ssl_lightning.graph.labels import spread, varies
from ssl_lightning.graph.operations.heads import HEADS, same_for_heads
from ssl_lightning.graph.operations.products import PRODUCT, product_labels
from ssl_lightning.graph.ops import Op
from ssl_lightning.graph.rule import Rule, as_alive, first, fix_all, ones


def attention_support(op: Op, alive: Any) -> Tensor:
    """A mean of values: zero where the value is for all tokens."""
    value: Tensor = alive[op.args[2].name].amax(-2, keepdim=True)
    repeats = op.shape[HEADS] // value.shape[HEADS] if value.dim() > 2 else 1
    value = value.repeat_interleave(repeats, HEADS) if repeats > 1 else value
    return value.expand(op.shape)


def attention_labels(op: Op, flow: Flow) -> Value:
    """Heads of queries, keys and values are removed together; nothing else can be cut.

    A key and value head that serves several query heads is removed with them.
    """
    names = op.inputs()
    operands = [flow.slices[name] for name in names[:3]]
    masks = [flow.slices[name] for name in names[3:]]
    batch = {tuple(labels.shape[:HEADS]) for labels in operands}
    alike = len(batch) == 1 and min(labels.dim() for labels in operands) >= 3
    shared = all(same_for_heads(op, name, flow) for name in names[3:])
    if not alike or not shared or not all(by_heads(labels) for labels in operands):
        return fix_all(op, flow)
    for mask in masks:
        flow.labels.fix(mask)
    rows = [flow.labels.per_index(labels, labels.dim() + HEADS) for labels in operands]
    for row in rows[1:]:
        if len(row) == 1 < len(rows[0]):
            flow.labels.fix(row)  # one for all: it is needed as long as any query is
        else:
            flow.labels.union(rows[0], row.repeat_interleave(len(rows[0]) // len(row)))
    return spread(rows[0], op.shape, len(op.shape) + HEADS)


def attention_needs(op: Op, flow: Flow, needed: Value) -> dict[str, Value]:
    """All of a head that is needed, of all heads that it serves."""
    heads = needed.amax((-2, -1), keepdim=True)
    result = {name: torch.ones(flow.alive[name].shape) for name in op.inputs()[3:]}
    for name in op.inputs()[:3]:
        shape = flow.alive[name].shape
        mask = heads
        if len(shape) > 2 and shape[HEADS] != heads.shape[HEADS]:
            mask = heads.unflatten(HEADS, (shape[HEADS], -1)).amax(HEADS)
        mask = (
            mask if len(shape) == mask.dim() and shape[:-2] == mask.shape[:-2] else torch.ones(())
        )
        result[name] = torch.maximum(mask.expand(shape), result.get(name, torch.zeros(())))
    return result


def by_heads(labels: Tensor) -> bool:
    """Whether labels vary along heads only."""
    return all(dim == labels.dim() + HEADS for dim in range(labels.dim()) if varies(labels, dim))


def added_product_support(op: Op, alive: Any) -> Tensor:
    """A sum can be non-zero where the mask or a product can."""
    mask, a, b = (alive[arg.name] for arg in op.args[:3])
    found: Tensor = mask + a @ b
    return found


def added_product_labels(op: Op, flow: Flow) -> Value:
    """A product of heads, and a mask that is added to it."""
    labels, mask = product_labels(op, flow), op.args[0].name
    if not same_for_heads(op, mask, flow):
        flow.labels.union(labels, flow.slices[mask])
    return labels


def softmax_labels(op: Op, flow: Flow) -> Value:
    """What is normalised together cannot be cut; other slices remain themselves."""
    labels = flow.slices[first(op)]
    if varies(labels, op.args[1] % labels.dim()):
        return fix_all(op, flow)
    return labels


def softmax_needs(op: Op, flow: Flow, needed: Value) -> dict[str, Value]:
    """All that is normalised together."""
    dim = op.args[1]
    return {first(op): needed.amax(dim, keepdim=True).expand_as(needed)}


ATTENTION = Rule(attention_support, attention_labels, attention_needs, as_alive, constants=False)
SOFTMAX = Rule(ones, softmax_labels, softmax_needs, as_alive, constants=False)

TABLE = {
    "scaled_dot_product_attention": ATTENTION,
    "baddbmm": replace(PRODUCT, support=added_product_support, labels=added_product_labels),
    "softmax": SOFTMAX,
    "log_softmax": SOFTMAX,
}
