"""From a network to what ``torch.export`` sees of it, with the dimensions that may change."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, ShapesCollection
from torch.utils import _pytree as pytree

from ssl_lightning.compaction.sizes import Axes, further_sizes, possible_axes
from ssl_lightning.graph import Flat, Inputs

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


@dataclass(frozen=True)
class Sizes:
    """Which heights and widths (or lengths) a network accepts beside those of its example.

    Attributes:
        axes: the dimensions that may change; None if none may.
        further: sizes of these dimensions that the network was seen to accept.
        why_fixed: why none may change.
    """

    axes: Axes | None = None
    further: tuple[tuple[int, ...], ...] = ()
    why_fixed: str = ""


def accepted_sizes(model: nn.Module, inputs: Inputs) -> Sizes:
    """Return which other heights and widths (or lengths) a network accepts: it is run there.

    A network whose sizes are free takes twice the height. (Some take one or two pixels more only,
    which the rounding of a pooling layer swallows.)

    Example:
        >>> sizes = accepted_sizes(nn.Conv2d(1, 1, 3), Inputs(torch.zeros(1, 1, 8, 8)))
        >>> sizes.axes.dims, sizes.further[0]
        ((2, 3), (16, 8))
        >>> accepted_sizes(nn.Linear(3, 2), Inputs(torch.zeros(1, 3))).why_fixed
        'no input has a height and width, or a length'
    """
    refusals: list[str] = []
    for axes in possible_axes(inputs):
        twice = (2 * axes.sizes[0], *axes.sizes[1:])
        refused = refusal_of(model, axes.resized(inputs, 1, twice))
        if refused is None:
            return Sizes(axes, (twice, *others_accepted(model, inputs, axes)))
        refusals.append(refused)
    return Sizes(why_fixed=[*refusals, "no input has a height and width, or a length"][0])


def others_accepted(model: nn.Module, inputs: Inputs, axes: Axes) -> Iterator[tuple[int, ...]]:
    """Yield further sizes that a network accepts: odd, even, smaller and larger ones."""
    for choices in further_sizes(axes.sizes):
        for _, sizes in choices:
            if refusal_of(model, axes.resized(inputs, 1, sizes)) is None:
                if sizes != axes.sizes:
                    yield sizes
                break


def refusal_of(model: nn.Module, inputs: Inputs) -> str | None:
    """Run a network; return why it does not take these inputs, or None if it does."""
    try:
        inputs.run(model)
    except Exception as error:  # whatever the network's code raises
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in inputs.tensors())
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return f"{type(model).__name__} itself refuses {shapes} ({reason[:120]})"
    return None


def capture(
    model: nn.Module, inputs: Inputs, batch: Batch, axes: Axes | None, *, flat: bool
) -> Captured:
    """Return the network as ``torch.export`` sees it, with fixed or dynamic dimensions.

    Args:
        model: in eval mode.
        inputs: an example.
        batch: the one batch size, or ``"dynamic"``.
        axes: further dimensions that may change.
        flat: capture a network that takes all tensors by position, other values being part of it.

    Raises:
        ValueError: if it cannot be captured, or not with these dimensions.
    """
    example = inputs.at_batch(2 if batch == "dynamic" else batch).map(lambda x: x.detach())
    dims = dynamic_dims(inputs, batch, axes)
    names = input_names(inputs)
    if flat and not example.by_position():
        model, example = Flat(model, example), Inputs(*example.tensors())
    shapes = ShapesCollection() if any(dims) else None
    if shapes is not None:
        size = Dim("batch")
        for tensor, own in zip(example.tensors(), dims, strict=True):
            shapes[tensor] = {
                dim: size if name == "batch" else Dim.DYNAMIC for dim, name in own.items()
            }
    advice = " with a dynamic batch dimension; give one batch size (`batch`)"
    advice = advice if batch == "dynamic" else ""
    with naming(f"{type(model).__name__} cannot be captured{advice}"):
        program = torch.export.export(model, example.args, example.kwargs, dynamic_shapes=shapes)
    return Captured(program, example, names, dims)


def dynamic_dims(inputs: Inputs, batch: Batch, axes: Axes | None) -> tuple[dict[int, str], ...]:
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


@contextmanager
def naming(what: str) -> Iterator[None]:
    """Turn whatever goes wrong inside torch or an engine into a ValueError that says where."""
    try:
        yield
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"export_model: {what}: {reason[:500]}.") from error


@dataclass(frozen=True)
class Trial:
    """Inputs to run a written file with.

    Attributes:
        what: their size, for messages.
        inputs: to run it with.
        required: whether the file has to take them: a smaller size may be below what it can.
    """

    what: str
    inputs: Inputs
    required: bool


def trials(inputs: Inputs, batch: Batch, batches: Sequence[int], sizes: Sizes) -> Iterator[Trial]:
    """Yield what to run a file with: all batch sizes, then the further heights and widths."""
    for count in batches if batch == "dynamic" else (batch,):
        yield Trial(f"batch size {count}", inputs.at_batch(int(count)), True)
    for i, further in enumerate(sizes.further):
        assert sizes.axes is not None
        count = 1 if batch == "dynamic" else batch
        yield Trial(size_text(further), sizes.axes.resized(inputs, count, further), i == 0)


def size_text(sizes: Sequence[int]) -> str:
    """Write a height and width.

    Example:
        >>> size_text((64, 32))
        'size 64x32'
    """
    return f"size {'x'.join(map(str, sizes))}"
