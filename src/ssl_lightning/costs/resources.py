"""What may be budgeted: one row per resource."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

from torch import nn

from ssl_lightning.graph import WEIGHTED, Inputs
from ssl_lightning.measure import count_macs, count_sparse_macs, num_bytes, num_parameters

Meter: TypeAlias = Callable[[nn.Module], float]
"""From a compact network to what it costs."""


@dataclass(frozen=True)
class Check:
    """What a network was predicted to cost, and what it costs.

    Example:
        >>> Check(predicted=3.0, measured=4.0).error
        -0.25
    """

    predicted: float
    measured: float

    @property
    def error(self) -> float:
        """Difference of the prediction, as a share of what was measured."""
        return self.predicted / self.measured - 1


@runtime_checkable
class CalibratedMeter(Protocol):
    """A meter that predicts, and learns from networks that it measures.

    A prediction is ``corrected(raw(network))``; only the second step changes.
    """

    def __call__(self, model: nn.Module) -> float:
        """Return what a network is predicted to cost."""

    def raw(self, model: nn.Module) -> float:
        """Return a number that falls and rises with the cost."""

    def corrected(self, raw: float) -> float:
        """Return the predicted cost, by what was measured so far."""

    def calibrate_(self, model: nn.Module) -> Check:
        """Measure a network, and predict by that from now on."""


@dataclass(frozen=True)
class Resource:
    """Something that a network costs.

    Attributes:
        unit: of an absolute number, in words.
        meter: from the network's inputs to its meter; None for latency, whose meter is made for an
            engine.
        absolute: name under which an absolute number is given; empty if that is the resource's
            own, where a number above 1 is absolute.
        fewest: an absolute number below it is taken for a mistake, such as a percentage.
    """

    unit: str
    meter: Callable[[Inputs], Meter] | None
    absolute: str = ""
    fewest: int = 0


def num_layers(model: nn.Module) -> int:
    """Return the number of convolutions and linear layers, of which collapsed ones are none.

    Example:
        >>> num_layers(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Identity()))
        1
    """
    return sum(isinstance(module, WEIGHTED) for module in model.modules())


RESOURCES: dict[str, Resource] = {
    "macs": Resource("multiply-adds", lambda x: lambda m: count_macs(m, x), fewest=101),
    "sparse_macs": Resource(
        "multiply-adds without zero rows and columns of convolutions",
        lambda x: lambda m: count_sparse_macs(m, x),
        fewest=101,
    ),
    "parameters": Resource("parameters", lambda x: num_parameters, fewest=101),
    "size": Resource("bytes of weights and buffers", lambda x: num_bytes, fewest=101),
    "depth": Resource("convolutions and linear layers", lambda x: num_layers),
    "latency": Resource("milliseconds", None, absolute="latency_ms"),
}
"""Name in a budget -> resource."""
