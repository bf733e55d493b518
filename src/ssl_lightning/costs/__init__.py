"""What a network costs (multiply-adds, parameters, bytes, layers, time), and targets for it."""

from ssl_lightning.costs.resources import RESOURCES, Meter, Resource
from ssl_lightning.costs.targets import Costs, Target, parse_targets

__all__ = ["RESOURCES", "Costs", "Meter", "Resource", "Target", "parse_targets"]
