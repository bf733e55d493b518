"""What a budget measures in training: how much outputs or loss change without groups."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.hooks import RemovableHandle

from ssl_lightning.callbacks.methods import Window
from ssl_lightning.groups import GroupSet
from ssl_lightning.progress import SILENT
from ssl_lightning.prune import Rises, measure_rises
from ssl_lightning.prune.scores import Scores, fits
from ssl_lightning.prune.taylor import Expansion

NUM_INPUTS, MAX_BATCHES = 256, 8
"""Training inputs on which outputs are compared, and the most batches that are waited for."""

MOST_WORK, STEP = 0.25, 3
"""Most forward passes, as a share of those that the run's steps are worth; a step is worth 3. In a
short run, fewer batches are taken, at least one."""

SHARES = (0.125, 0.25, 0.5, 0.75, 0.875)
"""Of the groups of a set that are removed; between them, the change is interpolated."""

LARGEST = 1e6
"""Change of outputs that are not finite any more."""

ADVICE = "Give importance='l2', which needs no data."
PLAIN = (Tensor, str, int, float, bool, type(None))


@dataclass(frozen=True)
class Call:
    """Arguments of one call of a network."""

    arguments: tuple[Any, ...]
    named: dict[str, Any]

    def copied(self) -> Call:
        """Return the same call with tensors of its own, in which the network may write."""
        own = pytree.tree_map_only(Tensor, lambda x: x.detach().clone(), self.named)
        copies = pytree.tree_map_only(Tensor, lambda x: x.detach().clone(), self.arguments)
        return Call(copies, own)

    def of(self, network: nn.Module) -> list[Tensor]:
        """Return the network's outputs that are floating-point numbers."""
        own = self.copied()
        leaves = pytree.tree_leaves(network(*own.arguments, **own.named))
        return [x for x in leaves if isinstance(x, Tensor) and x.is_floating_point()]

    def num_inputs(self) -> int:
        """Return the batch size: the largest first dimension of a tensor."""
        leaves = pytree.tree_leaves((self.arguments, self.named))
        return max([len(x) for x in leaves if isinstance(x, Tensor) and x.dim()], default=1)


class TrainingCalls:
    """Notes how training steps call a network, once in each step, until there are enough inputs.

    Attributes:
        calls: that were noted.
    """

    def __init__(self, calls: Sequence[Call] = ()) -> None:
        self.calls = list(calls)
        self._hook: RemovableHandle | None = None

    def enough(self, most: int) -> bool:
        """Whether there are enough inputs, or so many batches."""
        count = sum(call.num_inputs() for call in self.calls)
        return len(self.calls) >= most or count >= NUM_INPUTS

    def begin_step(self, network: nn.Module) -> None:
        """Note the first call of the network that follows."""
        self.end_step()

        def note(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            self.end_step()
            self.calls.append(Call(arguments, named).copied())

        plain: Any = torch.compiler.disable(note)
        self._hook = network.register_forward_pre_hook(plain, prepend=True, with_kwargs=True)

    def end_step(self) -> None:
        """Note no more."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def state(self) -> list[tuple[Any, dict[str, Any]]]:
        """Return what checkpoints hold: nothing if calls have arguments that are not plain."""
        leaves = pytree.tree_leaves([(call.arguments, call.named) for call in self.calls])
        plain = all(isinstance(leaf, PLAIN) for leaf in leaves)
        return [(call.arguments, call.named) for call in self.calls] if plain else []


class Measurement:
    """Importance that is measured in training: what to measure with, and what was found.

    Subclasses say what is noted of training steps, and what becomes of it.
    """

    def __init__(self) -> None:
        self.found: Rises | Scores | None = None

    def begin_step(self, network: nn.Module) -> None:
        """Note what follows in this training step; called before each while something is due."""

    def end_step(self) -> None:
        """Note no more."""

    def note_gradients(self, window: Window) -> None:
        """Note the gradients of a step, before the optimizer's."""

    def enough(self, trainer: pl.Trainer, window: Window) -> bool:
        """Whether enough was noted, in the first process."""
        raise NotImplementedError

    def measure_(self, trainer: pl.Trainer, window: Window) -> None:
        """Let the window rank groups by what is measured now, the same in all processes."""
        raise NotImplementedError

    def of(self, group_sets: Sequence[GroupSet]) -> Rises | Scores | None:
        """Return what was found of these sets; None for those of a network compacted since."""
        return self.found if self.found is not None and fits(self.found, group_sets) else None

    def state_dict(self) -> dict[str, Any]:
        """Return plain values that :meth:`load_state_dict` reads."""
        raise NotImplementedError

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        raise NotImplementedError


class OutputChanges(Measurement):
    """How much the network's outputs on training inputs change."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = TrainingCalls()

    def begin_step(self, network: nn.Module) -> None:
        """Note how the step calls the network."""
        self.calls.begin_step(network)

    def end_step(self) -> None:
        """Note no more."""
        self.calls.end_step()

    def enough(self, trainer: pl.Trainer, window: Window) -> bool:
        """Whether there are enough calls, in the first process."""
        return window.agreed(self.calls.enough(most_batches(trainer, window.group_sets)))

    def measure_(self, trainer: pl.Trainer, window: Window) -> None:
        """Let the window rank groups by what is measured now, the same in all processes."""
        start = time.perf_counter()
        network, sets = window.sparsity.network, window.group_sets
        with window.seeded():
            forward = trainer.precision_plugin.forward_context
            found = changes_of_outputs(forward, network, sets, self.calls.calls)
        self.found = window.importance = window.agreed(found)
        self.calls = TrainingCalls()
        rank_zero_info(
            f"Budget: measured the {found.conditions} without groups of {len(sets)} sets, in "
            f"{time.perf_counter() - start:.3g} s."
        )

    def state_dict(self) -> dict[str, Any]:
        """Return what was found, and the calls."""
        found = None if self.found is None else self.found.to_dict()
        return {"found": found, "calls": self.calls.state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        found = state["found"]
        self.found = None if found is None else Rises.from_dict(found)
        self.calls = TrainingCalls([Call(*call) for call in state["calls"]])


class LossChanges(Measurement):
    """How much the loss changes, by its first-order expansion in the training steps' gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.expansion: Expansion | None = None
        self._kept: dict[str, Any] | None = None  # of a checkpoint

    def note_gradients(self, window: Window) -> None:
        """Add the gradients of a step."""
        self.begun(window).add(window.tensors())

    def begun(self, window: Window) -> Expansion:
        """Return the sums for the window's groups, anew where the network was compacted since."""
        sizes = {s.name: s.num_groups for s in window.group_sets}
        if self.expansion is None or self.expansion.sizes() != sizes:
            self.expansion = Expansion(window.group_sets)
            if self._kept is not None:
                self.expansion.load_state_dict(self._kept)
            self._kept = None
        return self.expansion

    def enough(self, trainer: pl.Trainer, window: Window) -> bool:
        """Whether there were enough optimizer steps."""
        return self.begun(window).steps >= MAX_BATCHES

    def measure_(self, trainer: pl.Trainer, window: Window) -> None:
        """Let the window rank groups by the changes of the loss.

        Raises:
            MisconfigurationException: if there was no optimizer step with gradients of the groups.
        """
        expansion = self.begun(window)
        if not window.agreed(any(bool(found.any()) for found in expansion.sums.values())):
            raise MisconfigurationException(
                "Budget: expected optimizer steps with gradients, by which groups are ranked, got "
                f"none in an epoch. {ADVICE}"
            )
        title = type(window.sparsity.network).__name__
        self.found = window.importance = window.agreed(expansion.scores(title))
        self.expansion = None
        rank_zero_info(f"Budget: measured the {self.found.conditions}.")

    def state_dict(self) -> dict[str, Any]:
        """Return what was found, and the sums so far."""
        sums = self._kept if self.expansion is None else self.expansion.state_dict()
        return {"found": None if self.found is None else self.found.to_dict(), "sums": sums}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        found = state["found"]
        self.found = None if found is None else Scores.from_dict(found)
        self.expansion, self._kept = None, state["sums"]


MEASUREMENTS: dict[str, type[Measurement]] = {"measured": OutputChanges, "taylor": LossChanges}
"""Importance in ``Budget(importance=...)`` that is measured in training -> how."""


def measurement_for(importance: Any) -> Measurement:
    """Return what measures an importance; one that is not measured needs none, and gets any."""
    known = isinstance(importance, str) and importance in MEASUREMENTS
    return MEASUREMENTS[importance]() if known else OutputChanges()


def changes_of_outputs(
    context: Callable[[], AbstractContextManager[Any]],
    network: nn.Module,
    group_sets: Sequence[GroupSet],
    calls: Sequence[Call],
) -> Rises:
    """Measure how much the outputs change when groups of a set are removed.

    The change is the sum of squared differences over the sum of squares, averaged over calls and
    outputs: it needs no labels, and is the same measure for all tasks. Nothing is trained, and the
    network remains as it is.

    Args:
        context: in which forward passes run, for their precision.
        network: in training.
        group_sets: the groups.
        calls: with which inputs.

    Raises:
        MisconfigurationException: if there are no calls, or the network returns nothing that could
            be compared.
    """
    if not calls:
        raise MisconfigurationException(
            "Budget: expected training steps that call the network, whose groups are ranked by "
            f"what their removal changes in its outputs, got none in an epoch. {ADVICE}"
        )
    expected: list[list[Tensor]] = []  # outputs of the whole network, which is evaluated first

    @torch.no_grad()
    def changed(network: nn.Module) -> float:
        start = time.perf_counter()
        with context():
            outputs = [call.of(network) for call in calls]
        if not expected:
            check_comparable(outputs)
            expected.extend(outputs)
            announce(time.perf_counter() - start, group_sets)
        return sum(map(change, outputs, expected)) / len(calls)

    number = len(calls)
    batches = "1 training batch" if number == 1 else f"{number} training batches"
    conditions = f"relative squared change of the outputs on {batches}"
    return measure_rises(network, group_sets, changed, shares=SHARES, conditions=conditions)


def announce(seconds: float, group_sets: Sequence[GroupSet]) -> None:
    """Say how long a measurement takes, from the time of one evaluation, if it is worth saying."""
    expected = seconds * sum(min(len(SHARES), s.num_groups) for s in group_sets)
    if expected > SILENT:
        rank_zero_info(
            f"Budget: measuring what the outputs lose without groups of {len(group_sets)} sets, "
            f"about {expected:.2g} s."
        )


def check_comparable(outputs: Sequence[Sequence[Tensor]]) -> None:
    """Refuse outputs whose change says nothing.

    Raises:
        MisconfigurationException: if there are none, or they are not finite.
    """
    if not all(found and all(bool(x.isfinite().all()) for x in found) for found in outputs):
        raise MisconfigurationException(
            "Budget: expected finite floating-point outputs of the network, by whose change its "
            f"groups are ranked, got {'others' if all(outputs) else 'none'}. {ADVICE}"
        )


def change(outputs: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Return the sum of squared differences over the sum of squares, a mean over outputs.

    Example:
        >>> change([torch.tensor([1.0, 2.0])], [torch.tensor([0.0, 2.0])])
        0.25
        >>> change([torch.tensor([math.nan])], [torch.tensor([1.0])])
        1000000.0
    """
    found = []
    for output, own in zip(outputs, expected, strict=True):
        kind = torch.promote_types(own.dtype, torch.float32)
        of = own.to(kind).square().sum().clamp_min(torch.finfo(kind).tiny)
        found.append((output.to(kind) - own.to(kind)).square().sum() / of)
    value = float(sum(found)) / len(found)
    return min(value, LARGEST) if math.isfinite(value) else LARGEST


def most_batches(trainer: pl.Trainer, group_sets: Sequence[GroupSet]) -> int:
    """Return how many batches to measure on at most, for the length of the run."""
    times = sum(1 if s.kind == "depth" else len(SHARES) for s in group_sets)
    batches = MOST_WORK * STEP * num_batches(trainer) / max(times, 1)
    return max(int(min(batches, MAX_BATCHES)), 1)


def num_batches(trainer: pl.Trainer) -> float:
    """Return the number of batches of a run; infinite if it has no end."""
    epochs, steps = trainer.max_epochs, trainer.max_steps
    found = [math.inf]
    if epochs is not None and epochs >= 0:
        found.append(float(epochs) * trainer.num_training_batches)
    if steps >= 0:
        found.append(float(steps * trainer.accumulate_grad_batches))
    return min(found)
