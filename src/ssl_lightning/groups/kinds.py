"""Kinds of groups, as data: which axes of a layer's weight number them."""

from __future__ import annotations

from torch import nn

from ssl_lightning.graph import CONVS, TRANSPOSED, WEIGHTED, own_layer

KIND_AXES: dict[str, tuple[str, ...]] = {
    "filter": ("group", "out"),
    "channel": ("group", "in"),
    "shape": ("group", "in", "space"),
    "kernel": ("group", "out", "in"),
    "neuron_out": ("out",),
    "neuron_in": ("in",),
    "depth": (),
}
"""Group kind -> names of the axes that number its groups (Wen et al. 2016, section 3.1).

``shape`` is a filter shape W[:, c, h, w], a column of the lowered matrix; ``kernel`` a 2-D kernel
W[o, c]; ``depth`` a whole layer. ``group`` is the group of a grouped convolution: channels and
shapes are numbered inside each.
"""

COUPLED = "coupled"
"""The kind whose groups the model's graph gives: all that must be zero for a channel to go."""

HEAD, FFN = "head", "ffn"
"""Kinds of the same origin: attention heads; and of the coupled channels, the hidden neurons
between two linear layers (or 1x1 convolutions) of one module."""

COUPLED_KINDS = (COUPLED, HEAD, FFN)
"""Kinds whose groups the model's graph gives."""

KINDS: tuple[str, ...] = (*KIND_AXES, *COUPLED_KINDS)
"""All kinds of groups."""

KIND_LAYERS: dict[str, str] = {
    "filter": "conv",
    "channel": "conv",
    "shape": "conv",
    "kernel": "conv",
    "neuron_out": "linear",
    "neuron_in": "linear",
    "depth": "any",
}
"""Group kind -> the layers that have such groups."""

OWN = "own"
"""Layers of a type that the user registered: only the coupled kinds have their groups."""

OUTPUT_KINDS = frozenset({"filter", "neuron_out", "depth"})
"""Kinds whose zero group makes an output channel zero, if bias and norm shift go with it."""


def layer_type(module: nn.Module) -> str | None:
    """Return ``"conv"``, ``"linear"``, ``"own"`` or None for a module without groups."""
    if isinstance(module, (*CONVS, *TRANSPOSED)):
        return "conv"
    if isinstance(module, nn.Linear):
        return "linear"
    own = own_layer(module)
    return OWN if own is not None and own.inputs else None


def has_kind(module: nn.Module, kind: str) -> bool:
    """Whether a module has groups of a kind."""
    wanted = KIND_LAYERS[kind]
    found = layer_type(module)
    return found not in (None, OWN) and wanted in ("any", found)


def weight_axes(module: nn.Module) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Return the shape a layer's weight is viewed in, and the name of each axis.

    Only the first dimension is ever split (into conv-groups), so the view needs no copy.

    Example:
        >>> weight_axes(nn.Conv2d(4, 6, 3, groups=2))
        ((2, 3, 2, 3, 3), ('group', 'out', 'in', 'space', 'space'))
        >>> weight_axes(nn.Linear(3, 2))
        ((2, 3), ('out', 'in'))
    """
    assert isinstance(module, WEIGHTED)
    shape = tuple(module.weight.shape)
    if isinstance(module, nn.Linear):
        return shape, ("out", "in")
    names = ("in", "out") if isinstance(module, TRANSPOSED) else ("out", "in")
    space = ("space",) * (len(shape) - 2)
    if module.groups == 1:
        return shape, (*names, *space)
    split = (module.groups, shape[0] // module.groups, *shape[1:])
    return split, ("group", *names, *space)


def index_dims(axes: tuple[str, ...], kind: str) -> tuple[int, ...]:
    """Return the dimensions of the viewed weight that number the groups of a kind.

    Example:
        >>> index_dims(("out", "in", "space", "space"), "shape")
        (1, 2, 3)
        >>> index_dims(("out", "in", "space", "space"), "depth")
        ()
    """
    return tuple(i for i, axis in enumerate(axes) if axis in KIND_AXES[kind])
