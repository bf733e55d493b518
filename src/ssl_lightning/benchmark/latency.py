"""Latency of several models measured side by side, interleaved in one run."""

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.benchmark import Timer
from torch.utils.benchmark.utils.timer import timer as default_clock

from ssl_lightning.benchmark.layers import Call, layer_calls, layer_macs
from ssl_lightning.benchmark.machine import machine, memory_format
from ssl_lightning.benchmark.macs import count_macs, evaluating, num_bytes, num_parameters
from ssl_lightning.benchmark.record import BenchmarkResult, ModelSize, Run, Timing


def benchmark(
    models: Mapping[str, nn.Module],
    example_input: Tensor,
    *,
    repeats: int = 30,
    threads: Sequence[int] | int | None = None,
    warmup: int = 3,
    per_layer: bool = True,
    min_run_time: float = 0.002,
) -> BenchmarkResult:
    """Measure the latency of models side by side, whole and layer by layer.

    The models take turns (A B C, C B A, A B C, ...), so that a slow moment of the machine hits all
    of them alike and none is favoured by what ran before it; the ratio is the median of the ratios
    within a round. Evaluation mode and inference mode; modes and the number of threads are put
    back afterwards.

    A layer is a convolution or linear layer of any of the models; in the others it is the module
    of that name, whatever its type. It is timed alone, on the input that reaches it in its own
    model. A model in which the layer is gone (or an identity) has no timing for it.

    Args:
        models: name -> model; ratios refer to the first one, such as
            ``{"dense": a, "masked": b, "compact": c}``.
        example_input: batch ``(N, ...)`` in the type, memory format and device to measure.
        repeats: rounds; each gives one sample per model.
        threads: intra-op threads, or several numbers of them; None keeps torch's present number.
        warmup: untimed rounds before.
        per_layer: also time each convolution and linear layer.
        min_run_time: seconds that one sample lasts at least, by repeating the call.

    Returns:
        Timings, multiply-adds of the batch, parameters, bytes, and where it was measured.

    Raises:
        ValueError: if there is no model, an argument is out of range or the outputs of the
            models differ in shape.

    Example:
        >>> models = {"wide": nn.Linear(64, 10), "narrow": nn.Linear(64, 10, bias=False)}
        >>> result = benchmark(models, torch.zeros(8, 64), repeats=3, threads=1, min_run_time=1e-4)
        >>> result.models["wide"].macs, result.run(threads=1).network["wide"].ratio
        (5120, 1.0)
    """
    counts = _thread_counts(threads)
    _check(models, example_input, repeats, warmup, min_run_time, counts)
    time = partial(interleave, repeats=repeats, warmup=warmup, min_run_time=min_run_time)
    with ExitStack() as stack:
        for model in models.values():
            stack.enter_context(evaluating(model))
        own = {n: count_macs(m, example_input, per_layer=True) for n, m in models.items()}
        stack.enter_context(torch.inference_mode())
        _check_outputs(models, example_input)
        network = {name: partial(model, example_input) for name, model in models.items()}
        layers = layer_calls(models, example_input) if per_layer else {}
        runs = tuple(_run(network, layers, count, time) for count in counts)
    return BenchmarkResult(
        machine=machine(example_input.device),
        batch_size=example_input.shape[0],
        input_shape=tuple(example_input.shape[1:]),
        dtype=str(example_input.dtype).removeprefix("torch."),
        memory_format=memory_format(example_input),
        models={name: _size(model, own[name]) for name, model in models.items()},
        layer_macs={name: layer_macs(models, own, name) for name in layers},
        runs=runs,
    )


def interleave(
    calls: Mapping[str, Call],
    *,
    repeats: int,
    warmup: int,
    min_run_time: float,
    clock: Callable[[], float] = default_clock,
) -> dict[str, Timing]:
    """Time the calls in turns (A B, B A, A B, ...), at torch's present number of threads.

    Each sample is taken by :meth:`torch.utils.benchmark.Timer.timeit`, which runs the call at
    least twice before it starts its clock, and never reports less than a nanosecond.

    Args:
        calls: name -> function without arguments; ratios refer to the first.
        repeats: rounds.
        warmup: untimed rounds before.
        min_run_time: seconds that one sample lasts at least.
        clock: seconds; torch's own waits for the GPU.

    Returns:
        One timing per call, in the same order.
    """
    threads = torch.get_num_threads()
    timers = {
        name: Timer("call()", globals={"call": call}, num_threads=threads, timer=clock)
        for name, call in calls.items()
    }
    for _ in range(warmup):
        for timer in timers.values():
            timer.timeit(1)
    loops = {name: _loops(timer.timeit(1).mean, min_run_time) for name, timer in timers.items()}
    samples: dict[str, list[float]] = {name: [] for name in timers}
    for i in range(repeats):
        for name in reversed(timers) if i % 2 else timers:
            samples[name].append(1e3 * timers[name].timeit(loops[name]).mean)
    first = next(iter(samples.values()))
    return {name: _timing(values, first, loops[name]) for name, values in samples.items()}


def _loops(seconds: float, min_run_time: float) -> int:
    """Return how many calls of that duration last ``min_run_time`` (at most a million)."""
    return min(max(math.ceil(min_run_time / seconds), 1), 1_000_000)


def _timing(samples: list[float], first: list[float], loops: int) -> Timing:
    ratios = [mine / base for mine, base in zip(samples, first, strict=True)]
    return Timing(
        median_ms=statistics.median(samples),
        iqr_ms=interquartile_range(samples),
        ratio=statistics.median(ratios),
        ratio_iqr=interquartile_range(ratios),
        num_samples=len(samples),
        calls_per_sample=loops,
    )


def interquartile_range(values: Sequence[float]) -> float:
    """Return the distance between the quartiles, 0 for a single value.

    Example:
        >>> interquartile_range([1.0, 2.0, 3.0, 4.0, 5.0])
        2.0
    """
    if len(values) < 2:
        return 0.0
    quartiles = statistics.quantiles(values, n=4, method="inclusive")
    return quartiles[2] - quartiles[0]


def _run(
    network: Mapping[str, Call],
    layers: Mapping[str, Mapping[str, Call]],
    threads: int,
    time: Callable[[Mapping[str, Call]], dict[str, Timing]],
) -> Run:
    with num_threads(threads):
        whole = time(network)
        return Run(threads, whole, {name: time(calls) for name, calls in layers.items()})


@contextmanager
def num_threads(threads: int) -> Iterator[None]:
    """Set torch's intra-op threads and put the former number back afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _size(model: nn.Module, own: Mapping[str, int]) -> ModelSize:
    return ModelSize(sum(own.values()), num_parameters(model), num_bytes(model))


def _thread_counts(threads: Sequence[int] | int | None) -> list[int]:
    if threads is None:
        return [torch.get_num_threads()]
    return [threads] if isinstance(threads, int) else list(threads)


def _check(
    models: Mapping[str, nn.Module],
    example_input: Tensor,
    repeats: int,
    warmup: int,
    min_run_time: float,
    threads: Sequence[int],
) -> None:
    if not models:
        raise ValueError(
            "benchmark: expected at least one model, got none. "
            'Give a dict such as {"dense": model, "compact": smaller}.'
        )
    if example_input.dim() < 2:
        raise ValueError(
            f"benchmark: expected `example_input` with a batch dimension, got the shape "
            f"{tuple(example_input.shape)}. Add one with `x.unsqueeze(0)`."
        )
    if not threads:
        raise ValueError("benchmark: expected a number of `threads`, got none. Give 1 or None.")
    lowest = {"repeats": (repeats, 1), "warmup": (warmup, 0), "threads": (min(threads), 1)}
    for argument, (value, minimum) in lowest.items():
        if value < minimum:
            raise ValueError(
                f"benchmark: expected `{argument}` >= {minimum}, got {value}. "
                f"Use {argument}={minimum} or more."
            )
    if min_run_time < 0:
        raise ValueError(
            f"benchmark: expected `min_run_time` >= 0 seconds, got {min_run_time}. Use 0.002."
        )


def _check_outputs(models: Mapping[str, nn.Module], example_input: Tensor) -> None:
    """Run each model once; raise if they do not give outputs of one shape."""
    shapes = {name: _shape(model(example_input)) for name, model in models.items()}
    if len(set(map(str, shapes.values()))) > 1:
        raise ValueError(
            f"benchmark: expected all models to give outputs of one shape, got {shapes}. "
            "Compare networks that solve the same task."
        )


def _shape(output: Any) -> Any:
    if isinstance(output, Tensor):
        return tuple(output.shape)
    if isinstance(output, (list, tuple)):
        return [_shape(part) for part in output]
    return type(output).__name__
