"""What to penalise, as data: kind, layers, strength, schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ssl_lightning.groups import GroupSet, Selector
from ssl_lightning.groups.kinds import KINDS
from ssl_lightning.groups.selectors import as_patterns
from ssl_lightning.schedules import Constant, Schedule, parse_schedule, schedule_to_dict
from ssl_lightning.suggest import check_keys, nearest

SCALINGS = ("sqrt_size", "none")
MODES = ("proximal", "subgradient")


@dataclass(frozen=True)
class Penalty:
    """What all penalties share.

    Attributes:
        strength: lambda, the weight of the penalty in the loss.
        layers: glob or globs on the qualified names of the layers.
        mode: ``"proximal"`` shrinks after each optimizer step, so that groups become exactly zero;
            ``"subgradient"`` adds to the gradient before it, as the paper's code does.
        schedule: factor on the strength over the epochs; also a mapping with a ``kind``.

    Example:
        >>> from ssl_lightning import GroupLasso
        >>> isinstance(GroupLasso(kind="filter", strength=1e-4), Penalty)
        True
    """

    strength: float
    layers: str | Sequence[str] = "*"
    mode: str = "proximal"
    schedule: Schedule = field(default_factory=Constant)

    def __post_init__(self) -> None:
        where = type(self).__name__
        number = isinstance(self.strength, (int, float)) and math.isfinite(self.strength)
        if not number or isinstance(self.strength, bool) or self.strength < 0:
            raise ValueError(
                f"{where}: expected a finite strength >= 0, got {self.strength!r}. A typical one "
                "is 1e-4 to 1e-2."
            )
        if self.mode not in MODES:
            raise ValueError(f"{where}: unknown mode {self.mode!r}. {nearest(self.mode, MODES)}")
        as_patterns(where, self.layers)
        object.__setattr__(self, "schedule", parse_schedule(self.schedule))

    def patterns(self) -> list[str]:
        """Return the globs on layer names."""
        return as_patterns(type(self).__name__, self.layers)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        values = {**asdict(self), "schedule": schedule_to_dict(self.schedule)}
        if not isinstance(self.layers, str):
            values["layers"] = list(self.layers)
        return values


@dataclass(frozen=True)
class GroupLasso(Penalty):
    r"""Group lasso on one kind of group in some layers: lambda times the sum of the group norms.

    Attributes:
        kind: filter, channel, shape, kernel, depth, neuron_in, neuron_out, coupled.
        scaling: ``"sqrt_size"`` multiplies the strength by the root of the group size, so that one
            strength fits layers of all sizes; ``"none"`` is the paper's formula.
        members: ``"all"`` counts bias and batch-norm scale and shift into the groups of outputs,
            ``"weight"`` does not (see :class:`~ssl_lightning.groups.Selector`).

    Raises:
        ValueError: for an unknown kind, scaling, mode or member rule, or a strength below 0.

    Reference:
        Wen et al., 2016, equation 3; the scaling is that of Yuan & Lin, 2006.

    Example:
        >>> GroupLasso(kind="filter", strength=1e-3, layers="conv*").scaling
        'sqrt_size'
    """

    kind: str = field(kw_only=True)
    scaling: str = field(default="sqrt_size", kw_only=True)
    members: str = field(default="all", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scaling not in SCALINGS:
            raise ValueError(
                f"GroupLasso: unknown scaling {self.scaling!r}. {nearest(self.scaling, SCALINGS)}"
            )
        self.selector()

    def selector(self) -> Selector:
        """Return the selector of the groups."""
        return Selector(self.kind, self.layers, self.members)

    def group_strength(self, group_set: GroupSet, full_size: int | None = None) -> float:
        """Return the strength of each group of a set, scaling included, schedule not.

        Args:
            group_set: the groups.
            full_size: size of a group to scale with, if it is not the present one.
        """
        size = group_set.group_size if full_size is None else full_size
        factor = math.sqrt(size) if self.scaling == "sqrt_size" else 1.0
        return self.strength * factor


@dataclass(frozen=True)
class L1(Penalty):
    """Lambda times the sum of the absolute weights: the unstructured baseline.

    It applies to the weights of two or more dimensions (not to biases and norms).

    Raises:
        ValueError: for an unknown mode, or a strength below 0.

    Example:
        >>> L1(strength=1e-5, layers="conv*").mode
        'proximal'
    """


PENALTIES: dict[str, type[Penalty]] = {**dict.fromkeys(KINDS, GroupLasso), "l1": L1}
"""Kind, as in YAML -> class."""


def parse_penalty(given: Penalty | Mapping[str, Any]) -> Penalty:
    """Return the penalty that a mapping ``{kind: ..., strength: ..., **arguments}`` describes.

    Raises:
        ValueError: for an unknown kind or key, with the nearest known ones, or a missing strength.

    Example:
        >>> parse_penalty({"kind": "filter", "layers": "conv*", "strength": 0.001}).kind
        'filter'
        >>> parse_penalty({"kind": "l1", "strength": 1e-5})
        L1(strength=1e-05, layers='*', mode='proximal', schedule=Constant(start=0.0))
    """
    if isinstance(given, Penalty):
        return given
    if not isinstance(given, Mapping):
        raise ValueError(
            "penalties: expected mappings such as {kind: filter, layers: 'conv*', strength: 1e-3}, "
            f"got {given!r}. Write one per penalty."
        )
    kind = given.get("kind")
    if not isinstance(kind, str) or kind not in PENALTIES:
        raise ValueError(f"penalties: unknown kind {kind!r}. {nearest(kind, PENALTIES)}")
    cls: Callable[..., Penalty] = PENALTIES[kind]
    known = [name for name in PENALTIES[kind].__dataclass_fields__ if name != "kind"]
    check_keys(f"The penalty of kind {kind!r}", given, ["kind", *known])
    if "strength" not in given:
        raise ValueError(f"The penalty of kind {kind!r} has no strength. Give one, such as 1e-3.")
    arguments = {key: value for key, value in given.items() if key != "kind"}
    return cls(**arguments, **({"kind": kind} if cls is GroupLasso else {}))


def penalty_name(penalty: Penalty) -> str:
    """Return the kind of a penalty, as in YAML and in logs.

    Example:
        >>> penalty_name(GroupLasso(kind="shape", strength=1e-3)), penalty_name(L1(1e-5))
        ('shape', 'l1')
    """
    return penalty.kind if isinstance(penalty, GroupLasso) else "l1"


def penalty_to_dict(penalty: Penalty) -> dict[str, Any]:
    """Return the mapping of plain values from which :func:`parse_penalty` makes the penalty again.

    Example:
        >>> parse_penalty(penalty_to_dict(L1(1e-5))) == L1(1e-5)
        True
    """
    return {"kind": penalty_name(penalty), **penalty.to_dict()}
