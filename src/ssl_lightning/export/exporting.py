"""export_model: capture, write, run what was written, compare, and only then keep it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ssl_lightning.export.capturing import (
    Batch,
    Sizes,
    Trial,
    accepted_sizes,
    capture,
    naming,
    size_text,
    trials,
)
from ssl_lightning.export.formats import FORMATS, Format, Runner, tensors_of
from ssl_lightning.files import replacing_together
from ssl_lightning.graph import ExampleInput, Inputs, as_inputs
from ssl_lightning.measure.macs import evaluating
from ssl_lightning.suggest import pick

TOLERANCE = 1e-4
"""Of the output's scale: engines sum float32 in another order, which is 1e-6 to 1e-5 here."""
CHECKED_BATCHES = (1, 2, 5)
"""Batch sizes that a file with a dynamic batch dimension is run with."""

Size = Literal["dynamic", "fixed"]


@dataclass(frozen=True)
class ExportResult:
    """A file that was written, and how far its outputs are from torch's.

    Attributes:
        path: the file; OpenVINO's has a ``.bin`` beside it.
        format: one of :data:`~ssl_lightning.export.FORMATS`.
        engine: what ran the file.
        batch_sizes: at which it was run.
        sizes: heights and widths (or lengths) at which it was run, beside the example's.
        why_fixed: why it takes the example's height and width only; empty if it takes others.
        refused: sizes that the network takes, and the file refuses with an error of the engine.
        difference: largest difference of outputs, relative to the largest output.
        tolerance: the largest difference that is accepted.

    Example:
        >>> result = ExportResult(Path("a.onnx"), "onnx", "onnxruntime", (1, 8), 2e-7, 1e-4)
        >>> result.difference < result.tolerance
        True
    """

    path: Path
    format: str
    engine: str
    batch_sizes: tuple[int, ...]
    difference: float
    tolerance: float
    sizes: tuple[tuple[int, ...], ...] = ()
    why_fixed: str = ""
    refused: tuple[str, ...] = ()


def export_model(
    model: nn.Module,
    example_input: ExampleInput,
    path: str | Path,
    format: str = "onnx",  # noqa: A002 - the field's name for it
    *,
    batch: Batch = "dynamic",
    size: Size = "dynamic",
    tolerance: float = TOLERANCE,
) -> ExportResult:
    """Write a network for another runtime, if that runtime computes what torch does.

    The network is captured in eval mode by ``torch.export``, written, opened by the engine of the
    format and run on random inputs. The files appear under their names only if all outputs agree.

    Args:
        model: the network, on the CPU; compact or with zeros, it is written as it is.
        example_input: its inputs, batch first; the values of tensors do not matter. A tensor, a
            tuple of all positional inputs, or ``Inputs(x, mask=None)``; what is no tensor becomes
            part of the network.
        path: file to write, ending in ``.onnx``, ``.pt2`` or ``.xml``; missing folders are made.
        format: ``"onnx"``, ``"torch_export"`` or ``"openvino"``.
        batch: ``"dynamic"``, or the one batch size that the file takes.
        size: ``"dynamic"``: the file takes other heights and widths (lengths of sequences) too if
            the network does, and was run there; else ``why_fixed`` of the result says why not.
            ``"fixed"``: only the example's. Networks that compute their padding from the size of
            the image (timm's ``tf_...``) take minutes to be captured with dynamic sizes.
        tolerance: largest difference to accept, relative to the largest output.

    Raises:
        ValueError: for an unknown format, a path with the suffix of another, a batch size below
            1, packages that are missing, a network that cannot be captured or written, and outputs
            that differ. Nothing is left on disk then.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     file = Path(folder, "small.pt2")
        ...     result = export_model(nn.Linear(3, 2), torch.zeros(1, 3), file, "torch_export")
        ...     print(result.batch_sizes, result.difference <= result.tolerance, file.is_file())
        (1, 2, 5) True True
    """
    chosen = pick("export format", format, FORMATS)
    inputs = as_inputs(example_input)
    check_arguments(inputs, batch, size, tolerance)
    check_suffix(Path(path), format, chosen)
    chosen.require_packages(format)
    with evaluating(model), torch.no_grad():
        sizes = Sizes(why_fixed="as asked")
        if size == "dynamic":
            sizes = accepted_sizes(model, inputs)
        if sizes.axes is not None:
            try:
                return written(model, inputs, path, format, batch, sizes, tolerance)
            except ValueError as error:
                sizes = Sizes(why_fixed=str(error).removeprefix("export_model: "))
        return written(model, inputs, path, format, batch, sizes, tolerance)


def written(
    model: nn.Module,
    inputs: Inputs,
    path: str | Path,
    name: str,
    batch: Batch,
    sizes: Sizes,
    tolerance: float,
) -> ExportResult:
    """Capture, write, run and compare.

    Raises:
        ValueError: as :func:`export_model`.
    """
    chosen, kind = FORMATS[name], type(model).__name__
    with replacing_together(path) as temporary:
        captured = capture(model, inputs, batch, sizes.axes, flat=chosen.flat)
        with naming(f"{name} cannot hold this {kind}"):
            chosen.write(captured, temporary)
            run = chosen.load(temporary)
        cases = trials(inputs, batch, CHECKED_BATCHES, sizes)
        found, refused = largest_difference(model, run, cases)
        if not found <= tolerance:
            raise ValueError(refusal(chosen, kind, found, tolerance, path))
    batches = CHECKED_BATCHES if batch == "dynamic" else (batch,)
    return ExportResult(
        Path(path),
        name,
        chosen.engine,
        batches,
        found,
        tolerance,
        tuple(each for each in sizes.further if size_text(each) not in refused),
        sizes.why_fixed,
        tuple(refused),
    )


def check_arguments(inputs: Inputs, batch: Batch, size: Size, tolerance: float) -> None:
    """Reject inputs, a batch size, a size or a tolerance that make no sense."""
    if not inputs.tensors():
        raise ValueError(f"export_model: expected an input that is a tensor, got {inputs}.")
    if size not in ("dynamic", "fixed"):
        raise ValueError(f"export_model: expected size 'dynamic' or 'fixed', got {size!r}.")
    if batch != "dynamic" and (type(batch) is not int or batch < 1):
        raise ValueError(
            f"export_model: expected batch 'dynamic' or a number of at least 1, got {batch!r}."
        )
    if not tolerance >= 0:
        raise ValueError(
            f"export_model: expected a tolerance >= 0, got {tolerance}. It is relative to the "
            f"largest output; {TOLERANCE:g} is the default."
        )


def check_suffix(path: Path, name: str, chosen: Format) -> None:
    """Reject a path that the engine would not take for a file of this format."""
    if path.suffix != chosen.suffix:
        raise ValueError(
            f"export_model: expected a path ending in {chosen.suffix} for {name}, got "
            f"{path.name!r}. Rename it."
        )


def largest_difference(
    model: nn.Module, run: Runner, cases: Iterable[Trial]
) -> tuple[float, list[str]]:
    """Return how far an engine's outputs are from torch's on random inputs, and what it refuses.

    Returns:
        Largest difference relative to the largest output of the same tensor; infinity if shapes
        or numbers of outputs differ, or a value is NaN. The trials that the file did not run.

    Raises:
        ValueError: if the file does not run one that it must.
    """
    generator = torch.Generator().manual_seed(0)
    worst, refused = 0.0, []
    for case in cases:
        inputs = case.inputs.map(lambda x: random_like(x, generator))
        expected = tensors_of(inputs.run(model))
        try:
            with naming(f"the written file does not run at {case.what}"):
                found = run(inputs)
        except ValueError:
            if case.required:
                raise
            refused.append(case.what)
            continue
        if [t.shape for t in found] != [t.shape for t in expected]:
            return float("inf"), refused
        worst = max([worst, *map(relative_difference, found, expected)])
    return worst, refused


def random_like(x: Tensor, generator: torch.Generator) -> Tensor:
    """Return normal numbers of a tensor's shape and type; integers stay what they are."""
    if not x.is_floating_point():
        return x
    return torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.dtype)


def relative_difference(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference, relative to the largest expected value.

    Example:
        >>> relative_difference(torch.tensor([1.0, 5.0]), torch.tensor([2.0, 5.0]))
        0.2
        >>> relative_difference(torch.tensor([float("nan")]), torch.ones(1))
        inf
    """
    if not found.numel():
        return 0.0
    wrong = float((found.double() - expected.double()).abs().max())
    scale = max(float(expected.abs().max()), 1e-30)
    return float("inf") if math.isnan(wrong) else wrong / scale


def refusal(chosen: Format, network: str, found: float, tolerance: float, path: Any) -> str:
    """Return the message for outputs that differ."""
    return (
        f"export_model: {chosen.engine} computes something else than torch with this {network}: "
        f"outputs differ by {found:.1e} of their scale, more than the tolerance {tolerance:g}. "
        f"{path} was not written. Try another format, or a larger tolerance if that is precise "
        "enough for you."
    )
