"""Networks of which an analysis at one size of the maps holds for all sizes."""

from __future__ import annotations

from typing import Any

from torch import nn

from ssl_lightning.graph.aliases import OVERWRITTEN
from ssl_lightning.graph.layers import ANY_CHANNEL_NORM, CONV_KINDS, CONVS, FOLDING_KINDS
from ssl_lightning.graph.operations import REGISTERED, RULES
from ssl_lightning.graph.operations.owned import as_tuple
from ssl_lightning.graph.operations.pooling import POOL
from ssl_lightning.graph.ops import Op, Ref, Trace
from ssl_lightning.graph.rule import Rule

READ_STORED = FOLDING_KINDS | {"batch_norm", "instance_norm", "group_norm"}
"""Operations of layers, whose stored tensors know no positions."""

SAME_EVERYWHERE = READ_STORED | {
    *(name for name, rule in RULES.items() if rule in (Rule.pointwise(), POOL)),
    *("add", "sub", "mul", "div", "maximum", "minimum", "mean", "sum", "amax"),
    *("dropout", "feature_dropout", "clone", "contiguous", "detach", "alias", "flatten"),
    OVERWRITTEN,
}
"""Operations that make, of masks and labels that are the same at all positions, such again."""

LAYERS = (*CONVS, ANY_CHANNEL_NORM, nn.GroupNorm, nn.Linear)


def may_be_same_everywhere(model: nn.Module) -> bool:
    """Whether all parameters are of layers that do not know positions (quick: nothing is run)."""
    return all(
        isinstance(module, LAYERS) or next(module.parameters(recurse=False), None) is None
        for module in model.modules()
    )


def is_same_everywhere(traced: Trace) -> bool:
    """Whether the analysis of a trace would be the same for maps of more positions.

    Its masks are then the same at all positions of a map: what is zero, or constant, is so in whole
    channels. Whether an element of a channel is needed depends on the channels that read it, of
    which each reads some position of maps of any size.

    Example:
        >>> import torch
        >>> from ssl_lightning.graph import trace
        >>> x = torch.zeros(1, 3, 8, 8)
        >>> is_same_everywhere(trace(nn.Conv2d(3, 4, 3), x))
        True
        >>> is_same_everywhere(trace(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ZeroPad2d(1)), x))
        False
    """
    return all(knows_no_position(op, traced) for op in traced.ops)


def knows_no_position(op: Op, traced: Trace) -> bool:
    """Whether an operation is in the table, by its own rule, and reads no stored map."""
    if op.kind in REGISTERED or not (op.kind in SAME_EVERYWHERE or joins_channels(op)):
        return False
    if op.kind in CONV_KINDS and not always_meets_the_map(op, traced):
        return False
    stored = [traced.tensors[name] for name in op.inputs() if name in traced.tensors]
    return op.kind in READ_STORED or all(tensor.numel() == 1 for tensor in stored)


def always_meets_the_map(op: Op, traced: Trace) -> bool:
    """Whether each window of a convolution has a tap inside the map, however small that is."""
    weight = op.args[1]
    if not isinstance(weight, Ref) or weight.name not in traced.tensors:
        return False
    kernel = traced.tensors[weight.name].shape[2:]
    padding, dilation = op.argument(4, "padding", 0), op.argument(5, "dilation", 1)
    steps = spread_over(dilation, len(kernel))
    if padding == "valid":
        return True
    if padding == "same":
        return all(k % 2 == 1 or d == 1 for k, d in zip(kernel, steps, strict=True))
    return all(
        2 * p <= d * (k - 1) and (k % 2 == 1 or d == 1 or p == 0)
        for k, p, d in zip(kernel, spread_over(padding, len(kernel)), steps, strict=True)
    )


def spread_over(number: Any, count: int) -> list[int]:
    """Return one number for each dimension.

    Example:
        >>> spread_over(1, 2), spread_over([3], 2)
        ([1, 1], [3, 3])
    """
    numbers: list[Any] = list(as_tuple(number))
    return numbers * count if len(numbers) == 1 else numbers


def joins_channels(op: Op) -> bool:
    """Whether an operation concatenates along the dimension after the batch."""
    return op.kind == "cat" and op.argument(1, "dim", 0) in (1, 1 - len(op.shape))
