"""What the engine that a network will run in has to say about numbers of channels."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from torch import nn

from ssl_lightning.costs import Check, LatencyMeter
from ssl_lightning.graph import ExampleInput
from ssl_lightning.measure.left import CompactForm
from ssl_lightning.prune.budget import Choice, UnreachableError
from ssl_lightning.suggest import shortened

Multiple: TypeAlias = int | Literal["auto"] | None
"""Number of channels, ``"auto"`` from an engine's timings, or None: that if there is an engine."""

WORTH_A_WARNING = 1.1
"""Time of odd widths, over that of others, from which they are warned of."""


@dataclass(frozen=True)
class LatencyReport:
    """Latency before and after pruning, and how well it was predicted.

    Attributes:
        engine: in which it was measured.
        dense_ms: of the dense network, measured.
        found: of the network that was chosen: predicted, and measured in turns with the dense one.
        first: of the network found first, before any but the dense one was measured.

    Example:
        >>> print(LatencyReport("openvino", 8.0, Check(4.0, 4.1), Check(4.0, 5.0)))
        latency 8 -> 4.1 ms (51.2 %) in openvino, predicted 4 ms (-2.4 %; the first time -20.0 %)
    """

    engine: str
    dense_ms: float
    found: Check
    first: Check

    def __str__(self) -> str:
        share = self.found.measured / self.dense_ms
        first = "" if self.first == self.found else f"; the first time {self.first.error:+.1%}"
        text = (
            f"latency {self.dense_ms:.4g} -> {self.found.measured:.4g} ms ({share:.1%}) in "
            f"{self.engine}, predicted {self.found.predicted:.4g} ms "
            f"({self.found.error:+.1%}{first})"
        )
        return text.replace("%", " %")


def latency_report(choice: Choice, meter: LatencyMeter | None) -> LatencyReport | None:
    """Return what a choice says about latency; None if that was no target."""
    if meter is None or "latency" not in choice.checks:
        return None
    found, first = choice.checks["latency"], choice.first["latency"]
    return LatencyReport(meter.engine, meter.dense_ms, found, first)


def meter_of(
    engine: str | LatencyMeter | None, model: nn.Module, example_input: ExampleInput
) -> LatencyMeter | None:
    """Return the meter of an engine; of none, None.

    Raises:
        ValueError: if there is no such engine, or it is not installed.
    """
    if engine is None or isinstance(engine, LatencyMeter):
        return engine
    return LatencyMeter(model, example_input, engine)


def check_multiple(where: str, multiple: Multiple, engine: object) -> None:
    """Make sure that a multiple can be found.

    Raises:
        ValueError: if it is no positive number, or ``"auto"`` without an engine.
    """
    if multiple == "auto" and engine is None:
        raise ValueError(
            f"{where}: expected an engine for multiple='auto', which is found by its timings, got "
            "none. Give `engine` (`--engine`), such as openvino, or a number."
        )
    if multiple not in (None, "auto") and (type(multiple) is not int or multiple < 1):
        raise ValueError(
            f"{where}: expected a whole number >= 1 as multiple, got {shortened(multiple)}. "
            "Give 8 or 16, say."
        )


def multiple_for(multiple: Multiple, meter: LatencyMeter | None) -> int:
    """Return the number that a multiple stands for."""
    if isinstance(multiple, int):
        return multiple
    return 1 if meter is None else meter.multiple


def choose_in_multiples(
    choose: Callable[[int], Choice], multiple: int, *, fixed: bool
) -> tuple[Choice, int]:
    """Choose groups, with half the multiple while the budget cannot be reached otherwise.

    Args:
        choose: for a multiple.
        multiple: to begin with.
        fixed: whether it is the user's, and no other will do.

    Returns:
        What was chosen, and the multiple.

    Raises:
        UnreachableError: if the budget cannot be reached.

    Example:
        >>> def choose(multiple):
        ...     if multiple > 4:
        ...         raise UnreachableError("too wide")
        ...     return f"multiples of {multiple}"
        >>> choose_in_multiples(choose, 16, fixed=False)
        ('multiples of 4', 4)
    """
    while True:
        try:
            return choose(multiple), multiple
        except UnreachableError:
            if fixed or multiple == 1:
                raise
            multiple //= 2


def warn_of_odd_widths(
    form: CompactForm, model: nn.Module, meter: LatencyMeter, multiple: int
) -> None:
    """Warn if a network's compact form takes longer than it would with other widths.

    Args:
        form: gives the compact form.
        model: the network with its zeros.
        meter: of the engine.
        multiple: of which the widths are multiples.
    """
    liked = meter.multiple
    if multiple % liked == 0:
        return
    found = form.ask(model, meter.profile)
    before = {width for shape in meter.dense_profile.layers for width in shape.widths}
    widths = {width for shape in found.layers for width in shape.widths} - before
    odd = sorted(width for width in widths if width % liked)
    if not odd:
        return
    slower = meter.layers_ms(found) / meter.layers_ms(found, smooth=True)
    if slower < WORTH_A_WARNING:
        return
    some, more = odd[:3], ", ..." if len(odd) > 3 else ""
    larger = [-(-width // liked) * liked for width in some]
    warnings.warn(
        f"Widths of {', '.join(map(str, some))}{more} take as long as "
        f"{', '.join(map(str, larger))}{more} in {meter.engine}: {slower:.2g} times the time per "
        f"multiply-add of multiples of {liked}. Give multiple={liked}, or multiple='auto'.",
        stacklevel=3,
    )
