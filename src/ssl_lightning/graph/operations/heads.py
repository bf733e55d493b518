"""How a model's code splits channels into heads, or into the channels of maps.

A view that gives a dimension for heads keeps slices there if a product over tokens is reached in
which they remain apart; :mod:`~ssl_lightning.graph.operations.attention` has those products.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ssl_lightning.graph.flow import Flow, Value
from ssl_lightning.graph.labels import spread, varies
from ssl_lightning.graph.operations.matrices import is_torch_attention
from ssl_lightning.graph.operations.products import PRODUCTS, leaves_apart
from ssl_lightning.graph.ops import Op
from ssl_lightning.graph.rule import first

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
