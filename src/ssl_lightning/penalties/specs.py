"""What to penalise, as data: kind of group, layers, function, strength, schedule."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ssl_lightning.groups import KINDS, GroupSet, Selector
from ssl_lightning.penalties.functions import FUNCTIONS, GroupLasso, PenaltyFunction
from ssl_lightning.registry import (
    Registration,
    arguments_of,
    as_mapping,
    check_class,
    check_name,
    check_object,
    make,
    name_of,
    register,
    stored,
)
from ssl_lightning.schedules import Constant, Schedule, parse_schedule, schedule_to_dict
from ssl_lightning.suggest import check_keys, how_known, nearest, pick, shortened

SCALINGS = ("sqrt_size", "none")
MODES = ("proximal", "subgradient")
REGISTER = "register_penalty_function"


@dataclass(frozen=True)
class Penalty:
    r"""A penalty function of the norms of one kind of group in some layers.

    Attributes:
        strength: lambda, the weight of the penalty in the loss. None: what steers the strength
            (a ``Budget``, or whoever sets :attr:`Regularizer.scales`) says it; until then it is 0.
        layers: glob or globs on the qualified names of the layers.
        mode: ``"proximal"`` shrinks after each optimizer step, so that groups become exactly zero;
            ``"subgradient"`` adds to the gradient before it, as the paper's code does.
        schedule: factor on the strength over the epochs; also a mapping with a ``kind``.
        kind: filter, channel, shape, kernel, depth, neuron_in, neuron_out, coupled, head, ffn,
            bn_scale (the scales of batch norms), element (or ``l1``: each element of the weights of
            two or more dimensions), or one of :func:`~ssl_lightning.register_kind`.
        scaling: ``"sqrt_size"`` multiplies the strength by the root of the group size, so that one
            strength fits layers of all sizes; ``"none"`` is the paper's formula.
        members: ``"all"`` counts bias and batch-norm scale and shift into the groups of outputs,
            ``"weight"`` does not (see :class:`~ssl_lightning.groups.Selector`).
        function: of a group's norm; also the name of one, such as ``"mcp"``.

    Raises:
        ValueError: for an unknown kind, scaling, mode, member rule, function or schedule, or a
            strength below 0.

    Reference:
        Wen et al., 2016, equation 3; the scaling is that of Yuan & Lin, 2006.

    Example:
        >>> Penalty(kind="filter", strength=1e-3, layers="conv*").function
        GroupLasso()
        >>> Penalty(kind="coupled", strength=1e-3, function="mcp").function
        MCP(gamma=3.0)
    """

    strength: float | None = None
    layers: str | Sequence[str] = "*"
    mode: str = "proximal"
    schedule: Schedule = field(default_factory=Constant)
    kind: str = field(kw_only=True)
    scaling: str = field(default="sqrt_size", kw_only=True)
    members: str = field(default="all", kw_only=True)
    function: PenaltyFunction = field(default_factory=GroupLasso, kw_only=True)

    def __post_init__(self) -> None:
        where = f"The penalty of kind {self.kind!r}"
        given = 1.0 if self.strength is None else self.strength
        number = isinstance(given, (int, float)) and not isinstance(given, bool)
        if not number or not 0 <= given < math.inf:
            raise ValueError(
                f"{where}: expected a finite strength >= 0, got {self.strength!r}. A typical one "
                "is 1e-4 to 1e-2."
            )
        for name, known in (("mode", MODES), ("scaling", SCALINGS)):
            value = getattr(self, name)
            if value not in known:
                raise ValueError(f"{where}: unknown {name} {value!r}. {nearest(value, known)}")
        self.selector()
        object.__setattr__(self, "schedule", parse_schedule(self.schedule))
        object.__setattr__(self, "function", parse_function(self.function, {}))

    def selector(self) -> Selector:
        """Return the selector of the groups."""
        return Selector(self.kind, self.layers, self.members)

    @property
    def base(self) -> float:
        """The strength that schedule and scale multiply: 1 if none is given."""
        return 1.0 if self.strength is None else self.strength

    def group_strength(self, group_set: GroupSet, full_size: int | None = None) -> float:
        """Return the strength of each group of a set, scaling included, schedule not.

        Args:
            group_set: the groups.
            full_size: size of a group to scale with, if it is not the present one.
        """
        size = group_set.group_size if full_size is None else full_size
        factor = math.sqrt(size) if self.scaling == "sqrt_size" else 1.0
        return self.base * factor

    def to_dict(self) -> dict[str, Any]:
        """Return the mapping of plain values from which :func:`parse_penalty` makes it again.

        Example:
            >>> given = Penalty(kind="l1", strength=1e-5, function="scad")
            >>> parse_penalty(given.to_dict()) == given
            True
        """
        name = name_of(FUNCTIONS, self.function)
        layers = self.layers if isinstance(self.layers, str) else list(self.layers)
        function = (
            {"function": stored(self.function)}
            if name is None
            else {"function": name, **arguments_of(self.function)}
        )
        plain = {key: getattr(self, key) for key in FIELDS if key not in ("schedule", "function")}
        schedule = schedule_to_dict(self.schedule)
        return {**plain, "layers": layers, "schedule": schedule, **function}


FIELDS = tuple(each.name for each in dataclasses.fields(Penalty))


def register_penalty_function(
    name: str, cls: type[PenaltyFunction], *, replace: bool = False
) -> Registration:
    """Give a penalty function of your own a name: ``{kind: ..., function: name, ...}``.

    Its arguments stand beside those of the penalty. Call it wherever a checkpoint that holds the
    name is read: no class is imported because a file names it.

    Args:
        name: letters, digits, ``_`` and ``-``.
        cls: a frozen dataclass derived from :class:`PenaltyFunction`.
        replace: whether the name may mean something else already.

    Returns:
        What ends it: ``undo()``; also a context manager.

    Raises:
        ValueError: if the name means something else, unless ``replace``, the class is no frozen
            dataclass, or one of its arguments is called as one of :class:`Penalty`.

    Example:
        >>> from ssl_lightning import MCP
        >>> with register_penalty_function("minimax", MCP):
        ...     parse_penalty({"kind": "filter", "strength": 1e-3, "function": "minimax"}).function
        MCP(gamma=3.0)
    """
    check_name(REGISTER, name)
    check_class(REGISTER, cls, PenaltyFunction)
    if both := [each.name for each in dataclasses.fields(cls) if each.name in FIELDS]:
        raise ValueError(
            f"{REGISTER}: the argument {both[0]!r} of {cls.__name__} is one of every penalty, and "
            "both stand in one mapping. Rename it."
        )
    return register(REGISTER, name, (FUNCTIONS, name, cls), replace=replace)


def parse_function(given: Any, arguments: Mapping[str, Any]) -> PenaltyFunction:
    """Return a penalty function that is given as an object, or by name and arguments.

    Raises:
        ValueError: for an unknown name or argument, or a class that cannot be stored.
    """
    given = as_mapping(given)
    if isinstance(given, (str, Mapping)):
        return make("penalty function", FUNCTIONS, given, arguments, REGISTER)
    check_object("function", given, PenaltyFunction)
    function: PenaltyFunction = given
    return function


def parse_penalties(given: Sequence[Penalty | Mapping[str, Any]]) -> list[Penalty]:
    """Return the penalties of a list, as :func:`parse_penalty` does.

    Raises:
        ValueError: if it is no list, or as :func:`parse_penalty`.
    """
    if isinstance(given, (str, Mapping)) or not isinstance(given, Sequence):
        raise ValueError(
            "penalties: expected a list of mappings such as [{kind: filter, layers: 'conv*', "
            f"strength: 1e-3}}], got {shortened(given)}. Write a list of them, one per penalty."
        )
    return [parse_penalty(each) for each in given]


def parse_penalty(given: Penalty | Mapping[str, Any]) -> Penalty:
    """Return the penalty that a mapping ``{kind: ..., strength: ..., **arguments}`` describes.

    Raises:
        ValueError: for an unknown kind, function or key, with the nearest known ones. And for a
            function or schedule given as ``{class_path: ...}``: the command
            line makes objects of those in its configs.

    Example:
        >>> parse_penalty({"kind": "filter", "layers": "conv*", "strength": 0.001}).kind
        'filter'
        >>> parse_penalty({"kind": "l1", "strength": 1e-5, "function": "mcp", "gamma": 2}).function
        MCP(gamma=2)
    """
    if isinstance(given, Penalty):
        return given
    if not isinstance(given, Mapping):
        raise ValueError(
            "penalties: expected mappings such as {kind: filter, layers: 'conv*', strength: 1e-3}, "
            f"got {shortened(given)}. Write a list of them, one per penalty."
        )
    kind, function = given.get("kind"), given.get("function", "group_lasso")
    if not isinstance(kind, str) or kind not in KINDS:
        near = f"{nearest(kind, KINDS)} {how_known('register_kind')}"
        raise ValueError(f"penalties: unknown kind {kind!r}. {near}")
    named = isinstance(function, str)
    cls = pick("penalty function", function, FUNCTIONS, REGISTER) if named else None
    own = [] if cls is None else [each.name for each in dataclasses.fields(cls)]
    check_keys(f"The penalty of kind {kind!r}", given, [*FIELDS, *own])
    made = parse_function(function, {key: given[key] for key in own if key in given})
    settings = {key: value for key, value in given.items() if key not in ("function", *own)}
    return Penalty(**settings, function=made)
