"""Latency, predicted from the times of layers and corrected by measuring whole networks."""

from __future__ import annotations

import math
from bisect import bisect_left
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ssl_lightning.costs.multiples import preferred
from ssl_lightning.costs.resources import Check
from ssl_lightning.costs.shapes import Profile, profile
from ssl_lightning.costs.table import REFERENCE, LayerTimes, TimeCalls, at_length, in_turns
from ssl_lightning.graph import ExampleInput, Inputs, as_inputs, working_copy
from ssl_lightning.measure.engine import Call
from ssl_lightning.measure.engines import prepare
from ssl_lightning.measure.latency import converted
from ssl_lightning.measure.turns import Turns, num_threads


class Curve:
    """A rising line through points that become known one after the other.

    Below the first point it goes on as between the first two, not much flatter or steeper than
    straight to the origin.

    Example:
        >>> curve = Curve()
        >>> curve.add(10.0, 5.0)
        >>> curve(20.0), curve(4.0)
        (10.0, 2.0)
        >>> curve.add(6.0, 4.0)
        >>> curve(8.0), curve(2.0)
        (4.5, 3.0)
    """

    def __init__(self) -> None:
        self.points: dict[float, float] = {}

    def add(self, x: float, y: float) -> None:
        """Let the line go through a point; it replaces one at nearly the same place."""
        near = [other for other in self.points if abs(other - x) <= 0.002 * x]
        for other in near:
            del self.points[other]
        self.points[x] = y

    def __call__(self, x: float) -> float:
        """Return the height of the line."""
        xs = sorted(self.points)
        ys = list(accumulate((self.points[x] for x in xs), max))
        if x >= xs[-1]:
            return ys[-1] * x / xs[-1]
        if x >= xs[0]:
            i = bisect_left(xs, x, 1)
            share = (x - xs[i - 1]) / (xs[i] - xs[i - 1])
            return ys[i - 1] + share * (ys[i] - ys[i - 1])
        straight = ys[0] / xs[0]
        slope = (ys[1] - ys[0]) / (xs[1] - xs[0]) if len(xs) > 1 else straight
        slope = min(max(slope, straight / 4), straight * 4)
        return max(ys[0] - slope * (xs[0] - x), straight * x / 100)


class LatencyMeter:
    """Predicts the milliseconds that a network takes, from a table of layers on this machine.

    A network's time is the sum of its convolutions' and linear layers' times, and of all else,
    which is taken in proportion to the elements that its layers return. Each layer's time depends
    on its type and sizes; what the table lacks is timed, a few widths per octave, and interpolated.
    The table is kept in the user's cache folder, and built anew for another machine or other
    versions.

    Engines run networks otherwise than layer by layer (they fuse and reorder), so the sum is scaled
    to the dense network's time, which is measured, and to that of each network that
    :meth:`calibrate_` measures beside it. Weights do not matter: no network needs to be trained.

    Args:
        model: the dense network. What is predicted are compact forms of it.
        example_input: its inputs, as :func:`~ssl_lightning.make_plan` takes them: the batch size
            and image size that are timed, on the device to time on.
        engine: one of ``measure.ENGINES``.
        dtype: ``"float32"``, ``"bfloat16"`` or ``"float64"``, to which copies are converted.
        threads: intra-op threads; None: torch's present number.
        cache: whether the table is kept; or the folder to keep it in.
        time_calls: how calls are timed. None: by turns, with torch's timer, networks for longer
            than layers.

    Raises:
        ValueError: if the engine or type is unknown, or the engine's packages are not installed.

    Example:
        >>> net = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
        >>> meter = LatencyMeter(net, torch.zeros(1, 64), threads=1, cache=False)
        >>> 0.99 < meter(net) / meter.dense_ms < 1.01
        True
    """

    def __init__(
        self,
        model: nn.Module,
        example_input: ExampleInput,
        engine: str = "eager",
        dtype: str = "float32",
        threads: int | None = None,
        *,
        cache: bool | str | Path = True,
        time_calls: TimeCalls | None = None,
    ) -> None:
        self.dtype, self.time_networks = dtype, time_calls or at_length
        inputs = as_inputs(example_input)
        device = next((x.device for x in inputs.tensors()), None)
        self.table = LayerTimes(
            engine, dtype, threads, device=device, cache=cache, time_calls=time_calls or in_turns
        )
        models, self.inputs = converted({"": working_copy(model)}, inputs, dtype)
        self.dense = models[""].eval()
        self.curve = Curve()

    @property
    def engine(self) -> str:
        """Name of the engine."""
        return self.table.engine

    @property
    def dense_ms(self) -> float:
        """Milliseconds that the dense network was measured to take."""
        return self._base[1]

    @cached_property
    def dense_profile(self) -> Profile:
        """The layers of the dense network."""
        return profile(self.dense, self.inputs)

    @cached_property
    def multiple(self) -> int:
        """Of which multiple the engine likes channels: see :func:`preferred_multiple`."""
        return preferred(self.table, self.dense_profile)

    @cached_property
    def _base(self) -> tuple[Call, float, float]:
        """Measure the dense network: its call, its milliseconds, the rest's per element."""
        reference, x = REFERENCE.build(self.table.kind, self.table.device)
        parts = {
            "dense": self._prepare(self.dense, self.inputs),
            "reference": self._prepare(reference, as_inputs(x)),
        }
        layers = self.layers_ms(self.dense_profile)  # first, for the table's reference
        turns = self._timed(parts)
        dense = turns.timing("dense", "dense").median_ms
        rest = max(self.table.in_table(turns, "dense") - layers, 0.0)
        per_element = rest / max(self.dense_profile.elements, 1)
        self.curve.add(layers + per_element * self.dense_profile.elements, dense)
        return parts["dense"], dense, per_element

    def __call__(self, model: nn.Module) -> float:
        """Return the milliseconds that a network is predicted to take."""
        return self.corrected(self.raw(model))

    def raw(self, model: nn.Module) -> float:
        """Return the sum of a network's parts, before it is scaled to what was measured."""
        found, per_element = self.profile(model), self._base[2]
        return self.layers_ms(found) + per_element * found.elements

    def corrected(self, raw: float) -> float:
        """Return the milliseconds that are predicted from the sum of a network's parts."""
        return self.curve(raw)

    def measure(self, model: nn.Module) -> float:
        """Measure a whole network, in turns with the dense one; return its milliseconds.

        That is its share of the dense network's time, of :attr:`dense_ms`: a slow moment of the
        machine changes the share little.
        """
        dense, dense_ms, _ = self._base
        small = converted({"": working_copy(model).eval()}, self.inputs, self.dtype)[0][""]
        turns = self._timed({"dense": dense, "small": self._prepare(small, self.inputs)})
        return turns.timing("small", "dense").ratio * dense_ms

    def calibrate_(self, model: nn.Module) -> Check:
        """Measure a whole network, and scale further predictions to it."""
        raw = self.raw(model)
        check = Check(self.corrected(raw), self.measure(model))
        self.curve.add(raw, check.measured)
        return check

    def profile(self, model: nn.Module) -> Profile:
        """Return the layers of a network, called with the meter's inputs."""
        models, inputs = converted({"": model}, self.inputs, self.dtype)
        return profile(models[""], inputs)

    def layers_ms(self, found: Profile, *, smooth: bool = False) -> float:
        """Return the sum of the times of layers, in the unit of the table.

        Args:
            found: the layers.
            smooth: as if no width were odd: see :meth:`LayerTimes.times`.
        """
        times = self.table.times(found.layers, smooth=smooth)
        return math.fsum(count * times[shape] for shape, count in found.layers.items())

    def _prepare(self, model: nn.Module, inputs: Inputs) -> Call:
        with num_threads(self.table.threads):
            return prepare(self.engine, model, inputs)

    def _timed(self, calls: dict[str, Call]) -> Turns[Any]:
        with num_threads(self.table.threads), torch.inference_mode():
            return self.time_networks(calls)


def preferred_multiple(
    model: nn.Module, example_input: ExampleInput, engine: str = "eager", **settings: Any
) -> int:
    """Return the multiple of channels that an engine likes in a network.

    Engines compute several channels at a time, and some have slower code for other numbers. The
    twelve shapes of layers that take longest in the network are timed at widths that are multiples
    of 1, 2, 4, 8, 16 and 32 and no larger ones, and compared with the time that the powers of two
    around each lead one to expect. What is returned is the smallest multiple with at most 2 % more
    than the best: there, the time per multiply-add is as small as it gets, and a larger multiple
    would win nothing.

    Args:
        model: the dense network.
        example_input: its inputs, as :class:`LatencyMeter` takes them.
        engine: one of ``measure.ENGINES``.
        settings: further arguments of :class:`LatencyMeter`: dtype, threads, cache.

    Raises:
        ValueError: if the engine or type is unknown, or the engine's packages are not installed.

    Example:
        >>> from ssl_lightning.costs import MULTIPLES
        >>> net = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 10))
        >>> preferred_multiple(net, torch.zeros(1, 64), threads=1, cache=False) in MULTIPLES
        True
    """
    meter = LatencyMeter(model, example_input, engine, **settings)
    return meter.multiple
