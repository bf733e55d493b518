"""A network's files in float32 and in int8, and modules that run them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ssl_lightning.export.exporting import TOLERANCE, Size, export_model, naming
from ssl_lightning.graph import ExampleInput, Inputs, as_inputs
from ssl_lightning.measure.capturing import Batch
from ssl_lightning.measure.engine import Bind, Engine
from ssl_lightning.progress import steps

FLOAT32, BFLOAT16, INT8 = "float32", "bfloat16", "int8"
"""Precisions that a network is run in."""


@dataclass(frozen=True)
class Files:
    """The same network in two files.

    Attributes:
        engine: runs them.
        batch: size that they take.
        float32: file in full precision, which was compared with torch.
        int8: file in eight bits.
        examples: on which the ranges of activations were seen.
    """

    engine: Engine
    batch: Batch
    float32: Path
    int8: Path
    examples: int

    def open(self, precision: str) -> Bind:
        """Open the file of a precision; bfloat16 is computed from float32's."""
        load = self.engine.half if precision == BFLOAT16 else self.engine.load
        assert load is not None
        return load(self.int8 if precision == INT8 else self.float32)

    def network(self, precision: str) -> FileNetwork:
        """Return a module that runs the file of a precision."""
        return FileNetwork(self.open(precision), self.batch)

    def num_bytes(self, precision: str) -> int:
        """Return the size of a precision's file, with those beside it that hold its weights."""
        path = self.int8 if precision == INT8 else self.float32
        files = [file for file in path.parent.iterdir() if file.stem == path.stem]
        return sum(file.stat().st_size for file in files)


class FileNetwork(nn.Module):
    """Runs a network's file, and is called as the network is.

    Outputs are those of the file: the tensor, or a list of several.

    Args:
        bind: opens the file for some inputs.
        batch: the one size that it takes; other batches are run in pieces, whose outputs must have
            one row per example.
    """

    def __init__(self, bind: Bind, batch: Batch) -> None:
        super().__init__()
        self.bind = bind
        self.batch = batch

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the outputs for some inputs."""
        inputs = Inputs(*args, **kwargs)
        if self.batch == "dynamic" or inputs.batch == self.batch:
            outputs = self._run(inputs)
        else:
            found = [self._in_piece(piece, self.batch) for piece in pieces(inputs, self.batch)]
            outputs = [torch.cat(parts)[: inputs.batch] for parts in zip(*found, strict=True)]
        return outputs[0] if len(outputs) == 1 else outputs

    def _run(self, inputs: Inputs) -> list[Tensor]:
        found: Any = self.bind(inputs)()
        return [y.clone() for y in ([found] if isinstance(found, Tensor) else found)]

    def _in_piece(self, piece: Inputs, size: int) -> list[Tensor]:
        outputs = self._run(piece.at_batch(size))  # the last piece is filled up
        if any(y.dim() == 0 or len(y) != size for y in outputs):
            raise ValueError(
                f"export_int8: expected outputs with one row for each of {size} examples, got the "
                f"shapes {[tuple(y.shape) for y in outputs]}. Evaluate in batches of {size}, or "
                "leave the batch dynamic."
            )
        return outputs


def pieces(inputs: Inputs, size: int) -> Iterator[Inputs]:
    """Yield the rows of inputs, so many at a time; the last piece has what is left.

    Example:
        >>> [piece.args[0].tolist() for piece in pieces(Inputs(torch.arange(3)), 2)]
        [[0, 1], [2]]
    """
    count = inputs.batch
    for start in range(0, count, max(size, 1)):

        def rows(x: Tensor, start: int = start) -> Tensor:
            return x[start : start + size] if x.dim() and len(x) == count else x

        yield inputs.map(rows)


def check_calibration(example: Inputs, given: Sequence[Inputs]) -> None:
    """Make sure that calibration inputs are such as the example.

    Raises:
        ValueError: saying what is not.
    """
    wanted = [tuple(x.shape[1:]) for x in example.tensors()]
    for each in given:
        found = [tuple(x.shape[1:]) for x in each.tensors()]
        if [len(shape) for shape in found] != [len(shape) for shape in wanted]:
            raise ValueError(
                f"export_int8: expected calibration inputs such as the example, of the shapes "
                f"{wanted} behind the batch, got {found}. Give a list of batches of inputs, "
                "without targets."
            )
        kinds = [x.dtype for x in example.tensors()], [x.dtype for x in each.tensors()]
        if kinds[0] != kinds[1]:
            raise ValueError(
                f"export_int8: expected calibration inputs of the example's types, {kinds[0]}, got "
                f"{kinds[1]}. Convert them, as the data module does for the network."
            )
        if any(x.is_floating_point() and not bool(x.isfinite().all()) for x in each.tensors()):
            raise ValueError(
                "export_int8: expected finite calibration inputs, got NaN or infinity. Leave such "
                "examples out."
            )


def write_files(
    model: nn.Module,
    example_input: ExampleInput,
    to: Path,
    engine: Engine,
    *,
    calibration: Iterable[ExampleInput],
    folder: Path,
    batch: Batch = "dynamic",
    size: Size = "dynamic",
    tolerance: float = TOLERANCE,
) -> Files:
    """Write a network in float32 and, from that file, in int8.

    Args:
        model: in eval mode.
        example_input: its inputs.
        to: the file in int8.
        engine: one that has ``quantize``.
        calibration: inputs, in batches of any size.
        folder: for the file in float32.
        batch: as for :func:`~ssl_lightning.export_model`.
        size: as for :func:`~ssl_lightning.export_model`.
        tolerance: of the file in float32, as for :func:`~ssl_lightning.export_model`.

    Raises:
        ValueError: as :func:`~ssl_lightning.export_model`, for no calibration inputs, and for what
            NNCF raises.
    """
    assert engine.quantize is not None
    rows = 1 if batch == "dynamic" else batch
    given = [as_inputs(each) for each in calibration]
    check_calibration(as_inputs(example_input), given)
    items = list(chain.from_iterable(pieces(each, rows) for each in given))
    whole = [each.at_batch(rows).map(lambda x: x.detach().contiguous()) for each in items]
    if not whole:
        raise ValueError(
            "export_int8: expected calibration inputs, got none. Give some hundred examples of the "
            "training set."
        )
    path = folder / f"float32{engine.suffix}"
    kind = engine.format or engine.name
    settings: dict[str, Any] = {"batch": batch, "size": size, "tolerance": tolerance}
    with steps("", 2) as part:
        export_model(model, example_input, path, kind, **settings)
        part.advance()
        with naming(f"NNCF cannot bring this {type(model).__name__} to int8"):
            engine.quantize(path, to, whole)
    return Files(engine, batch, path, to, sum(each.batch for each in items))
