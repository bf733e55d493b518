"""Third question of a rule: which slices of inputs and result must be removed together?

The labels of every value vary along one dimension at most: only then is what is left of a tensor a
tensor again. :meth:`Labels.along_one_dim` sees to that after every move.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_lightning.graph.aliases import is_in_place
from ssl_lightning.graph.flow import Flow, Value, as_list
from ssl_lightning.graph.labels import FIXED, spread, varies
from ssl_lightning.graph.ops import Op, Ref, has_hooks
from ssl_lightning.graph.support import first, leaf, padding, reduced_dims, spatial_dims

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)


def fixed(shape: Any) -> Value:
    """Return labels for a result of that shape (or those shapes) that cannot be removed."""
    if isinstance(shape, list):
        return [fixed(each) for each in shape]
    return torch.zeros((), dtype=torch.long).expand(shape or ())


def fix_all(op: Op, flow: Flow) -> Value:
    """Nothing that this operation touches can be removed, if anything depends on its result."""
    if op.name in flow.unread and not is_in_place(op):
        return fixed(op.shape)
    for name in op.inputs():
        for labels in as_list(flow.slices[name]):
            flow.labels.fix(labels)
    return fixed(op.shape)


def untouched(op: Op, flow: Flow) -> Value:
    """The operation reads no values, only shapes or types, and its result has no slices."""
    return fixed(op.shape)


def keep_labels(op: Op, flow: Flow) -> Value:
    """The result has its input's slices."""
    return flow.slices[first(op)]


# --- moves --------------------------------------------------------------------------------------


def move_labels(op: Op, flow: Flow) -> Value:
    """Labels move as the elements do.

    A dimension that is split (channel shuffle, attention heads) keeps slices along its last part,
    so that slices of all parts are tied.
    """
    return flow.labels.along_one_dim(op.run(flow.slices))


def item_labels(op: Op, flow: Flow) -> Value:
    """One of several results."""
    return op.run(flow.slices)


def pixel_shuffle_labels(op: Op, flow: Flow) -> Tensor:
    """All channels that become one channel's pixels go together."""
    return flow.labels.along_one_dim(op.run(flow.slices), dim=-3)


def channel_shuffle_labels(op: Op, flow: Flow) -> Tensor:
    """Every group keeps the same of its channels."""
    labels, groups = flow.slices[first(op)], op.args[1]
    rows = flow.labels.per_index(labels, 1).view(groups, -1)
    flow.labels.union(rows, rows[:1])
    return flow.labels.along_one_dim(op.run(flow.slices))


def cat_labels(op: Op, flow: Flow) -> Tensor:
    """Slices along the dimension of the concatenation stay apart, others are tied."""
    tensors = [flow.slices[ref.name] for ref in op.args[0]]
    rank = len(op.shape)
    dim = op.argument(1, "dim", 0) % rank
    others = [d for d in range(rank) if d != dim and any(varies(t, d) for t in tensors)]
    if not others:
        index = tuple(slice(None) if d == dim else slice(0, 1) for d in range(rank))
        return torch.cat([t[index] for t in tensors], dim).expand(op.shape)
    return flow.labels.along_one_dim(torch.cat(tensors, dim), dim=others[0])


def split_labels(op: Op, flow: Flow) -> Value:
    """Equal parts keep the same of their slices, so that code that halves goes on halving."""
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


def reduced_labels(op: Op, flow: Flow) -> Value:
    """Reducing over positions keeps a channel; reducing over channels fixes them.

    But where the channels are only added up, those that are zero can go: nobody counts them.
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


def channel_labels(op: Op, flow: Flow) -> Tensor:
    """All positions of a channel go together; the batch is no slice."""
    labels = flow.slices[first(op)]
    dim = labels.dim() - spatial_dims(op) - 1
    return spread(flow.labels.per_index(labels, dim), op.shape, dim)


def with_indices_labels(op: Op, flow: Flow) -> Value:
    """What pooling found, and where: both have its input's channels."""
    labels = flow.slices[first(op)]
    dim = labels.dim() - spatial_dims(op) - 1
    channels = flow.labels.per_index(labels, dim)
    return [spread(channels, shape, dim) for shape in op.shape]


def unpool_labels(op: Op, flow: Flow) -> Tensor:
    """The values and the indices of a channel go together."""
    labels, indices = (flow.slices[name] for name in op.inputs())
    flow.labels.union(labels, indices)
    return channel_labels(op, flow)


def embedding_labels(op: Op, flow: Flow) -> Tensor:
    """Every row of the table has the same channels; no row and no index can go."""
    for name in op.inputs()[1:]:
        flow.labels.fix(flow.slices[name])
    channels = flow.labels.per_index(flow.slices[first(op)], 1)
    return spread(channels, op.shape, len(op.shape) - 1)


def glu_labels(op: Op, flow: Flow) -> Value:
    """Both halves keep the same of their slices."""
    labels = flow.slices[first(op)]
    halves = labels.chunk(2, op.argument(1, "dim", -1))
    flow.labels.union(*halves)
    return flow.labels.along_one_dim(halves[0])


# --- two operands -------------------------------------------------------------------------------


def tie_operands(op: Op, flow: Flow) -> Value:
    """Slices of both operands go together, except along a dimension that broadcasting repeats.

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


# --- layers -------------------------------------------------------------------------------------


def owns(op: Op, flow: Flow, *names: str, start: int = 1) -> bool:
    """Whether an operation reads its module's own tensors, in this order from an argument on."""
    module = flow.model.get_submodule(op.module)
    for position, name in enumerate(names, start=start):
        given = op.args[position] if len(op.args) > position else None
        if given is None and getattr(module, name, None) is not None:
            return False
        if given is not None and flow.trace.owner(op, position) != f"{op.module}.{name}".lstrip(
            "."
        ):
            return False
    return True


def known_outputs(op: Op, flow: Flow, count: int) -> Tensor:
    """Return the output labels of a module: those of its earlier run, or new ones."""
    site = flow.sites.get(op.module)
    return site.outputs if site else flow.labels.fresh(count)


def conv_labels(op: Op, flow: Flow) -> Value:
    """Input and output channels are those of the weight; outputs get new labels.

    In a depthwise convolution, an input and the outputs that it alone gives go together.
    """
    module, labels = flow.model.get_submodule(op.module), flow.slices[first(op)]
    kinds = TRANSPOSED if op.kind.startswith("conv_transpose") else CONVS
    if not isinstance(module, kinds) or not owns(op, flow, "weight", "bias"):
        return fix_all(op, flow)
    sizes = (module.in_channels, module.out_channels, module.groups)
    batched = len(op.shape) == spatial_dims(op) + 2
    if not batched or sizes != (labels.shape[1], op.shape[1], op.argument(6, "groups", 1)):
        return fix_all(op, flow)
    inputs = flow.labels.per_index(labels, 1)
    outputs = known_outputs(op, flow, module.out_channels)
    if module.groups == module.in_channels > 1:
        flow.labels.union(inputs.repeat_interleave(module.out_channels // module.groups), outputs)
    flow.add_site(op, inputs, outputs, groups=module.groups)
    return spread(outputs, op.shape, 1)


def linear_labels(op: Op, flow: Flow) -> Value:
    """Input features are the weight's columns, output features its rows: new labels."""
    module, labels = flow.model.get_submodule(op.module), flow.slices[first(op)]
    if not isinstance(module, nn.Linear) or not owns(op, flow, "weight", "bias"):
        return fix_all(op, flow)
    if (module.in_features, module.out_features) != (labels.shape[-1], op.shape[-1]):
        return fix_all(op, flow)
    inputs = flow.labels.per_index(labels, labels.dim() - 1)
    outputs = known_outputs(op, flow, module.out_features)
    flow.add_site(op, inputs, outputs, dim=-1)
    return spread(outputs, op.shape, len(op.shape) - 1)


def norm_labels(op: Op, flow: Flow) -> Value:
    """A normalisation of each channel alone; its numbers, one per channel, belong to it.

    They are those of a layer that is told how many are left, or of any module.
    """
    module = flow.model.get_submodule(op.module)
    names = ("weight", "bias", "running_mean", "running_var")
    if isinstance(module, (*NORMS, *INSTANCE_NORMS)) and owns(op, flow, *names):
        return same_channels(op, flow)
    channels = flow.labels.per_index(flow.slices[first(op)], 1)
    for given in op.args[1:5]:
        if isinstance(given, Ref):
            flow.labels.union(channels, flow.slices[given.name])
    return spread(channels, op.shape, 1)


def layer_norm_labels(op: Op, flow: Flow) -> Value:
    """Channels stay themselves; the module goes on dividing by the old number of them."""
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
    """Channels stay themselves; the module goes on dividing by the old number of each group."""
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


def same_channels(op: Op, flow: Flow) -> Tensor:
    """Channels stay themselves, and the module must be told which are left."""
    channels = flow.labels.per_index(flow.slices[first(op)], 1)
    flow.add_site(op, channels, channels)
    return spread(channels, op.shape, 1)


def shortcut_labels(op: Op, flow: Flow) -> Tensor:
    """Input and output channels of the padded shortcut are free: its source map is rewritten."""
    inputs = flow.labels.per_index(flow.slices[first(op)], 1)
    outputs = known_outputs(op, flow, op.shape[1])
    flow.add_site(op, inputs, outputs)
    return spread(outputs, op.shape, 1)


def constant_layer_labels(op: Op, flow: Flow) -> Tensor:
    """A layer without weights reads nothing; its outputs are free."""
    dim = leaf(op).channel_dim % len(op.shape)
    outputs = known_outputs(op, flow, op.shape[dim])
    flow.add_site(op, torch.zeros(0, dtype=torch.long), outputs, dim=dim)
    return spread(outputs, op.shape, dim)


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
