"""Kinds of groups, as data: which slices of a layer's weight are a group."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ssl_lightning.graph import ANY_BATCH_NORM, CONVS, TRANSPOSED, WEIGHTED, own_layer
from ssl_lightning.registry import Registration, check_name, register

View = tuple[tuple[int, ...], tuple[int, ...]]
"""The shape in which a weight is viewed, and the dimensions of it that number the groups."""


AXES = ("out", "in", "space", "group")
"""Names of the axes of weights."""


@dataclass(frozen=True)
class GroupKind:
    """A kind of group: in which layers, and which axes of their weights number the groups.

    A kind of your own is an object of this class. Groups that no axes number, such as blocks of
    several filters, take a subclass with a :meth:`view` of its own. Either is given a name by
    :func:`register_kind`.

    Attributes:
        axes: names of axes of the weight: ``"out"``, ``"in"``, ``"space"`` (all of a kernel) and
            ``"group"``, the group of a grouped convolution: channels are numbered inside each. A
            layer whose weight has none of them has no such groups; without axes, the whole weight
            is one.
        layers: ``"conv"``, ``"linear"`` or ``"any"`` of both.
        outputs: whether a zero group makes a layer's outputs zero, if its bias and the scale and
            shift of its batch norm are zero too; so they count into it. Groups are then numbered
            by outputs that follow each other.
        shortcut: whether only layers around which a shortcut leads may have such groups.

    Raises:
        ValueError: for axes or layers of other names.

    Example:
        >>> positions = GroupKind(axes=("space",), layers="conv")
        >>> positions.view(nn.Conv2d(4, 6, 3))
        ((6, 4, 3, 3), (2, 3))
    """

    axes: tuple[str, ...] = ()
    layers: str = "any"
    outputs: bool = False
    shortcut: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.axes, tuple) or not set(self.axes) <= set(AXES):
            raise ValueError(
                f"GroupKind: expected a tuple of {', '.join(map(repr, AXES))}, got the axes "
                f"{self.axes!r}. Correct them."
            )
        if self.layers not in ("conv", "linear", "any"):
            raise ValueError(
                "GroupKind: expected the layers 'conv', 'linear' or 'any', got "
                f"{self.layers!r}. Correct them, or write a `view` for other layers."
            )

    def view(self, module: nn.Module) -> View | None:
        """Return the shape in which a layer's weight is viewed, and the dims that number groups.

        The shape splits dimensions of the weight, so that the view needs no copy; the numbers of
        the dims ascend. None means that the layer has no such groups. Asked for all modules that
        have a tensor ``weight``.
        """
        found = layer_type(module)
        if found in (None, OWN) or self.layers not in ("any", found):
            return None
        shape, axes = weight_axes(module)
        dims = tuple(i for i, axis in enumerate(axes) if axis in self.axes)
        return (shape, dims) if dims or not self.axes else None


class Elements(GroupKind):
    """Each element of a weight of two or more dimensions is a group: unstructured sparsity."""

    def view(self, module: nn.Module) -> View | None:
        """Return the weight's own shape, and all of its dimensions."""
        weight = getattr(module, "weight", None)
        if not isinstance(weight, nn.Parameter) or weight.dim() < 2:
            return None
        return tuple(weight.shape), tuple(range(weight.dim()))


def without_elements(model: nn.Module) -> dict[str, str]:
    """Return the parameters of two or more dimensions that have no groups of single elements.

    Returns:
        Name -> why.

    Example:
        >>> list(without_elements(nn.Sequential(nn.Linear(2, 3), nn.GRU(3, 4))))
        ['1.weight_ih_l0', '1.weight_hh_l0']
    """
    seen = {id(module.weight) for module in model.modules() if Elements().view(module) is not None}
    why = "single elements are groups of parameters named `weight` only"
    return {n: why for n, p in model.named_parameters() if p.dim() > 1 and id(p) not in seen}


class Scales(GroupKind):
    """Each scale of a batch norm is a group: what network slimming penalises."""

    def view(self, module: nn.Module) -> View | None:
        """Return the shape of the scales, and its only dimension."""
        if not isinstance(module, ANY_BATCH_NORM) or module.weight is None:
            return None
        return tuple(module.weight.shape), (0,)


class FromGraph(GroupKind):
    """The groups are those that the model's graph gives, over several layers."""

    def view(self, module: nn.Module) -> View | None:
        """Return None: no layer has such groups by itself."""
        return None


COUPLED = "coupled"
"""All that must be zero so that a channel can be removed."""

HEAD, FFN = "head", "ffn"
"""Kinds of the same origin: attention heads; and of the coupled channels, the hidden neurons
between two linear layers (or 1x1 convolutions) of one module."""

KINDS: dict[str, GroupKind] = {
    "filter": GroupKind(("group", "out"), "conv", outputs=True),
    "channel": GroupKind(("group", "in"), "conv"),
    "shape": GroupKind(("group", "in", "space"), "conv"),
    "kernel": GroupKind(("group", "out", "in"), "conv"),
    "neuron_out": GroupKind(("out",), "linear", outputs=True),
    "neuron_in": GroupKind(("in",), "linear"),
    "depth": GroupKind((), outputs=True, shortcut=True),
    COUPLED: FromGraph(),
    HEAD: FromGraph(),
    FFN: FromGraph(),
    "bn_scale": Scales(),
    "element": Elements(),
    "l1": Elements(),
}
"""Name of a kind -> the kind (Wen et al. 2016, section 3.1).

``shape`` is a filter shape W[:, c, h, w], a column of the lowered matrix; ``kernel`` a 2-D kernel
W[o, c]; ``depth`` a whole layer; ``l1`` what ``element`` is called with group lasso.
"""

NOT_REMOVED = ("bn_scale",)
"""Kinds whose groups are no part that could be removed: the channels behind them are."""

COUPLED_KINDS = tuple(name for name, kind in KINDS.items() if isinstance(kind, FromGraph))
"""Kinds whose groups the model's graph gives."""


def register_kind(name: str, kind: GroupKind, *, replace: bool = False) -> Registration:
    """Give a kind of group of your own a name, for penalties, selectors and pruning.

    Call it wherever a config or checkpoint that holds the name is read.

    Args:
        name: letters, digits, ``_`` and ``-``.
        kind: which groups.
        replace: whether the name may mean something else already.

    Returns:
        What ends it: ``undo()``; also a context manager.

    Raises:
        ValueError: if the name means something else, unless ``replace``, or ``kind`` is no
            :class:`GroupKind`.

    Example:
        >>> with register_kind("position", GroupKind(axes=("space",), layers="conv")):
        ...     KINDS["position"].axes
        ('space',)
    """
    check_name("register_kind", name)
    if not isinstance(kind, GroupKind):
        raise ValueError(
            f"register_kind: expected a GroupKind as {name!r}, got {kind!r}. Give an object, such "
            "as GroupKind(axes=('space',), layers='conv')."
        )
    return register("register_kind", name, (KINDS, name, kind), replace=replace)


OWN = "own"
"""Layers of a type that the user registered: only the coupled kinds have their groups."""


def layer_type(module: nn.Module) -> str | None:
    """Return ``"conv"``, ``"linear"``, ``"own"`` or None for a module without groups."""
    if isinstance(module, (*CONVS, *TRANSPOSED)):
        return "conv"
    if isinstance(module, nn.Linear):
        return "linear"
    own = own_layer(module)
    return OWN if own is not None and own.inputs else None


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
