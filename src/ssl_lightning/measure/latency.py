"""Latency of several models measured side by side, in several engines, interleaved in one run.

For each type, batch size and number of threads, all models in all engines take turns (A B C, then
C B A, ...), so that a slow moment of the machine hits all of them alike and none is favoured by
what ran before it; a ratio is the median of the ratios within a round. Evaluation mode and
inference mode; modes and the number of threads are put back afterwards.

Before it is timed, the output of every engine is compared with eager's. What an engine cannot run
is left out, with the reason in the record.

A layer is a convolution or linear layer of any of the models; in the others it is the module of
that name, whatever its type. It is timed alone in eager, on the input that reaches it in its own
model. A model in which the layer is missing (or an identity) has no timing for it.
"""

import copy
import statistics
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import groupby, product
from numbers import Integral
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn

from ssl_lightning.graph import ExampleInput, Inputs, as_inputs, check_network
from ssl_lightning.measure.engines import (
    engine_versions,
    find_engine,
    forget_compiled,
    installed_engines,
    prepare_checked,
)
from ssl_lightning.measure.layers import layer_calls, layer_macs
from ssl_lightning.measure.machine import machine, memory_format
from ssl_lightning.measure.macs import count_macs, evaluating, num_bytes, num_parameters
from ssl_lightning.measure.record import BenchmarkResult, Fastest, ModelSize, Run
from ssl_lightning.measure.turns import (
    Call,
    Turns,
    check_threads,
    interleave,
    num_threads,
    several,
    take_turns,
)
from ssl_lightning.progress import steps, track
from ssl_lightning.suggest import pick, said_by

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
Key = tuple[str, str]  # engine, model
Setting = tuple[str, int, int]  # type, batch size, threads


def benchmark(
    models: Mapping[str, nn.Module],
    example_input: ExampleInput,
    *,
    engines: Sequence[str] | str = "eager",
    batch_size: Sequence[int] | int | None = None,
    dtype: Sequence[str] | str | None = None,
    threads: Sequence[int] | int | None = None,
    repeats: int = 30,
    warmup: int = 3,
    per_layer: bool = True,
    min_run_time: float = 0.002,
) -> BenchmarkResult:
    """Measure the latency of models side by side in several engines, whole and layer by layer.

    Args:
        models: name -> model; ratios refer to the first, as in ``{"dense": a, "compact": b}``.
        example_input: batch ``(N, ...)`` in the type, memory format and device to measure: a
            tensor, a tuple of all positional inputs, or ``Inputs(x, mask=None)``.
        engines: one or several of ``"eager"`` (always measured, first), ``"compile"``,
            ``"onnxruntime"``, ``"openvino"`` and registered ones; ``"all"``: all installed.
        batch_size: one or several, for which the input is cut or repeated; None: as it is.
        dtype: one or several of ``"float32"``, ``"bfloat16"`` and ``"float64"``, to which copies
            of the models are converted; None: the input's.
        threads: one or several numbers of intra-op threads; None: torch's present number.
        repeats: rounds; each gives one sample per model and engine.
        warmup: untimed rounds before.
        per_layer: also time each convolution and linear layer.
        min_run_time: seconds that one sample lasts at least, by repeating the call.

    Returns:
        Medians in milliseconds, with interquartile ranges and ratios of the same rounds, for each
        type, batch size and number of threads; ``print`` shows them as tables.

    Raises:
        ValueError: if there is no model, an argument is out of range, an engine is unknown or not
            installed, or the outputs of the models differ in shape.

    Example:
        >>> models = {"wide": nn.Linear(64, 10), "narrow": nn.Linear(64, 10, bias=False)}
        >>> result = benchmark(models, torch.zeros(8, 64), repeats=3, threads=1, min_run_time=1e-4)
        >>> result.models["wide"].macs, result.run(threads=1).network["wide"].ratio
        (640, 1.0)
    """
    if not isinstance(models, Mapping):
        raise ValueError(
            f"benchmark: expected name -> network, got {type(models).__name__}. Give them names: "
            'benchmark({"dense": net, "compact": small}, x).'
        )
    for model in models.values():
        check_network(model)
    inputs = as_inputs(example_input)
    counts = several(torch.get_num_threads() if threads is None else threads)
    batches = _whole("batch_size", _batch_of(inputs) if batch_size is None else batch_size)
    kinds = [_name(kind) for kind in several(_type_of(models, inputs) if dtype is None else dtype)]
    chosen = list(dict.fromkeys(["eager", *_engines(engines)]))
    (rounds,), (untimed,) = _whole("repeats", [repeats]), _whole("warmup", [warmup], 0)
    time = {"repeats": rounds, "warmup": untimed, "min_run_time": min_run_time}
    _check(models, counts, min_run_time)
    settings = list(product(kinds, batches, map(int, counts)))
    return _measured(models, inputs, settings, chosen, per_layer, time)


def _measured(
    models: Mapping[str, nn.Module],
    inputs: Inputs,
    settings: Sequence[Setting],
    engines: Sequence[str],
    per_layer: bool,
    time: Mapping[str, Any],
) -> BenchmarkResult:
    """Count, and time at every setting."""
    image, first = inputs.at_batch(1), inputs.tensors()[0]
    with ExitStack() as stack:
        for model in models.values():
            stack.enter_context(evaluating(model))
        own = {n: count_macs(m, image, per_layer=True) for n, m in models.items()}
        stack.enter_context(torch.inference_mode())
        _check_outputs(models, image)
        runs = []
        for (kind, size), group in groupby(track(settings, "benchmark"), key=itemgetter(0, 1)):
            networks, batch = converted(models, inputs.at_batch(size), kind)
            for _, _, count in group:
                with num_threads(count):
                    runs.append(_run(networks, batch, (kind, size), engines, per_layer, time))
    layers = dict.fromkeys(layer for run in runs for layer in run.layers)
    return BenchmarkResult(
        machine=machine(first.device),
        versions=engine_versions(),
        input_shape=tuple(first.shape[1:]),
        memory_format=memory_format(first),
        models={name: _size(model, own[name]) for name, model in models.items()},
        layer_macs={name: layer_macs(models, own, name) for name in layers},
        runs=tuple(runs),
    )


def _run(
    models: Mapping[str, nn.Module],
    x: Inputs,
    setting: tuple[str, int],
    engines: Sequence[str],
    per_layer: bool,
    time: Mapping[str, Any],
) -> Run:
    """Time all models in all engines, and their layers, at torch's present number of threads."""
    with steps("", 3) as part:
        calls, left_out = _prepared(models, x, engines)
        part.advance()
        turns = take_turns(calls, **time, engine_of=itemgetter(0))
        part.advance()
        running = {name: model for name, model in models.items() if ("eager", name) in calls}
        found = layer_calls(running, x.map(Tensor.clone)) if per_layer else {}
        layers = {name: interleave(given, **time) for name, given in track(found.items(), "layers")}
    base = next(iter(calls))
    return Run(
        dtype=setting[0],
        batch_size=setting[1],
        threads=torch.get_num_threads(),
        engines={
            engine: {name: turns.timing((e, name), base) for e, name in calls if e == engine}
            for engine in dict.fromkeys(engine for engine, _ in calls)
        },
        fastest=_fastest(turns, base[1]),
        left_out=left_out,
        layers=layers,
    )


def _prepared(
    models: Mapping[str, nn.Module], x: Inputs, engines: Sequence[str]
) -> tuple[dict[Key, Call], dict[str, str]]:
    """Return what can be timed, and what cannot: ``"model, engine"`` -> why."""
    forget_compiled()
    calls: dict[Key, Call] = {}
    left_out = {}
    expected = {}
    for name, model in models.items():
        try:
            expected[name] = x.run(model)
        except Exception as error:  # whatever a model's code raises
            if not calls:  # the first model is what all others are compared with
                raise
            left_out[f"{name}, eager"] = said_by(error, 240)
            continue
        own = x.map(Tensor.clone)  # a network may write into its inputs
        calls["eager", name] = partial(model, *own.args, **own.kwargs)
    for engine, name in track(list(product(engines[1:], expected)), "preparing"):
        try:
            own = x.map(Tensor.clone)
            calls[engine, name] = prepare_checked(engine, models[name], own, expected[name])
        except Exception as error:  # exporters and compilers raise all kinds
            left_out[f"{name}, {engine}"] = said_by(error, 240)
    return calls, left_out


def _fastest(turns: Turns[Key], first: str) -> dict[str, Fastest]:
    """Return for each model its fastest engine, compared with the first model's fastest."""
    medians = {key: statistics.median(samples) for key, samples in turns.samples.items()}
    best = {
        name: min((key for key in medians if key[1] == name), key=medians.__getitem__)
        for _, name in medians
    }
    timings = {name: turns.timing(key, best[first]) for name, key in best.items()}
    return {name: Fastest(best[name][0], t.ratio, t.ratio_iqr) for name, t in timings.items()}


def converted(
    models: Mapping[str, nn.Module], x: Inputs, dtype: str
) -> tuple[Mapping[str, nn.Module], Inputs]:
    """Return models and inputs in that type: copies, unless they have it already."""
    kind = pick("type", dtype, DTYPES)
    if _type_of(models, x) == kind:
        return models, x
    with torch.inference_mode(False), torch.no_grad():
        copies = {name: copy.deepcopy(model).to(kind) for name, model in models.items()}
        return copies, x.map(lambda t: t.to(kind) if t.is_floating_point() else t)


def _type_of(models: Mapping[str, nn.Module], x: Inputs) -> torch.dtype:
    """Return the floating-point type of the inputs, or of the first model if they have none."""
    parameters = (p for model in models.values() for p in model.parameters())
    found = (t.dtype for t in (*x.tensors(), *parameters) if t.is_floating_point())
    return next(found, torch.float32)


def _batch_of(inputs: Inputs) -> int:
    """Return the batch size.

    Raises:
        ValueError: if there is none.
    """
    x = inputs.tensors()[0]
    if x.dim() < 2:
        raise ValueError(
            f"benchmark: expected `example_input` with a batch dimension, got the shape "
            f"{tuple(x.shape)}. Add one with `x.unsqueeze(0)`."
        )
    return len(x)


def _engines(engines: Sequence[str] | str) -> list[str]:
    """Return the names of the engines.

    Raises:
        ValueError: if one is unknown, or not installed.
    """
    if engines == "all":
        return installed_engines()
    names = several(engines)
    for name in names:
        find_engine(name)
    return names


def _name(dtype: torch.dtype | str) -> str:
    return str(dtype).removeprefix("torch.")


def _size(model: nn.Module, own: Mapping[str, int]) -> ModelSize:
    return ModelSize(sum(own.values()), num_parameters(model), num_bytes(model))


def _whole(argument: str, given: Any, minimum: int = 1) -> list[int]:
    """Return one number or several as a list.

    Raises:
        ValueError: for none, and for what is no whole number of at least ``minimum``.
    """
    values = several(given)
    if not values:
        raise ValueError(f"benchmark: expected a number as `{argument}`, got none. Give 1.")
    for value in values:
        if isinstance(value, bool) or not isinstance(value, Integral) or value < minimum:
            raise ValueError(
                f"benchmark: expected a whole number as `{argument}` >= {minimum}, got {value!r}. "
                f"Give {argument}={max(minimum, 1)}, say."
            )
    return list(map(int, values))


def _check(models: Mapping[str, nn.Module], threads: Sequence[int], min_run_time: float) -> None:
    if not models:
        raise ValueError(
            "benchmark: expected at least one model, got none. "
            'Give a dict such as {"dense": model, "compact": smaller}.'
        )
    if not threads:
        raise ValueError("benchmark: expected a number as `threads`, got none. Give 1.")
    for count in threads:
        check_threads(count)
    if min_run_time < 0:
        raise ValueError(
            f"benchmark: expected `min_run_time` >= 0 seconds, got {min_run_time}. Use 0.002."
        )


def _check_outputs(models: Mapping[str, nn.Module], inputs: Inputs) -> None:
    """Run each model once; raise if they do not give outputs of one shape."""
    shapes = {name: _shape(inputs.run(model)) for name, model in models.items()}
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
