"""A plain training loop that makes one step at a time, and knows how long penalties take."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from ssl_lightning.graph import ExampleInput
from ssl_lightning.penalties import Penalty, Regularizer

Around = Callable[[], AbstractContextManager[None]]
"""Makes a block around what is measured."""


class Stopwatch:
    """Measures what happens inside blocks; on a GPU by events on its stream, which do not wait.

    Args:
        device: that computes.

    Example:
        >>> stopwatch = Stopwatch(torch.device("cpu"))
        >>> for _ in range(3):
        ...     stopwatch.start_lap()
        ...     with stopwatch():
        ...         _ = torch.zeros(1)
        >>> len(stopwatch.laps()), min(stopwatch.laps()) > 0
        (3, True)
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._laps: list[list[tuple[Any, Any]]] = []

    def start_lap(self) -> None:
        """Let the blocks from now on be of another lap."""
        self._laps.append([])

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Measure a block."""
        start = self._now()
        yield
        self._laps[-1].append((start, self._now()))

    def _now(self) -> Any:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def laps(self) -> list[float]:
        """Return the milliseconds inside the blocks of each lap; a GPU must have finished them."""
        return [sum(milliseconds(*span) for span in spans) for spans in self._laps]


def milliseconds(start: Any, end: Any) -> float:
    """Return what lies between two seconds, or two events of a GPU."""
    return float(1e3 * (end - start) if isinstance(start, float) else start.elapsed_time(end))


class WatchedRegularizer(Regularizer):
    """A regularizer with a block around all that it does to gradients and weights.

    Args:
        model: as for :class:`~ssl_lightning.Regularizer`.
        penalties: as there.
        example_input: as there.
        around: makes the block.
    """

    def __init__(
        self,
        model: nn.Module,
        penalties: Sequence[Penalty | Mapping[str, Any]],
        example_input: ExampleInput,
        around: Around,
    ) -> None:
        super().__init__(model, penalties, example_input)
        self.around = around

    def add_subgradient_(self, epoch: float = 0.0, optimizer: Optimizer | None = None) -> None:
        """Add the subgradients, inside a block."""
        with self.around():
            super().add_subgradient_(epoch, optimizer)

    def proximal_step_(self, optimizer: Optimizer, epoch: float = 0.0) -> None:
        """Apply the proximal maps, inside a block."""
        with self.around():
            super().proximal_step_(optimizer, epoch)


class TrainingLoop:
    """Trains by a hand-written loop, one step each time it is called, always on the same batch.

    A step is what a loop does from one batch to the next: the images to channels-last, forward
    pass, loss, zeroing of gradients, backward pass, optimizer, and the penalties in between.

    Args:
        model: is trained.
        batch: images or other inputs ``(N, ...)`` and classes ``(N,)``, or one per position of the
            output, on the model's device.
        autocast: type that autocast computes in; None: without it.
        penalties: attached to the optimizer by a :class:`~ssl_lightning.Regularizer`.
        regularize: called once the gradients are there, as other libraries want it.

    Attributes:
        around: makes the block around all that penalties do; at first it takes the time.
        stopwatch: has the time of each step's penalties.
        optimizer: SGD at a small rate, as :func:`small_steps` makes it.

    Example:
        >>> from ssl_lightning.backbones import create_backbone
        >>> net = create_backbone("lenet")
        >>> before = net.conv1.weight.detach().clone()
        >>> batch = torch.randn(2, 1, 28, 28), torch.tensor([3, 5])
        >>> loop = TrainingLoop(net, batch, penalties=[{"kind": "filter", "strength": 1e-3}])
        >>> loop()
        >>> torch.equal(net.conv1.weight, before), len(loop.stopwatch.laps())
        (False, 1)
    """

    def __init__(
        self,
        model: nn.Module,
        batch: tuple[Tensor, Tensor],
        *,
        autocast: torch.dtype | None = None,
        penalties: Sequence[Penalty | Mapping[str, Any]] = (),
        regularize: Callable[[], object] | None = None,
    ) -> None:
        self.inputs, self.targets = batch
        self.autocast, self.regularize = autocast, regularize
        self.device = self.inputs.device
        image = self.inputs.dim() == 4
        self.memory_format = torch.channels_last if image else torch.preserve_format
        self.model = model.to(memory_format=torch.channels_last).train() if image else model.train()
        self.optimizer = small_steps(model.parameters())
        self.stopwatch = Stopwatch(self.device)
        self.around: Around = self.stopwatch
        if penalties:
            regularizer = WatchedRegularizer(
                model, penalties, self.inputs[:1], lambda: self.around()
            )
            regularizer.attach(self.optimizer)

    def __call__(self) -> None:
        """Make one step."""
        self.stopwatch.start_lap()
        x = self.inputs.to(memory_format=self.memory_format)
        with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
            loss = F.cross_entropy(self.model(x), self.targets)
        self.optimizer.zero_grad()
        loss.backward()
        if self.regularize is not None:
            with self.around():
                self.regularize()
        self.optimizer.step()


def small_steps(parameters: Iterable[nn.Parameter]) -> SGD:
    """Return SGD with momentum and weight decay, at a rate at which weights hardly move."""
    return SGD(parameters, lr=1e-3, momentum=0.9, weight_decay=1e-4)
