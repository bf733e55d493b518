"""The trainer's own training step, as a function that can be timed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from threading import Thread
from typing import Any, Self

import lightning.pytorch as pl
import torch

MANY = 1_000_000  # steps of the epoch that is never finished


class Enough(Exception):  # noqa: N818 - it is no error
    """Ends a trainer that waits for its next batch."""


class TrainingSteps:
    """A run of the trainer that makes one training step each time it is called.

    The trainer runs in a thread of its own, and waits there from one call to the next.

    Args:
        module: to be trained, on the CPU.
        batch: of every step.
        precision: of the trainer, such as ``"bf16-mixed"``.
        threads: intra-op threads.

    Attributes:
        seconds: spent so far in the module's ``optimizer_step``: forward pass, zeroing of
            gradients, backward pass, optimizer and penalties, but not the trainer's own work
            between batches.
        whole_seconds: spent so far from one batch to the next, with that work.

    Example:
        >>> from ssl_lightning.measure.engine import quiet
        >>> from ssl_lightning.module import SSLLightningModule
        >>> module, x = SSLLightningModule("mlp"), torch.randn(2, 1, 28, 28)
        >>> before = module.backbone.fc1.weight.detach().clone()
        >>> with quiet(), TrainingSteps(module, (x, torch.zeros(2).long())) as step:
        ...     step()
        >>> torch.equal(module.backbone.fc1.weight, before), step.seconds > 0
        (False, True)
    """

    def __init__(
        self, module: pl.LightningModule, batch: Any, precision: Any = "32-true", threads: int = 1
    ) -> None:
        self.module, self.batch, self.precision = module, batch, precision
        self.threads, self.seconds, self.whole_seconds = threads, 0.0, 0.0
        self._orders: SimpleQueue[bool] = SimpleQueue()
        self._results: SimpleQueue[Exception | None] = SimpleQueue()
        self._thread = Thread(target=self._train, daemon=True)
        module.optimizer_step = self._timed(module.optimizer_step)  # type: ignore[method-assign]

    def _timed(self, step: Callable[..., None]) -> Callable[..., None]:
        def timed(*arguments: Any, **named: Any) -> None:
            start = time.perf_counter()
            step(*arguments, **named)
            self.seconds += time.perf_counter() - start

        return timed

    def __len__(self) -> int:
        return MANY

    def __iter__(self) -> Iterator[Any]:
        """Yield the batch once per call; it was trained on when the next one is asked for."""
        while self._orders.get():
            start = time.perf_counter()
            yield self.batch
            self.whole_seconds += time.perf_counter() - start
            self._results.put(None)
        raise Enough

    def _train(self) -> None:
        torch.set_num_threads(self.threads)  # each thread has its own number
        try:
            trainer = pl.Trainer(
                max_epochs=1,
                accelerator="cpu",
                devices=1,
                precision=self.precision,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            )
            trainer.fit(self.module, self)
        except Enough:
            pass
        except Exception as error:  # whatever a module's code raises
            self._results.put(error)

    def __call__(self) -> None:
        """Make one step.

        Raises:
            Exception: what the trainer raised.
        """
        self._orders.put(True)
        error = self._results.get()
        if error is not None:
            raise error

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._orders.put(False)
        self._thread.join()
