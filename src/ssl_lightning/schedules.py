"""Strength of a penalty, and the learning rate, over the epochs of a run.

A strength schedule is a small frozen dataclass: ``schedule(epoch) -> factor``, where ``epoch`` is
fractional (3.5 is half-way through the fourth epoch) and the factor multiplies the penalty's
strength. In YAML it is a mapping whose ``kind`` names a row of :data:`SCHEDULES`::

    schedule: {kind: ramp, start: 4, end: 8}

A schedule of your own derives from :class:`Schedule`; :func:`register_schedule` gives it a kind.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, pairwise
from typing import Any, Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

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


@dataclass(frozen=True)
class Schedule:
    """Base of the strength schedules; subclasses define ``__call__(epoch) -> factor``.

    The factor is finite and at least 0. A schedule of your own is a frozen dataclass, so that
    checkpoints can hold it; its fields are plain values.

    Example:
        >>> @dataclass(frozen=True)
        ... class Halving(Schedule):
        ...     every: float = 10.0
        ...
        ...     def __call__(self, epoch):
        ...         return 0.5 ** (epoch // self.every)
        >>> Halving(every=2)(5.0)
        0.25
    """

    def __call__(self, epoch: float) -> float:
        """Return the factor on the strength at the fractional ``epoch``."""
        raise TypeError(f"{type(self).__name__} does not define __call__({epoch}).")

    def is_zero(self, until: float) -> bool:
        """Whether the factor is 0 throughout the epochs from 0 to ``until`` (may be infinite).

        A run refuses a penalty that would do nothing. Looks inside every stretch between whole
        epochs and numbers in the fields; a schedule that is on for moments only overrides it.

        Example:
            >>> Ramp(start=5, end=8).is_zero(until=5), Ramp(start=5, end=8).is_zero(until=6)
            (True, False)
        """
        values = [getattr(self, field.name) for field in dataclasses.fields(self)]
        numbers = [float(v) for v in values if isinstance(v, (int, float)) and math.isfinite(v)]
        corners = {c for c in (*numbers, *(a + b for a in numbers for b in numbers)) if c < until}
        last = min(until, max(corners, default=0.0) + 1000.0)
        points = sorted({0.0, last, *corners, *map(float, range(math.ceil(last)))})
        inside = (a + part * (b - a) for a, b in pairwise(points) for part in (0.05, 0.5, 0.95))
        return all(self(epoch) == 0.0 for epoch in inside if epoch > 0)


@dataclass(frozen=True)
class PiecewiseSchedule(Schedule):
    """Base of the schedules here: their fields are epochs and factors, all numbers >= 0."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not None and not (isinstance(value, (int, float)) and value >= 0):
                raise ValueError(
                    f"{type(self).__name__}.{field.name}: expected a number >= 0 (epochs, or a "
                    f"factor), got {value!r}. Correct the schedule of the penalty."
                )
        ends = [getattr(self, name, None) for name in ("start", "end")]
        if None not in ends and ends[0] > ends[1]:  # type: ignore[operator]
            raise ValueError(
                f"{type(self).__name__}: expected start <= end, got start={ends[0]} and "
                f"end={ends[1]} (epochs). Swap or correct them."
            )


@dataclass(frozen=True)
class Constant(PiecewiseSchedule):
    """Full strength from epoch ``start`` on; before it, none.

    Args:
        start: in epochs, counted from 0; fractions count steps.

    Raises:
        ValueError: if ``start`` is negative or no number.

    Example:
        >>> Constant(start=2)(1.5), Constant(start=2)(2.0)
        (0.0, 1.0)
    """

    start: float = 0.0

    def __call__(self, epoch: float) -> float:
        """Return 1 from ``start`` on."""
        return float(epoch >= self.start)


@dataclass(frozen=True)
class Ramp(PiecewiseSchedule):
    """Linear from ``first`` at epoch ``start`` to full strength at epoch ``end``.

    Before ``start`` there is no penalty.

    Args:
        start: epoch at which it begins.
        end: epoch of full strength.
        first: factor at ``start``.

    Raises:
        ValueError: if ``end`` is before ``start``, or a number is negative.

    Example:
        >>> [Ramp(start=1, end=3)(epoch) for epoch in (0.5, 1, 2, 3, 9)]
        [0.0, 0.0, 0.5, 1.0, 1.0]
    """

    start: float = 0.0
    end: float = 1.0
    first: float = 0.0

    def __call__(self, epoch: float) -> float:
        """Return the linearly interpolated factor."""
        if epoch < self.start:
            return 0.0
        return self.first + (1.0 - self.first) * progress(epoch, self.start, self.end)


@dataclass(frozen=True)
class Cosine(PiecewiseSchedule):
    """Half a cosine from ``first`` at epoch ``start`` to ``last`` at epoch ``end``.

    Before ``start`` there is no penalty; after ``end`` the factor is ``last``.

    Args:
        start: epoch at which it begins.
        end: epoch at which it ends.
        first: factor at ``start``.
        last: factor from ``end`` on.

    Raises:
        ValueError: if ``end`` is before ``start``, or a number is negative.

    Example:
        >>> [round(Cosine(start=0, end=4)(epoch), 3) for epoch in (0, 2, 4, 5)]
        [0.0, 0.5, 1.0, 1.0]
    """

    start: float = 0.0
    end: float = 1.0
    first: float = 0.0
    last: float = 1.0

    def __call__(self, epoch: float) -> float:
        """Return the factor on the half cosine."""
        if epoch < self.start:
            return 0.0
        rise = (1.0 - math.cos(math.pi * progress(epoch, self.start, self.end))) / 2.0
        return self.first + (self.last - self.first) * rise


@dataclass(frozen=True)
class Window(PiecewiseSchedule):
    """Full strength between the epochs ``start`` and ``end``, nothing outside ("off-after").

    With ``ramp`` > 0 the strength rises linearly over the first ``ramp`` epochs of the window. The
    stage after ``end`` is the paper's fine-tuning stage.

    Args:
        start: epoch at which it begins.
        end: first epoch without penalty.
        ramp: epochs over which the strength rises.

    Raises:
        ValueError: if ``end`` is before ``start``, or a number is negative.

    Example:
        >>> [Window(start=2, end=6, ramp=2)(epoch) for epoch in (1, 2, 3, 4, 5.9, 6)]
        [0.0, 0.0, 0.5, 1.0, 1.0, 0.0]
    """

    start: float = 0.0
    end: float = math.inf
    ramp: float = 0.0

    def __call__(self, epoch: float) -> float:
        """Return the factor: 0 outside the window."""
        if not self.start <= epoch < self.end:
            return 0.0
        return progress(epoch, self.start, self.start + self.ramp)


SCHEDULES: dict[str, type[Schedule]] = {
    "constant": Constant,
    "ramp": Ramp,
    "cosine": Cosine,
    "window": Window,
}


def progress(epoch: float, start: float, end: float) -> float:
    """Return how far ``epoch`` is from ``start`` to ``end``, clipped to [0, 1]."""
    if epoch >= end:
        return 1.0
    return max(0.0, (epoch - start) / (end - start))


def register_schedule(name: str, cls: type[Schedule], *, replace: bool = False) -> Registration:
    """Give a schedule of your own a name: ``schedule: {kind: name, ...}``, also in checkpoints.

    Call it wherever such a checkpoint is read: no class is imported because a file names it.

    Args:
        name: letters, digits, ``_`` and ``-``.
        cls: a frozen dataclass derived from :class:`Schedule`.
        replace: whether the name may mean something else already.

    Returns:
        What ends it: ``undo()``; also a context manager.

    Raises:
        ValueError: if the name means something else, unless ``replace``, or the class is no frozen
            dataclass.

    Example:
        >>> with register_schedule("linear", Ramp):
        ...     parse_schedule({"kind": "linear", "end": 2})
        Ramp(start=0.0, end=2, first=0.0)
    """
    check_name("register_schedule", name)
    check_class("register_schedule", cls, Schedule)
    return register("register_schedule", name, (SCHEDULES, name, cls), replace=replace)


def parse_schedule(given: Schedule | Mapping[str, Any] | None) -> Schedule:
    """Return the schedule that a mapping ``{kind: ..., **arguments}`` describes.

    Raises:
        ValueError: for an unknown kind or argument; the message names the nearest known ones. And
            for ``{class_path: ...}``: the command line makes objects of that in its configs.

    Example:
        >>> parse_schedule({"kind": "ramp", "end": 5})
        Ramp(start=0.0, end=5, first=0.0)
    """
    given = as_mapping(given)
    if given is None:
        return Constant()
    if not isinstance(given, Mapping):
        check_object("schedule", given, Schedule)
        return given
    arguments = dict(given)
    kind = given if "class_path" in given else arguments.pop("kind", None)
    return make("schedule kind", SCHEDULES, kind, arguments, "register_schedule")


def schedule_to_dict(schedule: Schedule) -> dict[str, Any]:
    """Return the mapping of plain values that describes a schedule.

    Example:
        >>> schedule_to_dict(Ramp(end=5))
        {'kind': 'ramp', 'start': 0.0, 'end': 5, 'first': 0.0}
    """
    name = name_of(SCHEDULES, schedule)
    return stored(schedule) if name is None else {"kind": name, **arguments_of(schedule)}


class StageLR(LambdaLR):
    """One learning-rate curve per stage: the paper's dense -> sparse -> fine-tune in one run.

    Each stage starts again at ``lr[i]`` and, with ``shape="cosine"``, falls along half a cosine to
    nearly zero over its ``epochs[i]`` epochs; with ``"constant"`` it does not change. With several
    parameter groups, the rates are relative: stage ``i`` multiplies every group's own rate by
    ``lr[i] / lr[0]``, so give the optimizer ``lr[0]``.

    Args:
        optimizer: optimizer whose own learning rate is that of the first stage.
        epochs: length of each stage, in epochs (or steps, if the module steps it per step).
        lr: learning rate at the start of each stage.
        shape: ``"cosine"`` or ``"constant"`` within each stage.
        last_epoch: index of the last epoch, for resuming.

    Raises:
        ValueError: if the two lists differ in length or hold a value that is not positive.

    Example:
        >>> import torch
        >>> sgd = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
        >>> schedule = StageLR(sgd, epochs=[2, 2], lr=[0.1, 0.01], shape="constant")
        >>> rates = []
        >>> for _ in range(4):
        ...     rates.append(round(sgd.param_groups[0]["lr"], 3))
        ...     sgd.step(); schedule.step()
        >>> rates
        [0.1, 0.1, 0.01, 0.01]
    """

    def __init__(
        self,
        optimizer: Optimizer,
        epochs: Sequence[int],
        lr: Sequence[float],
        shape: Literal["cosine", "constant"] = "cosine",
        last_epoch: int = -1,
    ) -> None:
        if len(epochs) != len(lr) or not epochs or min(*epochs, *lr) <= 0:
            raise ValueError(
                "StageLR: expected as many epochs as learning rates, all positive, got "
                f"epochs={list(epochs)} and lr={list(lr)}. Give one of each per stage."
            )
        if shape not in ("cosine", "constant"):
            raise ValueError(f"StageLR: expected shape 'cosine' or 'constant', got {shape!r}.")
        factor = partial(stage_factor, tuple(epochs), tuple(lr), shape)
        super().__init__(optimizer, factor, last_epoch=last_epoch)


def stage_factor(epochs: tuple[int, ...], lr: tuple[float, ...], shape: str, epoch: float) -> float:
    """Return the learning rate of :class:`StageLR` at ``epoch``, in units of ``lr[0]``.

    Example:
        >>> [round(stage_factor((2, 2), (0.1, 0.01), "cosine", e), 3) for e in range(4)]
        [1.0, 0.5, 0.1, 0.05]
    """
    ends = list(accumulate(epochs))
    stage = next((i for i, end in enumerate(ends) if epoch < end), len(ends) - 1)
    relative = lr[stage] / lr[0]
    if shape == "constant":
        return relative
    done = progress(epoch, ends[stage] - epochs[stage], ends[stage])
    return relative * (1.0 + math.cos(math.pi * min(done, 1.0 - 0.5 / epochs[stage]))) / 2.0
