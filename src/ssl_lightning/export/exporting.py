"""export_model: capture, write, run what was written, compare, and only then keep it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from ssl_lightning.compaction.equality import LOWER, difference
from ssl_lightning.export.sizes import Sizes, Trial, accepted_sizes, size_text, trials
from ssl_lightning.files import replacing_together
from ssl_lightning.graph import (
    ExampleInput,
    Inputs,
    as_inputs,
    check_network,
    run_checked,
    same_random_state,
)
from ssl_lightning.measure.capturing import Batch, capture
from ssl_lightning.measure.engine import Bind, Engine
from ssl_lightning.measure.engines import file_formats
from ssl_lightning.measure.macs import evaluating
from ssl_lightning.progress import steps
from ssl_lightning.suggest import pick

TOLERANCE = LOWER[torch.float32]
"""Of the output's scale: engines sum float32 in another order, which is 1e-6 to 1e-5 here."""
CHECKED_BATCHES = (1, 2, 5)
"""Batch sizes that a file with a dynamic batch dimension is run with."""

Size = Literal["dynamic", "fixed"]


@dataclass(frozen=True)
class ExportResult:
    """A file that was written, and how far its outputs are from torch's.

    Attributes:
        path: the file; OpenVINO's has a ``.bin`` beside it.
        format: one of :func:`~ssl_lightning.measure.engines.file_formats`.
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
        format: ``"onnx"``, ``"torch_export"``, ``"openvino"``, or that of an engine of your own
            (:func:`~ssl_lightning.register_engine`).
        batch: ``"dynamic"``, or the one batch size that the file takes.
        size: ``"fixed"``: the example's heights and widths (lengths of sequences) only;
            ``"dynamic"``: see :func:`with_sizes`.
        tolerance: largest difference to accept, relative to the largest output.

    Returns:
        The file, where it was run, and how far its outputs are from torch's.

    Raises:
        ValueError: for an unknown format, a path with the suffix of another, a batch size below
            1, packages that are missing, a network that cannot be captured or written, and outputs
            that differ. Nothing is written then.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     file = Path(folder, "small.pt2")
        ...     result = export_model(nn.Linear(3, 2), torch.zeros(1, 3), file, "torch_export")
        ...     print(result.batch_sizes, result.difference <= result.tolerance, file.is_file())
        (1, 2, 5) True True
    """
    check_network(model)
    engine, inputs = pick("export format", format, file_formats()), as_inputs(example_input)
    check_arguments(inputs, batch, size, tolerance)
    check_suffix(Path(path), format, engine)
    engine.require()
    with evaluating(model), torch.no_grad():
        check_runs(model, inputs, batch)
        return with_sizes(model, inputs, Goal(Path(path), format, engine, batch, tolerance), size)


def check_runs(model: nn.Module, inputs: Inputs, batch: Batch) -> None:
    """Run the network once, with the batch size that the file shall have.

    Raises:
        ValueError: if it cannot be run.
    """
    dynamic = batch == "dynamic"
    try:
        with same_random_state():
            run_checked(model, inputs if dynamic else inputs.at_batch(int(batch)))
    except ValueError as error:
        other = " If it takes one batch size only, give that (`batch`)." if dynamic else ""
        raise ValueError(f"export_model: {error}{other}") from error


@dataclass(frozen=True)
class Goal:
    """The file to write, and how far its outputs may be from torch's."""

    path: Path
    format: str
    engine: Engine
    batch: Batch
    tolerance: float


def with_sizes(model: nn.Module, inputs: Inputs, goal: Goal, size: Size) -> ExportResult:
    """Write a file for other heights and widths too, if the network takes them; else for one.

    The file was run at other sizes then; if the size is fixed, ``why_fixed`` of the result says
    why. Networks that compute their padding from the size of the image (timm's ``tf_...``) take
    minutes to be captured with dynamic sizes.

    Raises:
        ValueError: as :func:`export_model`.
    """
    sizes = accepted_sizes(model, inputs) if size == "dynamic" else Sizes(why_fixed="as asked")
    if sizes.axes is not None:
        try:
            return written(model, inputs, goal, sizes)
        except ValueError as error:
            sizes = Sizes(why_fixed=str(error).removeprefix("export_model: "))
    return written(model, inputs, goal, sizes)


def written(model: nn.Module, inputs: Inputs, goal: Goal, sizes: Sizes) -> ExportResult:
    """Capture, write, run and compare.

    Raises:
        ValueError: as :func:`export_model`.
    """
    engine, batch, kind = goal.engine, goal.batch, type(model).__name__
    assert engine.export is not None
    assert engine.load is not None
    advice = " with a dynamic batch dimension; give one batch size (`batch`)"
    with replacing_together(goal.path) as temporary, steps("export", 3) as part:
        with naming(f"{kind} cannot be captured{advice if batch == 'dynamic' else ''}"):
            captured = capture(model, inputs, batch, sizes.axes, flat=engine.by_position)
        part.advance()
        with naming(f"{goal.format} cannot hold this {kind}"):
            engine.export(captured, temporary)
            bind = engine.load(temporary)
        part.advance()
        cases = trials(inputs, batch, CHECKED_BATCHES, sizes)
        found, refused = largest_difference(model, bind, cases)
        if not found <= goal.tolerance:
            raise ValueError(refusal(goal, kind, found))
        part.advance()
    return ExportResult(
        goal.path,
        goal.format,
        engine.title or engine.name,
        CHECKED_BATCHES if batch == "dynamic" else (batch,),
        found,
        goal.tolerance,
        tuple(each for each in sizes.further if size_text(each) not in refused),
        sizes.why_fixed,
        tuple(refused),
    )


@contextmanager
def naming(what: str) -> Iterator[None]:
    """Turn any error inside torch or an engine into a ValueError that says where."""
    try:
        yield
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"export_model: {what}: {reason[:500]}.") from error


def check_arguments(inputs: Inputs, batch: Batch, size: Size, tolerance: float) -> None:
    """Reject inputs, a batch size, a size or a tolerance that make no sense."""
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


def check_suffix(path: Path, name: str, chosen: Engine) -> None:
    """Reject a path that the engine would not take for a file of this format."""
    if path.suffix != chosen.suffix:
        raise ValueError(
            f"export_model: expected a path ending in {chosen.suffix} for {name}, got "
            f"{path.name!r}. Rename it, or give the format of that ending."
        )


def largest_difference(
    model: nn.Module, bind: Bind, cases: Iterable[Trial]
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
        expected = inputs.run(model)
        try:
            with naming(f"the written file does not run at {case.what}"):
                found = bind(inputs)()
        except ValueError:
            if case.required:
                raise
            refused.append(case.what)
            continue
        worst = max(worst, difference(expected, found))
    return worst, refused


def random_like(x: Tensor, generator: torch.Generator) -> Tensor:
    """Return normal numbers of a tensor's shape and type; integers are returned as they are."""
    if not x.is_floating_point():
        return x
    return torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.dtype)


def refusal(goal: Goal, network: str, found: float) -> str:
    """Return the message for outputs that differ."""
    return (
        f"export_model: {goal.engine.title or goal.engine.name} computes something else than torch "
        f"with this {network}: outputs differ by {found:.1e} of their scale, more than the "
        f"tolerance {goal.tolerance:g}. {goal.path} was not written. Try another format, or a "
        "larger tolerance if that is precise enough for you."
    )
