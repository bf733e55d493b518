"""export_model: capture, write, run what was written, compare, and only then keep it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, ShapesCollection

from ssl_lightning.export.formats import FORMATS, Format, Runner, tensors_of
from ssl_lightning.files import replacing_together
from ssl_lightning.measure.macs import evaluating
from ssl_lightning.suggest import pick

TOLERANCE = 1e-4
"""Of the output's scale: engines sum float32 in another order, which is 1e-6 to 1e-5 here."""
CHECKED_BATCHES = (1, 2, 5)
"""Batch sizes that a file with a dynamic batch dimension is run with."""

Batch = int | Literal["dynamic"]


@dataclass(frozen=True)
class ExportResult:
    """A file that was written, and how far its outputs are from torch's.

    Attributes:
        path: the file; OpenVINO's has a ``.bin`` beside it.
        format: one of :data:`~ssl_lightning.export.FORMATS`.
        engine: what ran the file.
        batch_sizes: at which it was run.
        difference: largest difference of outputs, relative to the largest output.
        tolerance: the largest difference that is accepted.
    """

    path: Path
    format: str
    engine: str
    batch_sizes: tuple[int, ...]
    difference: float
    tolerance: float


def export_model(
    model: nn.Module,
    example_input: Tensor | tuple[Tensor, ...],
    path: str | Path,
    format: str = "onnx",  # noqa: A002 - the field's name for it
    *,
    batch: Batch = "dynamic",
    tolerance: float = TOLERANCE,
) -> ExportResult:
    """Write a network for another runtime, if that runtime computes what torch does.

    The network is captured in eval mode by ``torch.export``, written, opened by the engine of the
    format and run on random inputs. The files appear under their names only if all outputs agree.

    Args:
        model: the network, on the CPU; compact or with zeros, it is written as it is.
        example_input: its inputs, batch first; the values do not matter.
        path: file to write, ending in ``.onnx``, ``.pt2`` or ``.xml``; missing folders are made.
        format: ``"onnx"``, ``"torch_export"`` or ``"openvino"``.
        batch: ``"dynamic"``, or the one batch size that the file takes.
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
    check_arguments(batch, tolerance)
    check_suffix(Path(path), format, chosen)
    chosen.require_packages(format)
    example = (example_input,) if isinstance(example_input, Tensor) else tuple(example_input)
    sizes = CHECKED_BATCHES if batch == "dynamic" else (batch,)
    with evaluating(model), torch.no_grad(), replacing_together(path) as temporary:
        program = capture(model, example, batch)
        with naming(f"{format} cannot hold this {type(model).__name__}"):
            chosen.write(program, temporary, batch == "dynamic")
            run = chosen.load(temporary)
        found = largest_difference(model, run, example, sizes)
        if not found <= tolerance:
            raise ValueError(refusal(chosen, type(model).__name__, found, tolerance, path))
    return ExportResult(Path(path), format, chosen.engine, tuple(sizes), found, tolerance)


def check_arguments(batch: Batch, tolerance: float) -> None:
    """Reject a batch size or a tolerance that makes no sense."""
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


def capture(model: nn.Module, example: Sequence[Tensor], batch: Batch) -> ExportedProgram:
    """Return the network as ``torch.export`` sees it, with a fixed or a dynamic batch dimension.

    Raises:
        ValueError: if it cannot be captured, or not with a dynamic batch dimension.
    """
    dynamic = batch == "dynamic"
    inputs = tuple(with_batch(x, 2 if batch == "dynamic" else batch) for x in example)
    shapes = ShapesCollection() if dynamic else None
    if shapes is not None:
        size = Dim("batch")
        for x in inputs:
            shapes[x] = {0: size}
    advice = " with a dynamic batch dimension; give one batch size (`batch`)" if dynamic else ""
    with naming(f"{type(model).__name__} cannot be captured{advice}"):
        return torch.export.export(model, inputs, dynamic_shapes=shapes)


@contextmanager
def naming(what: str) -> Iterator[None]:
    """Turn whatever goes wrong inside torch or an engine into a ValueError that says where."""
    try:
        yield
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"export_model: {what}: {reason[:500]}.") from error


def with_batch(x: Tensor, batch: int) -> Tensor:
    """Return a tensor with that many rows, which are those of ``x`` over and over.

    Example:
        >>> with_batch(torch.tensor([[1], [2]]), 3).flatten().tolist()
        [1, 2, 1]
    """
    rows = torch.arange(batch, device=x.device) % len(x)
    return x.detach().index_select(0, rows)


def largest_difference(
    model: nn.Module, run: Runner, example: Sequence[Tensor], batch_sizes: Sequence[int]
) -> float:
    """Return how far an engine's outputs are from torch's on random inputs.

    Returns:
        Largest difference relative to the largest output of the same tensor; infinity if shapes
        or numbers of outputs differ, or a value is NaN.
    """
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    for size in batch_sizes:
        inputs = [random_like(with_batch(x, size), generator) for x in example]
        expected = tensors_of(model(*(x.clone() for x in inputs)))
        with naming(f"the written file does not run at batch size {size}"):
            found = run(inputs)
        if [t.shape for t in found] != [t.shape for t in expected]:
            return float("inf")
        worst = max([worst, *map(relative_difference, found, expected)])
    return worst


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
