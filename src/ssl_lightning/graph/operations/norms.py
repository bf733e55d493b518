"""Norms: of each channel alone, and of several channels together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from ssl_lightning.graph.flow import Flow, Value, binary
from ssl_lightning.graph.labels import spread, varies
from ssl_lightning.graph.layers import CHANNEL_NORMS
from ssl_lightning.graph.operations.owned import owns, same_channels
from ssl_lightning.graph.ops import Op, Ref, has_hooks
from ssl_lightning.graph.rule import UNKNOWN, Rule, as_alive, first, fix_all, leaf, rows, same

# --- which elements can be non-zero ---------------------------------------------------------------


def batch_norm_support(op: Op, alive: Mapping[str, Value]) -> Tensor:
    """Zero where scale times input, the shift, and scale times running mean are.

    A shift that the running mean happens to cancel counts as non-zero.
    """
    x, weight, bias, mean, _ = (alive[a.name] if isinstance(a, Ref) else None for a in op.args[:5])
    assert x is not None
    assert mean is not None, "batch norm without running statistics has no rule"
    scale = torch.ones_like(mean) if weight is None else weight
    shift = mean * scale if bias is None else bias + mean * scale
    view = [1, -1] + [1] * (x.dim() - 2)
    result: Tensor = x * scale.view(view) + shift.view(view)
    return result


def layer_norm_support(op: Op, alive: Mapping[str, Value]) -> Tensor:
    """Zero where scale and shift are: a zero channel is moved away from zero by the others."""
    dims = tuple(range(-len(op.args[1]), 0))
    return numbered(alive[first(op)].amax(dims, keepdim=True).expand(op.shape), op, alive)


def rms_norm_support(op: Op, alive: Mapping[str, Value]) -> Tensor:
    """Zero where the input or the scale is: nothing is subtracted."""
    return numbered(alive[first(op)], op, alive)


def numbered(found: Tensor, op: Op, alive: Mapping[str, Value]) -> Tensor:
    """Return where scale times what was found, and the shift, are not zero.

    They are the arguments from the third on, of the last dimensions' sizes.
    """
    given = [alive[a.name] if isinstance(a, Ref) else None for a in (*op.args, None)[2:4]]
    scale, shift = (*given, None)[:2]
    scaled = found if scale is None else found * scale
    return scaled if shift is None else scaled + shift


def group_norm_support(op: Op, alive: Mapping[str, Value]) -> Tensor:
    """Zero where scale and shift are, and in groups that are zero."""
    x: Tensor = alive[first(op)]
    groups = x.reshape(x.shape[0], op.args[1], -1)
    found = groups.amax(-1, keepdim=True).expand_as(groups).reshape(x.shape)
    return affine(found, op, 2, alive)


def instance_norm_support(op: Op, alive: Mapping[str, Value]) -> Tensor:
    """Zero where scale times input and the shift are."""
    assert op.args[5] is True, "instance norm with running statistics has no rule"
    x: Tensor = alive[first(op)]
    channels = x.flatten(2).amax(-1)[..., None]
    found = channels.expand(*x.shape[:2], x[0, 0].numel()).reshape(x.shape)
    return affine(found, op, 1, alive)


def batch_statistics_support(op: Op, alive: Mapping[str, Value]) -> Tensor:
    """Zero where scale times a channel of any sample, and the shift, are."""
    x: Tensor = alive[first(op)]
    dims = tuple(d for d in range(x.dim()) if d != 1)
    return affine(x.amax(dims, keepdim=True).expand(x.shape), op, 1, alive)


def affine(found: Tensor, op: Op, position: int, alive: Mapping[str, Value]) -> Tensor:
    """Return where scale times what was found, and the shift, are not zero.

    Scale and shift are the arguments from ``position`` on, one per channel in dimension 1.
    """
    view = [1, -1] + [1] * (found.dim() - 2)
    scale, shift = (
        alive[a.name].view(view) if isinstance(a, Ref) else None
        for a in op.args[position : position + 2]
    )
    scaled = found if scale is None else found * scale
    return scaled if shift is None else scaled + shift


# --- which slices are removed together ------------------------------------------------------------


def channel_norm_labels(op: Op, flow: Flow) -> Value:
    """A normalisation of each channel alone; its numbers, one per channel, belong to it.

    They are those of a layer that is rewritten for the channels that remain, or of any module.
    """
    module = flow.model.get_submodule(op.module)
    names = ("weight", "bias", "running_mean", "running_var")
    if isinstance(module, CHANNEL_NORMS) and owns(op, flow, *names):
        return same_channels(op, flow)
    channels = flow.labels.per_index(flow.slices[first(op)], 1)
    for given in op.args[1:5]:
        if isinstance(given, Ref):
            flow.labels.union(channels, flow.slices[given.name])
    return spread(channels, op.shape, 1)


def layer_norm_labels(op: Op, flow: Flow) -> Value:
    """The result has its input's channels; the module still divides by the old number of them."""
    labels, count = flow.slices[first(op)], len(op.args[1])
    if not any(varies(labels, dim) for dim in range(labels.dim() - count, labels.dim())):
        for name in op.inputs()[1:]:  # one number per position, for all channels
            flow.labels.fix(flow.slices[name])
        return labels
    module = flow.model.get_submodule(op.module)
    names = ("weight",) if op.kind == "rms_norm" else ("weight", "bias")
    dim = input_dim(op, flow)
    known = isinstance(module, (nn.LayerNorm, nn.RMSNorm)) and owns(op, flow, *names, start=2)
    if not known or dim is None or count != 1:
        return fix_all(op, flow)
    last = len(op.shape) - 1
    channels = flow.labels.per_index(labels, last)
    flow.add_site(op, channels, channels, dim=-1, module_dim=dim)
    return spread(channels, op.shape, last)


def group_norm_labels(op: Op, flow: Flow) -> Value:
    """The result has its input's channels; the module still divides by each group's old number."""
    module = flow.model.get_submodule(op.module)
    known = isinstance(module, nn.GroupNorm) and owns(op, flow, "weight", "bias", start=2)
    if not known or input_dim(op, flow) is None:
        return fix_all(op, flow)
    channels = flow.labels.per_index(flow.slices[first(op)], 1)
    flow.add_site(op, channels, channels, module_dim=1)
    return spread(channels, op.shape, 1)


def input_dim(op: Op, flow: Flow) -> int | None:
    """Return the dimension of a norm module's input that numbers the channels.

    -1 if the module does nothing but the norm (and then what its children do, such as an
    activation); 1 if it moves the channels to the end, normalises, and moves them back; None if it
    does anything else, or has hooks, so that none can replace it.
    """
    runs = [o for o in flow.trace.ops if o.module == op.module and o.call == op.call]
    if has_hooks(flow.model.get_submodule(op.module)):
        return None
    if runs == [op]:
        return -1
    moves = [(o.kind, o.args[1:]) for o in runs if o is not op]
    there_and_back = [("permute", ([0, 2, 3, 1],)), ("permute", ([0, 3, 1, 2],))]
    return 1 if moves == there_and_back and runs[1] is op else None


# --- which elements are needed, and which vary ----------------------------------------------------


def whole_groups(op: Op, flow: Flow, needed: Value) -> dict[str, Value]:
    """A normalised element depends on all elements that it is normalised with."""
    x = first(op)
    if op.kind in ("layer_norm", "rms_norm"):
        dims = tuple(range(-len(op.args[1]), 0))
        return {x: needed.amax(dims, keepdim=True).expand_as(needed)}
    if op.kind == "batch_norm":  # by the statistics of the batch
        dims = tuple(d for d in range(needed.dim()) if d != 1)
        return {x: needed.amax(dims, keepdim=True).expand_as(needed)}
    groups = op.args[1] if op.kind == "group_norm" else needed.shape[1]
    parts = needed.reshape(needed.shape[0], groups, -1)
    return {x: parts.amax(-1, keepdim=True).expand_as(parts).reshape(needed.shape)}


def window_needs(op: Op, flow: Flow, needed: Value) -> dict[str, Value]:
    """A channel after local response normalisation depends on its neighbours.

    Of an even window both ends are taken, which is one neighbour more than it has.
    """
    module = leaf(op)
    positions = getattr(module, "index", torch.arange(needed.shape[1])).cpu()
    far = (positions[:, None] - positions[None, :]).abs() > module.size // 2
    near = torch.einsum("oi,no...->ni...", (~far).float(), needed)
    return {first(op): binary(near)}


def batch_norm_varies(op: Op, flow: Flow) -> Tensor:
    """A batch norm with stored statistics varies where its input does and its scale is not 0."""
    stored = [a.name for a in op.args[1:5] if isinstance(a, Ref)]
    if any(bool(flow.varies[name].any()) for name in stored):
        return torch.ones_like(flow.alive[first(op)])
    scale = op.args[1]
    known = {scale.name: flow.alive[scale.name]} if isinstance(scale, Ref) else {}
    return batch_norm_support(op, {**flow.varies, **known})


def together_varies(op: Op, flow: Flow, support: Callable[..., Tensor]) -> Tensor:
    """A norm over the present statistics varies wherever its scale is not zero."""
    shifts = [a.name for a in op.args if isinstance(a, Ref)][2:]
    still = {name: torch.zeros_like(flow.alive[name]) for name in shifts}
    return support(op, {**flow.alive, **still})


# --- the table ------------------------------------------------------------------------------------


def channel_norm(op: Op) -> Rule:
    """Return the rule of a batch or instance norm: by which statistics it divides decides."""
    stored = all(isinstance(a, Ref) for a in op.args[3:5])
    if stored and op.args[5] is False:
        return BATCH_NORM
    if any(isinstance(a, Ref) for a in op.args[3:5]):
        return UNKNOWN  # it changes the stored ones
    return INSTANCE_NORM if op.kind == "instance_norm" else BATCH_STATISTICS


def together(support: Callable[..., Tensor], labels: Callable[[Op, Flow], Value]) -> Rule:
    """Return the rule of a norm of several channels."""
    varies_where = partial(together_varies, support=support)
    return Rule(support, labels, whole_groups, varies_where, constants=False)


BATCH_NORM = Rule(batch_norm_support, channel_norm_labels, varies=batch_norm_varies)
INSTANCE_NORM = Rule(
    instance_norm_support, channel_norm_labels, whole_groups, as_alive, constants=False
)
BATCH_STATISTICS = replace(INSTANCE_NORM, support=batch_statistics_support)
LAYER_NORM = together(layer_norm_support, layer_norm_labels)
RESPONSE_NORM = Rule(same, same_channels, window_needs, as_alive, constants=False)

TABLE = {
    "batch_norm": replace(BATCH_NORM, variant=channel_norm),
    "instance_norm": replace(INSTANCE_NORM, variant=channel_norm),
    "layer_norm": LAYER_NORM,
    "rms_norm": replace(LAYER_NORM, support=rms_norm_support, varies=as_alive),
    "group_norm": together(group_norm_support, group_norm_labels),
    **dict(rows(RESPONSE_NORM, "LocalResponseNorm ChannelResponseNorm SparseResponseNorm")),
}
