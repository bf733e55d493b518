"""Operations that move elements: views, permutations, concatenation, padding, shuffles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_lightning.graph.flow import Flow, Value
from ssl_lightning.graph.labels import FIXED, varies
from ssl_lightning.graph.ops import Op
from ssl_lightning.graph.rule import Rule, first, fix_all, literal, move_labels, rows


def pixel_shuffle_labels(op: Op, flow: Flow) -> Tensor:
    """All channels that become one channel's pixels are removed together."""
    return flow.labels.along_one_dim(op.run(flow.slices), dim=-3)


def channel_shuffle_labels(op: Op, flow: Flow) -> Tensor:
    """Every group loses the same of its channels."""
    labels, groups = flow.slices[first(op)], op.args[1]
    per_group = flow.labels.per_index(labels, 1).view(groups, -1)
    flow.labels.union(per_group, per_group[:1])
    return flow.labels.along_one_dim(op.run(flow.slices))


def cat_labels(op: Op, flow: Flow) -> Tensor:
    """Slices along the dimension of the concatenation remain apart, others are tied."""
    tensors = [flow.slices[ref.name] for ref in op.args[0]]
    rank = len(op.shape)
    dim = op.argument(1, "dim", 0) % rank
    others = [d for d in range(rank) if d != dim and any(varies(t, d) for t in tensors)]
    if not others:
        index = tuple(slice(None) if d == dim else slice(0, 1) for d in range(rank))
        return torch.cat([t[index] for t in tensors], dim).expand(op.shape)
    return flow.labels.along_one_dim(torch.cat(tensors, dim), dim=others[0])


def padding(op: Op) -> tuple[str, float]:
    """Return the mode of a padding operation, and the number that it writes."""
    if op.kind.startswith(("reflection", "replication")):
        mode, value = "inside", 0.0
    elif op.kind == "pad":
        mode, value = op.argument(2, "mode", "constant"), op.argument(3, "value", 0)
    else:
        mode, value = "constant", op.argument(2, "value", 0)
    return mode, float(value or 0)


def padded_support(op: Op, alive: Mapping[str, Value]) -> Tensor:
    """Zero where the input is, and in the padding if that is filled with zeros.

    Padding with what is inside makes a channel that is not zero non-zero there.
    """
    mode, value = padding(op)
    if mode != "constant":
        dims = tuple(range(-len(op.args[1]) // 2, 0))
        found: Tensor = alive[first(op)].amax(dims, keepdim=True)
        return found.expand(op.shape)
    return F.pad(alive[first(op)], op.args[1], value=float(value != 0))


def padded_labels(op: Op, flow: Flow) -> Value:
    """Padding belongs to the slice it pads; new slices cannot be removed."""
    labels = flow.slices[first(op)]
    pads = list(op.args[1])
    filled = padding(op)[0] == "constant"
    for dim in range(labels.dim()):
        before, after = pads[2 * (labels.dim() - 1 - dim) :][:2] or (0, 0)
        line = labels.movedim(dim, -1)
        if varies(labels, dim) and (min(before, after) < 0 or ((before or after) and not filled)):
            return fix_all(op, flow)
        if varies(labels, dim):
            line = F.pad(line, (before, after), value=FIXED)
        elif line.numel():
            line = line[..., :1].expand(*line.shape[:-1], op.shape[dim])
        labels = line.movedim(-1, dim)
    return flow.labels.along_one_dim(labels)


def padded_varies(op: Op, flow: Flow) -> Tensor:
    """Padding makes the border of a channel that is not zero differ from the rest."""
    if padding(op)[0] != "constant":
        found: Tensor = flow.alive[op.name]
        return found
    return F.pad(flow.alive[first(op)], op.args[1])


MOVE = Rule(literal, move_labels, in_place=False)
PAD = Rule(padded_support, padded_labels, varies=padded_varies, operands="first")

TABLE = {
    **dict(rows(replace(MOVE, sized=True), "flatten squeeze expand")),
    **dict(
        rows(
            MOVE,
            "permute transpose t movedim swapaxes swapdims numpy_T mT",
            "unsqueeze stack repeat_interleave flip pixel_unshuffle roll repeat tile",
        )
    ),
    "cat": Rule(literal, cat_labels, in_place=False),
    "pixel_shuffle": Rule(literal, pixel_shuffle_labels, in_place=False),
    "channel_shuffle": Rule(literal, channel_shuffle_labels, sized=True),
    **dict(rows(replace(PAD, sized=True), "pad constant_pad_nd")),
    **dict(
        rows(
            PAD,
            "reflection_pad1d reflection_pad2d reflection_pad3d",
            "replication_pad1d replication_pad2d replication_pad3d",
        )
    ),
}
