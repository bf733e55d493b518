"""Which heights and widths a network takes, and what a written file is run with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from ssl_lightning.compaction.sizes import Axes, further_sizes, possible_axes
from ssl_lightning.graph import Inputs
from ssl_lightning.measure.capturing import Batch


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
        >>> import torch
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
