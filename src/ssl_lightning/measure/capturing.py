"""From a network to what ``torch.export`` sees of it, with the dimensions that may change."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, ShapesCollection
from torch.utils import _pytree as pytree

from ssl_lightning.compaction.sizes import Axes
from ssl_lightning.graph import Flat, Inputs, working_copy

Batch = int | Literal["dynamic"]
POSITIONS = {1: ("length",), 2: ("height", "width"), 3: ("depth", "height", "width")}
"""Names of the dimensions that number positions, by how many there are."""


@dataclass(frozen=True)
class Captured:
    """A captured network.

    Attributes:
        program: what ``torch.export`` returns.
        inputs: that it was captured with.
        names: of its input tensors, in order.
        dims: of each input tensor, dimension -> name of those that may change.
    """

    program: ExportedProgram
    inputs: Inputs
    names: tuple[str, ...]
    dims: tuple[dict[int, str], ...]


def capture(
    model: nn.Module,
    inputs: Inputs,
    batch: Batch | None = None,
    axes: Axes | None = None,
    *,
    flat: bool = True,
) -> Captured:
    """Return the network as ``torch.export`` sees it, with fixed or dynamic dimensions.

    Args:
        model: in eval mode.
        inputs: an example.
        batch: the one batch size, or ``"dynamic"``; None: the example's.
        axes: further dimensions that may change.
        flat: capture a network that takes all tensors by position, other values being part of it.

    Raises:
        Exception: whatever ``torch.export`` raises, if the network cannot be captured, or not with
            these dimensions.

    Example:
        >>> capture(nn.Linear(3, 2).eval(), Inputs(torch.zeros(1, 3)), "dynamic").dims
        ({0: 'batch'},)
    """
    example = inputs.map(lambda x: x.detach())
    if batch is not None:
        example = example.at_batch(2 if batch == "dynamic" else batch)
    dims, names = dynamic_dims(inputs, batch, axes), input_names(inputs)
    if flat and not example.by_position():
        model, example = Flat(model, example).eval(), Inputs(*example.tensors())
    shapes = ShapesCollection() if any(dims) else None
    if shapes is not None:
        size = Dim("batch")
        for tensor, own in zip(example.tensors(), dims, strict=True):
            shapes[tensor] = {
                dim: size if name == "batch" else Dim.DYNAMIC for dim, name in own.items()
            }
    copied = working_copy(model)  # what its code caches while it is captured is no number
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The tensor attributes .* were assigned during export")
        program = torch.export.export(copied, example.args, example.kwargs, dynamic_shapes=shapes)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # files would name folders of this machine
    return Captured(program, example, names, dims)


def dynamic_dims(
    inputs: Inputs, batch: Batch | None, axes: Axes | None
) -> tuple[dict[int, str], ...]:
    """Return for each tensor the dimensions that may change, with their names.

    Example:
        >>> images = Inputs(torch.zeros(1, 3, 8, 8), mask=torch.zeros(8, 8))
        >>> dynamic_dims(images, "dynamic", Axes((2, 3), (8, 8)))
        ({0: 'batch', 2: 'height', 3: 'width'}, {0: 'height', 1: 'width'})
    """
    found: list[dict[int, str]] = [{} for _ in inputs.tensors()]
    steps: list[tuple[str, Axes, int, tuple[int, ...]]] = []
    count = len(inputs.tensors()[0]) if inputs.tensors() and inputs.tensors()[0].dim() else 0
    if batch == "dynamic" and count:
        steps.append(("batch", Axes((), ()), count + 1, ()))
    if axes is not None:
        for i, name in enumerate(POSITIONS.get(len(axes.dims), ())):
            other = tuple(size + (j == i) for j, size in enumerate(axes.sizes))
            steps.append((name, axes, count, other))
    for name, changed, size, others in steps:
        other_inputs = changed.resized(inputs, size, others).tensors()
        for own, old, new in zip(found, inputs.tensors(), other_inputs, strict=True):
            own.update({d: name for d in range(old.dim()) if old.shape[d] != new.shape[d]})
    return tuple(found)


def input_names(inputs: Inputs) -> tuple[str, ...]:
    """Return a name for each tensor: by number, or the keyword and the keys that lead to it.

    Example:
        >>> x = torch.zeros(1, 3)
        >>> input_names(Inputs(x)), input_names(Inputs(x, x))
        (('input',), ('input_0', 'input_1'))
        >>> input_names(Inputs(x, None, mask=x, more={"a": [x]}))
        ('input_0', 'mask', 'more_a_0')
    """
    if inputs.by_position():
        return tuple(numbered("input", len(inputs.args)))
    found = []
    for path, leaf in pytree.tree_flatten_with_path((inputs.args, inputs.kwargs))[0]:
        keys = [str(getattr(key, "key", getattr(key, "idx", key))) for key in path]
        if isinstance(leaf, Tensor):
            found.append("_".join((["input"] if keys[0] == "0" else []) + keys[1:]))
    return tuple(found)


def numbered(stem: str, count: int) -> list[str]:
    """Return names for so many inputs or outputs.

    Example:
        >>> numbered("input", 1), numbered("output", 2)
        (['input'], ['output_0', 'output_1'])
    """
    return [stem] if count == 1 else [f"{stem}_{index}" for index in range(count)]
