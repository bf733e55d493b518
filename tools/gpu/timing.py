"""Times on a GPU: CUDA graphs over several inputs, timed by events in turns; measured ceilings."""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.benchmark.utils.timer import timer as default_clock

from ssl_lightning.measure.turns import Turns, take_turns

Compute = Callable[[Tensor], Tensor]
MODES = {
    "float32": (torch.float32, False),
    "tf32": (torch.float32, True),
    "bfloat16": (torch.bfloat16, False),
}
"""Name -> type, and whether float32 may be multiplied in tf32."""
TOLERANCE = {"float32": 1e-4, "tf32": 3e-3, "bfloat16": 2e-2}
"""Of a layer's output: norm of the difference from float64, relative to the norm of the output."""
MOST_SETS = 512
GRAPH_WARMUP = 3


@dataclass(frozen=True)
class Prepared:
    """A computation on several inputs, ready to be run again and again.

    Attributes:
        run: computes all outputs.
        outputs: of the inputs, after ``run``.
        difference: of the first and last output from float64, relative.
        held: what a graph reads, which must not be freed before it.
    """

    run: Callable[[], object]
    outputs: list[Tensor]
    difference: float
    held: tuple[Compute, Sequence[Tensor]]


def use_interpreter(device: str) -> None:
    """Let Triton's interpreter run where there is no GPU; call it before Triton is imported."""
    if device != "cuda":
        os.environ["TRITON_INTERPRET"] = "1"


def set_mode(mode: str) -> None:
    """Let cuDNN, cuBLAS and torch.compile multiply float32 in tf32, or not.

    torch has an old and a new form of these switches and refuses to read them where they
    disagree: the general one is withdrawn first and set last.
    """
    tf32 = MODES[mode][1]
    torch.backends.cudnn.fp32_precision = "none"
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.fp32_precision = "tf32" if tf32 else "none"
    torch.backends.cudnn.benchmark = True


class EventClock:
    """Seconds by CUDA events; added up from one event to the next, so they are exact."""

    def __init__(self) -> None:
        self.total, self.last = 0.0, self._event()

    def __call__(self) -> float:
        """Return the seconds so far, once the device has done all before."""
        event = self._event()
        self.total += self.last.elapsed_time(event) / 1e3
        self.last = event
        return self.total

    @staticmethod
    def _event() -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        event.synchronize()
        return event


def num_sets(bytes_of_one: int, device: torch.device) -> int:
    """Return how many inputs and outputs exceed the L2 cache twice, from 2 to ``MOST_SETS``.

    Example:
        >>> num_sets(1000, torch.device("cpu"))
        2
    """
    if device.type != "cuda":
        return 2
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    return min(max(math.ceil(2 * cache / bytes_of_one), 2), MOST_SETS)


@torch.no_grad()
def prepare(
    compute: Compute, inputs: Sequence[Tensor], exact: Compute, tolerance: float
) -> Prepared:
    """Capture a computation on all inputs in a CUDA graph, and compare it with float64.

    All outputs are held, so each input writes to memory of its own. Without a GPU nothing is
    captured.

    Args:
        compute: input to output; captured, it must not read anything on the host.
        inputs: of one shape.
        exact: the same in float64; is called with an input in float64.
        tolerance: of the relative difference.

    Raises:
        ValueError: if an output differs by more.
    """
    outputs: list[Tensor] = []
    if inputs[0].is_cuda:
        run = _capture(compute, inputs, outputs)
    else:

        def run() -> None:
            outputs[:] = [compute(x) for x in inputs]

    for output in outputs:
        output.fill_(math.nan)  # what a replay does not write shows
    run()
    last = len(inputs) - 1
    found = max(relative_difference(outputs[i], exact(inputs[i].double())) for i in {0, last})
    if not found <= tolerance:
        raise ValueError(
            f"expected outputs within {tolerance:.2g} of float64's, got a relative difference of "
            f"{found:.2g}; it is not timed"
        )
    return Prepared(run, outputs, found, (compute, inputs))


def _capture(
    compute: Compute, inputs: Sequence[Tensor], outputs: list[Tensor]
) -> Callable[[], object]:
    """Return the replay of a graph that fills ``outputs``."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(GRAPH_WARMUP):
            compute(inputs[0])
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs[:] = [compute(x) for x in inputs]
    return graph.replay


def relative_difference(actual: Tensor, expected: Tensor) -> float:
    """Return the norm of the difference over that of what is expected; infinite if shapes differ.

    Example:
        >>> relative_difference(torch.tensor([3.0, 5.0]), torch.tensor([3.0, 4.0]))
        0.2
    """
    if actual.shape != expected.shape:
        return math.inf
    difference = (actual.double() - expected.double()).norm()
    return float(difference / expected.double().norm().clamp_min(1e-30))


def time_in_turns(
    prepared: Mapping[str, Prepared], *, rounds: int, seconds: float, device: torch.device
) -> Turns[str]:
    """Time computations in turns; samples are milliseconds per input.

    Args:
        prepared: name -> computation.
        rounds: samples of each.
        seconds: that one sample lasts at least.
        device: events on CUDA, else the wall clock.
    """
    clock = EventClock() if device.type == "cuda" else default_clock
    turns = take_turns(
        {name: one.run for name, one in prepared.items()},
        repeats=rounds,
        warmup=int(seconds > 0),
        min_run_time=seconds,
        clock=clock,
    )
    samples = {
        name: [sample / len(prepared[name].outputs) for sample in found]
        for name, found in turns.samples.items()
    }
    return Turns(samples, turns.loops)


def measure_ceilings(device: torch.device, dry_run: bool) -> dict[str, Any]:
    """Measure what the device can do: copied bytes and operations per second, and a launch.

    Returns:
        ``bytes_per_s`` (read and written), ``launch_ms`` (of the smallest kernel in a graph) and
        ``operations_per_s`` by mode (2 per multiply-add of a large product).
    """
    size, width = (2**16, 128) if dry_run else (2**26, 8192)
    x = torch.ones(size, device=device)
    copied = _median_ms(torch.clone, [x], device)
    launched = _median_ms(
        lambda x: x + 1, [torch.ones(1, device=device) for _ in range(64)], device
    )
    operations = {}
    for mode, (dtype, _) in MODES.items():
        set_mode(mode)
        factor = torch.randn(width, width, device=device, dtype=dtype)
        operations[mode] = 2e3 * width**3 / _median_ms(factor.matmul, [factor], device)
    return {
        "bytes_per_s": 2e3 * x.nbytes / copied,
        "launch_ms": launched,
        "operations_per_s": operations,
    }


def _median_ms(compute: Compute, inputs: Sequence[Tensor], device: torch.device) -> float:
    ready = prepare(compute, inputs, lambda x: compute(inputs[0]).double(), 1.0)
    turns = time_in_turns({"it": ready}, rounds=10, seconds=0.005, device=device)
    return statistics.median(turns.samples["it"])


def floor_ms(ceilings: Mapping[str, Any], mode: str, operations: float, num_bytes: float) -> float:
    """Return the least time by the measured ceilings: of a launch, the bytes or the operations.

    Example:
        >>> ceilings = {"bytes_per_s": 1e12, "launch_ms": 0.001, "operations_per_s": {"tf32": 1e14}}
        >>> floor_ms(ceilings, "tf32", 1e12, 1e9)
        10.0
    """
    rate = ceilings["operations_per_s"][mode]
    moved, computed = num_bytes / ceilings["bytes_per_s"], operations / rate
    return max(ceilings["launch_ms"], 1e3 * moved, 1e3 * computed)
