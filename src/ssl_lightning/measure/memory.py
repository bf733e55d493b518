"""The most memory that tensors take while something runs."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile


class PeakMemory:
    """Measures the most bytes of tensors that are held at once inside blocks.

    Only what is allocated inside a block counts, so tensors from before should not be released
    there. On CUDA it is :func:`torch.cuda.max_memory_allocated` minus what was allocated before; on
    the CPU the same figure from torch's profiler, which notes every allocation and release of
    torch's allocator, temporary tensors inside operators included. It is exact to the byte and the
    same in each run. It does not see what libraries allocate for themselves (oneDNN's workspace)
    and Python's own objects. A block under the profiler takes longer: do not time it.

    Args:
        device: whose memory.

    Attributes:
        bytes: of the block that took most; 0 before the first.

    Example:
        >>> peak = PeakMemory(torch.device("cpu"))
        >>> with peak():
        ...     for _ in range(3):
        ...         x = torch.zeros(1000)  # the next is made before the last is released
        >>> peak.bytes
        8000
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.bytes = 0

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Measure a block."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            before = torch.cuda.memory_allocated(self.device)
            yield
            found = torch.cuda.max_memory_allocated(self.device) - before
        else:
            os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or it writes lines to the terminal
            activities = [ProfilerActivity.CPU]
            with no_garbage(), profile(activities=activities, profile_memory=True) as profiler:
                yield
            found = most_held(profiler)
        self.bytes = max(self.bytes, found)


@contextmanager
def no_garbage() -> Iterator[None]:
    """Collect garbage first and none in the block, where tensors from before would be released."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def most_held(profiler: profile) -> int:
    """Return the most bytes that were held at once, by the profiler's allocations and releases."""
    assert profiler.profiler is not None
    results = profiler.profiler.kineto_results
    assert results is not None
    events: list[Any] = [event for event in results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(accumulate((int(event.nbytes()) for event in events), initial=0))
