"""Attention: its slices are whole heads, into which a model's code splits channels.

A view that gives a dimension for heads keeps slices there if a product over tokens is reached in
which they remain apart. A view that gives the channels of maps is treated alike.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ssl_lightning.graph.flow import Flow, Value
from ssl_lightning.graph.labels import spread, varies
from ssl_lightning.graph.operations.linear import is_torch_attention
from ssl_lightning.graph.operations.products import PRODUCT, PRODUCTS, leaves_apart, product_labels
from ssl_lightning.graph.ops import Op
from ssl_lightning.graph.rule import Rule, as_alive, first, fix_all, literal, ones, rows

HEADS = -3
"""Dimension of queries, keys and values ``(..., heads, tokens, width)`` that numbers the heads."""

MOVES = frozenset(
    {"view", "reshape", "flatten", "unflatten", "permute", "transpose", "movedim", "swapaxes"}
    | {"unbind", "select", "getitem", "split", "split_with_sizes", "chunk", "slice", "narrow"}
    | {"squeeze", "unsqueeze", "contiguous", "clone", "expand", "repeat_interleave"}
)
SAME_SHAPE = frozenset(
    {"mul", "div", "add", "sub", "layer_norm", "rms_norm", "dropout", "softmax", "masked_fill"}
    | {"to", "_to_copy", "where"}
)
DEPTH = 16  # operations between the split into heads and the product

NUMBERS = (
    *("num_heads", "n_heads", "n_head", "heads", "num_attention_heads", "nhead", "nheads"),
    *("num_kv_heads", "n_kv_heads", "n_kv_head", "kv_heads", "num_key_value_heads", "kv"),
)
"""Attributes in which modules hold the number of their heads, or of key and value heads."""
WIDTHS = (
    *("attn_dim", "inner_dim", "all_head_size", "dim_attn", "embed_dim", "split_size"),
    *("kv_dim", "q_dim", "q_size", "kv_size", "hidden_size", "d_model", "n_embd"),
)
"""Attributes in which modules hold the number of heads times their width."""
BY_CHANNEL = frozenset(
    {
        f"{kind}{n}d"
        for kind in ("conv", "conv_transpose", "max_pool", "avg_pool")
        for n in (1, 2, 3)
    }
    | {"batch_norm", "group_norm", "instance_norm", "upsample_nearest2d", "upsample_bilinear2d"}
)
"""Operations of which dimension 1 numbers the channels."""
CHANNELS = (
    *("channels", "num_channels", "n_channels", "hidden_channels", "base_channels", "in_channels"),
    *("init_channels", "start_channels", "latent_channels", "c", "ch", "nf", "ngf"),
)
"""Attributes in which modules hold the number of channels of a view."""


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
    """Labels move as the elements do; of channels that are split into heads, whole heads do."""
    moved = op.run(flow.slices)
    split = [dim for dim in range(moved.dim()) if varies(moved, dim)]
    found = (
        next((d for d in split if becomes_heads(op, moved, d, flow)), None)
        if len(split) > 1
        else None
    )
    if found is None and len(split) > 1:
        return map_labels(op, moved, split, flow)
    labels = flow.labels.along_one_dim(moved, found)
    if found is not None:
        rows = labels.movedim(found, 0).reshape(labels.shape[found], -1)[:, 0]
        inner = [d for d in split if d > found]
        width = moved.shape[inner[-1]] if inner else 1
        rows = torch.tensor(list(dict.fromkeys(rows.tolist())))  # once, not for each sample
        known = flow.heads.setdefault(op.module, [])
        known.append(Heads(rows, width))
        for dim in inner[:-1]:  # query heads of each key and value head
            known.append(Heads(rows.repeat_interleave(moved.shape[dim]), width))
    return labels


def map_labels(op: Op, moved: Tensor, split: list[int], flow: Flow) -> Tensor:
    """Features that are viewed as maps are removed by the channels that a later layer reads."""
    found = next((d for d in split if becomes_channels(op, d, flow)), None)
    labels = flow.labels.along_one_dim(moved, found)
    if found is None:
        return labels
    rows = flow.labels.per_index(labels, found)
    module = flow.model.get_submodule(op.module)
    if type(module) is nn.Unflatten:
        flow.views[op.module] = found - int(module.dim) % flow.slices[first(op)].dim(), rows
    keys = tuple(key for key in CHANNELS if module.__dict__.get(key) == len(rows))
    if keys:
        flow.sizes.setdefault(op.module, []).append((keys, rows))
    return labels


def becomes_channels(op: Op, dim: int, flow: Flow) -> bool:
    """Whether a dimension of a result becomes the one that numbers a layer's channels."""
    marks = spread(torch.arange(op.shape[dim]), op.shape, dim)
    return reaches(op.name, marks, flow, reads_channels)


def reads_channels(user: Op, name: str, marks: Tensor) -> bool:
    """Whether an operation has as its channels what marks number, one for each."""
    if user.kind not in BY_CHANNEL or user.inputs()[0] != name or marks.dim() < 3:
        return False
    if [d for d in range(marks.dim()) if varies(marks, d)] != [1]:
        return False
    numbers = marks.movedim(1, 0).reshape(marks.shape[1], -1)[:, 0]
    return bool((numbers.diff() == 1).all())


def becomes_heads(op: Op, labels: Tensor, dim: int, flow: Flow) -> bool:
    """Whether a dimension of a result becomes the one that numbers heads in a product.

    Where it numbers samples and heads at once, the samples have the same slices.
    """
    rows = labels.movedim(dim, 0).reshape(labels.shape[dim], -1)
    marks = spread(rows.unique(dim=0, return_inverse=True)[1], op.shape, dim)
    return reaches(op.name, marks, flow, multiplies)


def multiplies(user: Op, name: str, marks: Tensor) -> bool:
    """Whether an operation is a product that leaves apart what marks number."""
    if user.kind == "scaled_dot_product_attention":
        return [d for d in range(marks.dim()) if varies(marks, d)] == [marks.dim() + HEADS]
    return user.kind in PRODUCTS and leaves_apart(user, name, marks)


def reaches(
    name: str, marks: Tensor, flow: Flow, arrives: Callable[[Op, str, Tensor], bool]
) -> bool:
    """Follow marks from a value through moves until they are where a function wants them."""
    paths: dict[str, Any] = {name: marks}
    for _ in range(DEPTH):
        found: dict[str, Any] = {}
        for value, marks in paths.items():
            for user in flow.trace.users.get(value, []):
                if isinstance(marks, Tensor) and arrives(user, value, marks):
                    return True
                if (moved := after(user, value, marks)) is not None:
                    found[user.name] = moved
        paths = found
    return False


def after(user: Op, name: str, marks: Any) -> Any:
    """Return where marks are after an operation, None if it does not only move them."""
    if user.kind in MOVES and user.inputs() == [name]:
        return user.run({name: marks})
    if not isinstance(marks, Tensor) or user.shape != tuple(marks.shape):
        return None
    return marks if user.kind in SAME_SHAPE or user.inputs() == [name] else None


def same_for_heads(op: Op, mask: str, flow: Flow) -> bool:
    """Whether a mask has one row for all heads.

    torch's attention repeats its masks for every head, which what replaces it does not.
    """
    shape = flow.alive[mask].shape
    if len(shape) < 3 or shape[HEADS] == 1:
        return True
    before = flow.producers.get(mask)
    if not is_torch_attention(op, flow) or before is None or not before.inputs():
        return False
    if before.kind == "expand":
        return bool(flow.alive[first(before)].shape[HEADS] == 1)
    moved = before.kind in MOVES | SAME_SHAPE | {"zeros_like"}
    return moved and all(same_for_heads(op, name, flow) for name in before.inputs())


def new_attributes(module: Any, heads: Heads, kept: int) -> dict[str, int]:
    """Return the attributes that a module must hold when only some heads remain."""
    count = len(heads.labels)
    sizes = {**dict.fromkeys(NUMBERS, (count, kept))}
    sizes |= dict.fromkeys(WIDTHS, (count * heads.width, kept * heads.width))
    return {name: new for name, (old, new) in sizes.items() if module.__dict__.get(name) == old}


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

VIEW = Rule(literal, split_labels, in_place=False, sized=True)

TABLE = {
    **dict(rows(VIEW, "view reshape unflatten")),
    "scaled_dot_product_attention": ATTENTION,
    "baddbmm": replace(PRODUCT, support=added_product_support, labels=added_product_labels),
    "softmax": SOFTMAX,
    "log_softmax": SOFTMAX,
}
