"""Networks of which an analysis at one size of the maps holds for all sizes."""

from __future__ import annotations

from torch import nn

from ssl_lightning.graph.aliases import OVERWRITTEN
from ssl_lightning.graph.layers import ANY_CHANNEL_NORM, CONVS
from ssl_lightning.graph.operations import RULES
from ssl_lightning.graph.operations.pooling import POOL
from ssl_lightning.graph.ops import Op, Trace
from ssl_lightning.graph.rule import Rule

SAME_EVERYWHERE = frozenset(
    {
        *(name for name, rule in RULES.items() if rule in (Rule.pointwise(), POOL)),
        *("conv1d", "conv2d", "conv3d", "linear"),
        *("batch_norm", "instance_norm", "group_norm"),
        *("add", "sub", "mul", "div", "maximum", "minimum", "mean", "sum", "amax"),
        *("dropout", "feature_dropout", "clone", "contiguous", "detach", "alias", "flatten"),
        OVERWRITTEN,
    }
)
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
    return all(op.kind in SAME_EVERYWHERE or joins_channels(op) for op in traced.ops)


def joins_channels(op: Op) -> bool:
    """Whether an operation concatenates along the dimension after the batch."""
    return op.kind == "cat" and op.argument(1, "dim", 0) in (1, 1 - len(op.shape))
