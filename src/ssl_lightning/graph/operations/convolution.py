"""Convolutions, plain and transposed."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ssl_lightning.graph.flow import Flow, Value
from ssl_lightning.graph.labels import spread
from ssl_lightning.graph.layers import CONVS, TRANSPOSED
from ssl_lightning.graph.operations.owned import as_tuple, known_outputs, layer_varies, owns
from ssl_lightning.graph.ops import Op, Ref
from ssl_lightning.graph.rule import Rule, as_alive, first, fix_all, rows, spatial_dims


def conv_support(op: Op, alive: Mapping[str, Value]) -> Value:
    """Zero where every product is: a kernel with a non-zero tap counts as non-zero everywhere.

    That makes the answer hold for other image sizes, at which other taps meet the padding.
    """
    weight = op.args[1].name
    kernels = alive[weight].sum(tuple(range(2, alive[weight].dim())), keepdim=True)
    return op.run({**alive, weight: kernels.expand_as(alive[weight])})


def transposed_support(op: Op, alive: Mapping[str, Value]) -> Tensor:
    """Zero in channels that read nothing: positions are not distinguished.

    Which taps meet depends on the position and the stride.
    """
    x: Tensor = alive[first(op)].flatten(2).amax(-1)
    weight = alive[op.args[1].name].flatten(2).amax(-1)
    groups = op.argument(6, "groups", 1)
    parts = x.unflatten(1, (groups, -1)), weight.unflatten(0, (groups, -1))
    found = torch.einsum("ngi,gio->ngo", *parts).flatten(1)
    if isinstance(op.argument(2, "bias"), Ref):
        found = found + alive[op.args[2].name]
    result: Tensor = found.view(*found.shape, *[1] * (len(op.shape) - 2)).expand(op.shape)
    return result


def conv_labels(op: Op, flow: Flow) -> Value:
    """Input and output channels are those of the weight; outputs get new labels.

    In a depthwise convolution, an input and the outputs that it alone gives are tied.
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


def conv_varies(op: Op, flow: Flow) -> Value:
    """A convolution that pads reads another constant at the border."""
    padding = op.argument(4, "padding", 0)
    padded = padding not in (0, "valid") and any(as_tuple(padding))
    return layer_varies(op, flow, conv_support, 1, padded)


CONV = Rule(conv_support, conv_labels, varies=conv_varies)
TRANSPOSED_CONV = Rule(transposed_support, conv_labels, varies=as_alive, constants=False)

TABLE = {
    **dict(rows(CONV, "conv1d conv2d conv3d")),
    **dict(rows(TRANSPOSED_CONV, "conv_transpose1d conv_transpose2d conv_transpose3d")),
}
