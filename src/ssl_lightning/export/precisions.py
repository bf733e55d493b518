"""compare_precisions: error, size and latency of networks in float32, bfloat16 and int8."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn

from ssl_lightning.export.int8 import Evaluate, int8_engines
from ssl_lightning.export.int8_files import BFLOAT16, FLOAT32, INT8, Files, write_files
from ssl_lightning.graph import ExampleInput, Inputs, as_inputs, check_network
from ssl_lightning.measure.engine import Call, Engine
from ssl_lightning.measure.engines import engine_versions
from ssl_lightning.measure.int8 import EXTRA, PACKAGES
from ssl_lightning.measure.machine import instructions, machine, package_versions
from ssl_lightning.measure.macs import evaluating
from ssl_lightning.measure.precision_record import PrecisionRecord, PrecisionRow
from ssl_lightning.measure.record import Timing
from ssl_lightning.measure.turns import interleave, several
from ssl_lightning.progress import steps, track
from ssl_lightning.suggest import first_line, pick, require

Key = tuple[str, str]  # network, precision


def compare_precisions(
    networks: Mapping[str, nn.Module],
    example_input: ExampleInput,
    calibration: Sequence[ExampleInput],
    evaluate: Evaluate,
    *,
    engines: str | Sequence[str] = ("openvino", "onnxruntime"),
    batch_size: int = 1,
    repeats: int = 30,
    min_run_time: float = 0.01,
    title: str = "Precisions",
    measure: str = "error",
) -> PrecisionRecord:
    """Measure networks in float32, in int8 and, where the processor has it, in bfloat16.

    Each network is written in each engine's format, as :func:`export_int8` does, for the batch that
    is timed and the example's size; all of an engine are timed in turns, and the errors of the
    files are measured.

    Args:
        networks: name -> network, on the CPU; ratios refer to the first in float32.
        example_input: of all networks, floating point; its values do not matter.
        calibration: as :func:`export_int8` takes it.
        evaluate: as :func:`export_int8` takes it.
        engines: one or several that have int8.
        batch_size: examples in a timed call.
        repeats: rounds; each gives one sample for each network and precision.
        min_run_time: seconds that one sample lasts at least.
        title: of the table.
        measure: what ``evaluate`` returns, in words.

    Returns:
        One row per network, engine and precision: error, bytes of the file, milliseconds.

    Raises:
        ValueError: as :func:`export_int8`, and for no network or a number below 1.

    Example:
        >>> wide, narrow = nn.Linear(8, 2), nn.Linear(8, 2, bias=False)
        >>> x = torch.randn(32, 8)
        >>> record = compare_precisions(
        ...     {"wide": wide, "narrow": narrow}, x[:1], [x], lambda net: 0.0,
        ...     engines="openvino", repeats=2, min_run_time=1e-4,
        ... )
        >>> record.row("wide", "openvino", "float32").timing.ratio
        1.0
    """
    if not networks:
        raise ValueError("compare_precisions: expected at least one network, got none. Give one.")
    for network in networks.values():
        check_network(network)
    for name, value in {"batch_size": batch_size, "repeats": repeats}.items():
        if value < 1:
            raise ValueError(
                f"compare_precisions: expected {name} >= 1, got {value}. Give 1 or more."
            )
    chosen = [pick("engine with int8", name, int8_engines()) for name in several(engines)]
    require("int8", PACKAGES, EXTRA)
    for engine in chosen:
        engine.require()
    calibration = list(calibration)
    inputs = as_inputs(example_input)
    rows: list[PrecisionRow] = []
    left_out: dict[str, str] = {}
    examples = 0
    for engine in track(chosen, "precisions"):
        with TemporaryDirectory() as folder, torch.no_grad(), steps(engine.name, 3) as part:
            given = inputs.at_batch(batch_size)
            files, refused = all_written(networks, given, engine, calibration, Path(folder))
            left_out |= refused
            part.advance()
            found = timed(files, given, repeats, min_run_time)
            part.advance()
            for (name, precision), timing in track(found.items()):
                error = float(evaluate(files[name].network(precision)))
                size = files[name].num_bytes(precision)
                rows.append(PrecisionRow(name, engine.name, precision, error, size, timing))
            examples = max([examples, *(each.examples for each in files.values())])
    if not rows:
        raise ValueError(f"compare_precisions: {'; '.join(left_out.values())}")
    tensor = inputs.tensors()[0]
    return PrecisionRecord(
        title=title,
        measure=measure,
        input_shape=tuple(tensor.shape[1:]),
        batch_size=batch_size,
        threads=torch.get_num_threads(),
        examples=examples,
        machine=machine(tensor.device),
        instructions=instructions(),
        versions=engine_versions(chosen) | package_versions(PACKAGES),
        rows=tuple(rows),
        left_out=left_out,
    )


def all_written(
    networks: Mapping[str, nn.Module],
    inputs: Inputs,
    engine: Engine,
    calibration: Sequence[ExampleInput],
    folder: Path,
) -> tuple[dict[str, Files], dict[str, str]]:
    """Return the files of all networks, and why one has none; all have none without the first."""
    files, refused = {}, {}
    for number, (name, model) in enumerate(track(networks.items())):
        place = folder / str(number)
        place.mkdir()
        try:
            files[name] = written(model, inputs, engine, calibration, place)
        except ValueError as error:
            refused[f"{name}, {engine.name}"] = first_line(error, 240)
    first = next(iter(networks))
    if first not in files:
        refused |= {f"{name}, {engine.name}": f"{first} cannot be run there" for name in files}
        files = {}
    return files, refused


def written(
    model: nn.Module,
    inputs: Inputs,
    engine: Engine,
    calibration: Sequence[ExampleInput],
    folder: Path,
) -> Files:
    """Write a network's files into a folder."""
    to = folder / f"{INT8}{engine.suffix}"
    with evaluating(model):
        return write_files(
            model,
            inputs,
            to,
            engine,
            calibration=calibration,
            folder=folder,
            batch=inputs.batch,
            size="fixed",
        )


def timed(
    files: Mapping[str, Files], inputs: Inputs, repeats: int, min_run_time: float
) -> dict[Key, Timing]:
    """Time networks in all precisions that their engine and processor have, in turns."""
    half = any(name.endswith("bf16") for name in instructions())
    calls: dict[Key, Call] = {}
    for name, each in files.items():
        precisions = [FLOAT32, *([BFLOAT16] if half and each.engine.half else []), INT8]
        for precision in precisions:
            calls[name, precision] = each.open(precision)(inputs)
    if not calls:
        return {}
    return interleave(calls, repeats=repeats, warmup=3, min_run_time=min_run_time)
