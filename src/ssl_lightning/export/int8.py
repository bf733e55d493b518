"""export_int8: a file in eight bits that is kept only if it does its task as well."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn

from ssl_lightning.export.exporting import TOLERANCE, Size, check_suffix
from ssl_lightning.export.int8_files import FLOAT32, INT8, write_files
from ssl_lightning.files import replacing_together
from ssl_lightning.graph import ExampleInput, check_network
from ssl_lightning.measure.capturing import Batch
from ssl_lightning.measure.engine import Engine
from ssl_lightning.measure.engines import file_formats
from ssl_lightning.measure.int8 import EXTRA, PACKAGES
from ssl_lightning.measure.macs import evaluating
from ssl_lightning.progress import steps
from ssl_lightning.suggest import pick, require

MAX_RISE = 1.0
"""Largest rise of the measure that is accepted: one point, if it is an error in percent."""
Evaluate = Callable[[nn.Module], float]


@dataclass(frozen=True)
class Int8Result:
    """A file in int8 that was written, and what it costs and loses.

    Attributes:
        path: the file; OpenVINO's has a ``.bin`` beside it.
        format: one of :func:`int8_formats`.
        engine: what ran the file.
        examples: on which the ranges of activations were seen.
        before: what ``evaluate`` returned for the network in torch.
        after: the same for the file.
        size: bytes of the file, weights included.
        float_size: bytes of the same network's file in float32.

    Example:
        >>> result = Int8Result(Path("a.onnx"), "onnx", "onnxruntime", 300, 8.1, 8.2, 26, 100)
        >>> round(result.after - result.before, 2)
        0.1
    """

    path: Path
    format: str
    engine: str
    examples: int
    before: float
    after: float
    size: int
    float_size: int


def export_int8(
    model: nn.Module,
    example_input: ExampleInput,
    path: str | Path,
    format: str = "openvino",  # noqa: A002 - the field's name for it
    *,
    calibration: Iterable[ExampleInput],
    evaluate: Evaluate,
    max_rise: float = MAX_RISE,
    batch: Batch = "dynamic",
    size: Size = "dynamic",
    tolerance: float = TOLERANCE,
) -> Int8Result:
    """Write a network in int8 for another runtime, if it does its task nearly as well there.

    The file in float32 is written and checked as :func:`export_model` does. NNCF makes int8 of it,
    weights with a scale per channel and activations with the ranges that they have on calibration
    inputs (Jacob et al., Quantization and Training of Neural Networks, 2018). Nothing is trained.

    Args:
        model: the network, on the CPU; usually compact: zeros gain nothing here.
        example_input: as :func:`export_model` takes it, floating point.
        path: file to write, ending in ``.onnx`` or ``.xml``; missing folders are made.
        format: one of :func:`int8_formats`: ``"openvino"``, ``"onnx"``, or that of an engine of
            your own that has ``quantize``.
        calibration: inputs that the network will meet, as ``example_input``, in batches of any
            size; a few hundred examples. Take them from the training set.
        evaluate: returns what the task is measured by, lower is better, such as the error in
            percent on held-out images. It is called with the network, and with a module that runs
            the file. Do not give it the test split.
        max_rise: largest rise of that measure to accept, in its unit.
        batch: ``"dynamic"``, or the one batch size that the file takes.
        size: as for :func:`export_model`.
        tolerance: of the file in float32, as for :func:`export_model`.

    Returns:
        The file, its size, and the measure in float32 and in int8.

    Raises:
        ValueError: as :func:`export_model`; for a format without int8, no calibration inputs, or
            packages that are missing; if the measure rises by more. Nothing is written then.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> x = torch.randn(64, 8)
        >>> target = net(x).argmax(1)
        >>> def evaluate(net):
        ...     return 100 * float((net(x).argmax(1) != target).float().mean())
        >>> with TemporaryDirectory() as folder:
        ...     file = Path(folder, "small.xml")
        ...     result = export_int8(
        ...         net, x[:1], file, calibration=[x], evaluate=evaluate, max_rise=10
        ...     )
        ...     print(result.examples, result.before, file.is_file())
        64 0.0 True
    """
    check_network(model)
    engine = pick("format with int8", format, int8_formats())
    if not max_rise >= 0:
        raise ValueError(
            f"export_int8: expected max_rise >= 0, got {max_rise}. It is in the unit of what "
            f"`evaluate` returns; {MAX_RISE:g} is the default."
        )
    target, title = Path(path), engine.title or engine.name
    check_suffix(target, format, engine)
    if target.is_dir():
        raise ValueError(f"export_int8: expected a file to write, got the folder {target}.")
    require("int8", PACKAGES, EXTRA)
    with (
        evaluating(model),
        TemporaryDirectory() as folder,
        replacing_together(target) as temporary,
        torch.no_grad(),
        steps("int8", 3) as part,
    ):
        files = write_files(
            model,
            example_input,
            temporary,
            engine,
            calibration=calibration,
            folder=Path(folder),
            batch=batch,
            size=size,
            tolerance=tolerance,
        )
        part.advance()
        before = float(evaluate(model))
        part.advance()
        after = float(evaluate(files.network(INT8)))
        if not after - before <= max_rise:
            raise ValueError(refusal(target, title, (before, after), max_rise, files.examples))
        sizes = files.num_bytes(INT8), files.num_bytes(FLOAT32)
    return Int8Result(target, format, title, files.examples, before, after, *sizes)


def refusal(
    target: Path, title: str, found: tuple[float, float], max_rise: float, examples: int
) -> str:
    """Return the message for a file that does its task too badly."""
    before, after = found
    return (
        f"export_int8: expected a rise of at most {max_rise:g} by int8, got {after - before:.2f}: "
        f"from {before:.2f} in torch to {after:.2f} in {title}. {target} was not written. "
        f"Calibrate on more than {examples} examples, take another format or float32, or accept "
        "more (`max_rise`)."
    )


def int8_formats() -> dict[str, Engine]:
    """Return format of files -> engine, of those that can be in int8.

    Example:
        >>> list(int8_formats())
        ['onnx', 'openvino']
    """
    return {name: engine for name, engine in file_formats().items() if engine.quantize}


def int8_engines() -> dict[str, Engine]:
    """Return name -> engine, of those that can run int8.

    Example:
        >>> list(int8_engines())
        ['onnxruntime', 'openvino']
    """
    return {engine.name: engine for engine in int8_formats().values()}
