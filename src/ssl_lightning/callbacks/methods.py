"""How a network is led to a budget: what happens between the start and the end of the window."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ssl_lightning.costs import Costs
from ssl_lightning.graph import working_copy
from ssl_lightning.groups import GroupSet, Selector, nonzero_groups, zero_groups_
from ssl_lightning.groups.kinds import NOT_REMOVED
from ssl_lightning.groups.resolve import make_sets, named_tensors
from ssl_lightning.groups.surroundings import Surroundings
from ssl_lightning.measure.left import CompactForm
from ssl_lightning.module import Sparsity
from ssl_lightning.prune import Choice, Rises, choose_groups
from ssl_lightning.prune.machines import choose_in_multiples
from ssl_lightning.prune.scores import Ranking, scores_of

Value = TypeVar("Value")


@dataclass
class Window:
    """What a method works on between the start and the end of a budget's window.

    Attributes:
        sparsity: of the module that trains.
        group_sets: the groups that may go.
        costs: what the budget allows.
        form: gives the compact form of the network.
        importance: what groups are ranked by.
        multiple: of which multiple groups are retained.
        fixed: whether it is the user's; another is halved where the budget cannot be reached.
        retained: layer -> why outputs of it are in no group.
    """

    sparsity: Sparsity
    group_sets: list[GroupSet]
    costs: Costs
    form: CompactForm
    importance: Ranking
    multiple: int
    fixed: bool
    retained: Mapping[str, str] = field(default_factory=dict)
    network: nn.Module = field(init=False)

    def __post_init__(self) -> None:
        self.network = self.sparsity.network
        self._copy = working_copy(self.network)  # one, so that it is captured once

    def tensors(self) -> dict[str, Tensor]:
        """Return the network's parameters and buffers by name."""
        return named_tensors(self.sparsity.network)

    @torch.no_grad()
    def choose(self, costs: Costs | None = None) -> Choice:
        """Choose the groups to zero now, for the budget or other limits."""
        tensors = self.tensors()
        with self.seeded():
            scores = scores_of(self.group_sets, tensors, self.importance)

        def choose(multiple: int) -> Choice:
            self._copy.load_state_dict(self.network.state_dict())
            return choose_groups(
                self._copy,
                self.form,
                self.group_sets,
                scores,
                costs or self.costs,
                multiple=multiple,
                retained=self.retained,
                in_place=True,
                per_cost=isinstance(self.importance, Rises),
            )

        found = choose_in_multiples(choose, self.multiple, fixed=self.fixed)
        choice, self.multiple = self.agreed(found)
        return choice

    def agreed(self, value: Value) -> Value:
        """Return the first process's value to all: measured times and random numbers may differ."""
        common: Value = self.sparsity.module.trainer.strategy.broadcast(value)
        return common

    @contextmanager
    def seeded(self) -> Iterator[None]:
        """Let random numbers depend on the run's seed and the step only, and on no others."""
        place = self.sparsity.run_seed or 0, self.sparsity.module.trainer.global_step
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(hash(place) & 0x7FFF_FFFF)
            yield

    @torch.no_grad()
    def zero_(self, masks: Sequence[Tensor]) -> None:
        """Zero groups of the network."""
        tensors = self.tensors()
        for group_set, mask in zip(self.group_sets, masks, strict=True):
            zero_groups_(group_set, mask, tensors)

    def gone(self) -> list[Tensor]:
        """Return which groups are zero, one mask per set."""
        tensors = self.tensors()
        return [~nonzero_groups(s, tensors).cpu() for s in self.group_sets]


class Method:
    """What happens in the window; at its end, the least important groups go whatever happened.

    Subclasses override what they need. The state is plain values and is stored in checkpoints.

    Attributes:
        chooses: whether it chooses groups in the window.
    """

    chooses = False

    def __init__(self) -> None:
        self.state: dict[str, Any] = {}

    def begin(self, window: Window) -> None:
        """Start; called before the first step of the window."""

    def update(self, window: Window, progress: float) -> dict[str, float]:
        """Decide anew, every so many steps; return what to log.

        Args:
            window: what to work on.
            progress: of the window, from 0 to 1.
        """
        return {}

    def after_step(self, window: Window, progress: float) -> None:
        """Act after a batch."""

    def finish(self, window: Window) -> None:
        """End; the groups are chosen next."""


class OneShot(Method):
    """Nothing happens before the end of the window."""


class Gradual(Method):
    """The budget falls along a cubic; groups are chosen anew at each update, and may come back.

    Reference:
        Zhu & Gupta, To prune, or not to prune, 2017, equation 1.
    """

    chooses = True

    def update(self, window: Window, progress: float) -> dict[str, float]:
        """Choose for the budget of now."""
        costs = limits_at(window.costs, 1.0 - (1.0 - progress) ** 3)
        masks = window.choose(costs).masks if costs is not None else None
        self.state["masks"] = None if masks is None else [m.tolist() for m in masks]
        return {}

    def after_step(self, window: Window, progress: float) -> None:
        """Hold the chosen groups at zero: their weights are kept apart from the gradient."""
        masks = self.state.get("masks")
        if masks is not None:
            window.zero_([torch.tensor(m, dtype=torch.bool) for m in masks])


class Fading(Method):
    """Groups are chosen at the start, and their norms decay ever faster until the end.

    Reference:
        Wang et al., Neural Pruning via Growing Regularization, 2021, algorithm 1.
    """

    chooses = True

    last = math.log(1e3)

    def begin(self, window: Window) -> None:
        """Choose."""
        self.state["masks"] = [m.tolist() for m in window.choose().masks]
        self.state["decayed"] = 0.0

    @torch.no_grad()
    def after_step(self, window: Window, progress: float) -> None:
        """Shrink the chosen groups."""
        decayed = self.last * progress**2
        factor = math.exp(self.state["decayed"] - decayed)
        self.state["decayed"] = decayed
        tensors = window.tensors()
        for group_set, mask in zip(window.group_sets, self.state["masks"], strict=True):
            if any(mask):
                factors = torch.where(torch.tensor(mask), factor, 1.0)
                for member in group_set.members:
                    tensor = tensors[member.parameter]
                    member.scale_(tensor, factors.to(tensor))

    def finish(self, window: Window) -> None:
        """Let the chosen ones be those that go."""
        window.zero_([torch.tensor(m, dtype=torch.bool) for m in self.state["masks"]])


def groups_of(sparsity: Sparsity, around: Surroundings) -> list[GroupSet]:
    """Return the groups that may go: those of the penalties, or else all coupled ones.

    Penalties on scales of batch norms say nothing of groups: the channels behind them may go.
    """
    found = [s for s in sparsity.regularizer.group_sets if s.kind not in NOT_REMOVED]
    if found or not around.has_kind("coupled"):
        return found
    return make_sets(around, Selector("coupled"))


def limits_at(costs: Costs, done: float) -> Costs | None:
    """Return the limits on the way from the dense cost to the budget; None at its beginning."""
    if done <= 0:
        return None
    found = copy.copy(costs)
    found.limits = {
        name: costs.dense[name] + done * (limit - costs.dense[name])
        for name, limit in costs.limits.items()
    }
    return found


METHODS: dict[str, Callable[[], Method]] = {
    "one_shot": OneShot,
    "gradual": Gradual,
    "fading": Fading,
}
"""Name in ``Budget(method=...)`` -> method."""
