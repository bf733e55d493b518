"""What a network costs (multiply-adds, parameters, bytes, layers, time), and targets for it."""

from ssl_lightning.costs.latency import LatencyMeter, preferred_multiple
from ssl_lightning.costs.multiples import MULTIPLES
from ssl_lightning.costs.resources import RESOURCES, CalibratedMeter, Check, Meter, Resource
from ssl_lightning.costs.targets import Costs, Target, parse_targets

__all__ = [
    "MULTIPLES",
    "RESOURCES",
    "CalibratedMeter",
    "Check",
    "Costs",
    "LatencyMeter",
    "Meter",
    "Resource",
    "Target",
    "parse_targets",
    "preferred_multiple",
]
