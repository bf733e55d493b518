"""Targets for what a network costs, and by how much a network misses them."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from torch import nn

from ssl_lightning.costs.resources import RESOURCES, CalibratedMeter, Check, Meter
from ssl_lightning.graph import ExampleInput, as_inputs, cannot_run
from ssl_lightning.suggest import first_line


@dataclass(frozen=True)
class Target:
    """What a network may cost of one resource at most.

    Attributes:
        resource: a name of :data:`RESOURCES`.
        value: share of the dense network's cost, or the absolute number.
        is_share: which of both it is.

    Example:
        >>> Target("macs", 0.5, True).limit(1000)
        500.0
    """

    resource: str
    value: float
    is_share: bool

    def limit(self, dense: float) -> float:
        """Return the most that a network may cost whose dense form costs so much."""
        return self.value * dense if self.is_share else self.value

    def __str__(self) -> str:
        key = self.resource if self.is_share else RESOURCES[self.resource].absolute or self.resource
        return f"{key}={self.value:g}"


def parse_targets(where: str, given: Mapping[str, float | None]) -> list[Target]:
    """Return the targets that are given, as shares or absolute numbers.

    Args:
        where: beginning of messages.
        given: name of a resource -> share of the dense network's cost if at most 1, else an
            absolute number; ``latency_ms`` -> milliseconds. None is no target.

    Raises:
        ValueError: for an unknown name, a number that is not positive, or a resource named twice.

    Example:
        >>> [str(t) for t in parse_targets("Budget", {"macs": 0.5, "depth": 14, "size": None})]
        ['macs=0.5', 'depth=14']
    """
    targets: dict[str, Target] = {}
    absolute = {r.absolute: name for name, r in RESOURCES.items() if r.absolute}
    for name, value in given.items():
        if value is None:
            continue
        resource = absolute.get(name, name)
        if resource not in RESOURCES:
            known = ", ".join([*RESOURCES, *absolute])
            raise ValueError(f"{where}: expected some of {known}, got {name!r}. Give one of them.")
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not 0 < value < math.inf:
            raise ValueError(
                f"{where}: expected {name} as a positive number, got {value!r}. Give a share of "
                f"the dense network's, such as 0.5, or a number of {RESOURCES[resource].unit}."
            )
        is_share = name not in absolute and value <= 1
        if not is_share and value < RESOURCES[resource].fewest:
            raise ValueError(
                f"{where}: expected {name} as a share of at most 1, or a number of at least "
                f"{RESOURCES[resource].fewest} {RESOURCES[resource].unit}, got {value:g}. Give "
                "0.5 for half of the dense network's, say."
            )
        if not is_share and name == resource and RESOURCES[name].absolute:
            raise ValueError(
                f"{where}: expected {name} as a share of at most 1, got {value:g}. Give "
                f"{RESOURCES[name].unit} as {RESOURCES[name].absolute}={value:g}."
            )
        if resource in targets:
            raise ValueError(
                f"{where}: expected one target for {resource}, got {targets[resource]} and "
                f"{name}={value:g}. Leave one out."
            )
        targets[resource] = Target(resource, float(value), is_share)
    return list(targets.values())


class Costs:
    """Compares what networks cost with targets.

    Args:
        targets: at least one.
        model: the dense network, of which shares are meant.
        example_input: its inputs.
        meters: of resources that need settings (latency), by name.
        dense: what the dense network costs, where it is known already.

    Raises:
        ValueError: if an absolute target is above what the dense network costs, or latency has no
            meter.

    Attributes:
        dense: resource -> cost of the dense network.
        limits: resource -> the most that a network may cost.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
        >>> costs = Costs(parse_targets("Budget", {"macs": 0.5}), net, torch.zeros(1, 4))
        >>> costs.limits, costs.excess(nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2)))
        ({'macs': 24.0}, 1.5)
    """

    def __init__(
        self,
        targets: list[Target],
        model: nn.Module,
        example_input: ExampleInput,
        meters: Mapping[str, Meter] | None = None,
        dense: Mapping[str, float] | None = None,
    ) -> None:
        inputs = as_inputs(example_input)
        self.targets = targets
        self.meters: dict[str, Meter] = dict(meters or {})
        for target in targets:
            make = RESOURCES[target.resource].meter
            if target.resource not in self.meters:
                if make is None:
                    raise ValueError(
                        f"Expected an engine for the target {target}: it is measured there. Give "
                        "`engine` (`--engine`), such as openvino."
                    )
                self.meters[target.resource] = make(inputs)
        try:
            self.dense = dict(dense) if dense is not None else self.of(model)
        except (RuntimeError, TypeError) as error:
            raise ValueError(cannot_run(model, inputs, first_line(error))) from error
        self.limits = {t.resource: t.limit(self.dense[t.resource]) for t in targets}
        for target in targets:
            if not self.dense[target.resource] > 0:
                raise ValueError(
                    f"Expected a network that costs some {RESOURCES[target.resource].unit}, of "
                    f"which {target} is a share, got {type(model).__name__}, for which none are "
                    "counted. Give another target, such as parameters."
                )
            if self.limits[target.resource] > self.dense[target.resource]:
                raise ValueError(
                    f"Expected a target below what the dense network costs, "
                    f"{self.dense[target.resource]:,.6g} {RESOURCES[target.resource].unit}, got "
                    f"{target}. Give less, or a share such as 0.5."
                )

    def of(self, model: nn.Module) -> dict[str, float]:
        """Return resource -> what a network costs."""
        return self.corrected(self.raw(model, [target.resource for target in self.targets]))

    def raw(self, model: nn.Module, resources: Collection[str]) -> dict[str, float]:
        """Return what :meth:`corrected` turns into costs: the part that takes time."""
        meters, predicted = self.meters, self.predicted(resources)
        return {
            name: predicted[name].raw(model) if name in predicted else meters[name](model)
            for name in resources
        }

    def corrected(self, raw: Mapping[str, float]) -> dict[str, float]:
        """Return resource -> cost, by what has been measured so far."""
        meters = self.predicted(raw)
        return {
            name: meters[name].corrected(value) if name in meters else value
            for name, value in raw.items()
        }

    def predicted(self, resources: Iterable[str]) -> dict[str, CalibratedMeter]:
        """Return resource -> meter, where costs are predicted and can be measured."""
        meters = {name: self.meters[name] for name in resources}
        return {name: m for name, m in meters.items() if isinstance(m, CalibratedMeter)}

    def calibrate_(self, model: nn.Module, resources: Iterable[str]) -> dict[str, Check]:
        """Measure a network where costs are predicted, and predict by that from now on."""
        return {name: m.calibrate_(model) for name, m in self.predicted(resources).items()}

    def shares(self, costs: Mapping[str, float]) -> dict[str, float]:
        """Return resource -> a cost as a share of the dense network's."""
        return {name: costs[name] / max(self.dense[name], 1e-30) for name in costs}

    def excess(self, model: nn.Module) -> float:
        """Return a network's cost in units of the limit, of the resource where that is largest."""
        return self.worst(self.of(model))

    def worst(self, costs: Mapping[str, float]) -> float:
        """Return the largest ratio of a cost to its limit: at most 1 if the budget is kept."""
        return max(cost / self.limits[name] for name, cost in costs.items())
