"""The last gate: the dense and the compact network are run and compared, at several sizes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ssl_lightning.compaction.equality import (
    LARGEST,
    LOWER,
    SPREADS,
    TOLERANCE,
    Path,
    Precision,
    Problem,
    compare,
    compare_shapes,
    random_inputs,
    relative,
    tensors_of,
    watched,
)
from ssl_lightning.compaction.rewrite import apply_slices, check_modules
from ssl_lightning.compaction.sizes import LARGEST_MAP, Axes, further_sizes, possible_axes
from ssl_lightning.compaction.thresholds import Comparison, scaled, untried_scales
from ssl_lightning.graph import Inputs, SiteSlices, cannot_run, same_random_state, working_copy
from ssl_lightning.suggest import said_by

LARGEST_BATCH = 64


@dataclass(frozen=True)
class Trial:
    """One run of the dense network.

    Attributes:
        inputs: what it was run on.
        expected: its outputs.
        path: the functions that its code called.
        modules: those that ran.
        train: whether it was in train mode; then only the outputs' shapes count.
        compared: sizes and the numbers that its code compared them with.
    """

    inputs: Inputs
    expected: list[Tensor]
    path: tuple[tuple[str, ...], ...]
    modules: frozenset[str]
    train: bool = False
    compared: tuple[Comparison, ...] = ()

    def where(self, first: bool) -> str:
        """Say which run this is, if it is not the plain one on the example."""
        if self.train:
            return " in train mode"
        return "" if first else f" on inputs of shapes {shapes_of(self.inputs)}"


@dataclass
class Gate:
    """The dense network's outputs on the example, at further sizes and in train mode.

    Attributes:
        model: the network; what is run are copies.
        network: a copy, on which the trials are run.
        inputs: random ones, of the shapes and structure of the example.
        dtype: the type that both networks are run in: float64 if the network's code allows it.
        tolerance: largest difference, of an output's scale, that counts as rounding.
        trials: runs of the dense network, that on ``inputs`` first.
        notes: what could not be tried, and any lower precision.
    """

    model: nn.Module
    network: nn.Module
    inputs: Inputs
    dtype: torch.dtype = torch.float64
    tolerance: float = TOLERANCE
    trials: list[Trial] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def problem(self, modules: Mapping[str, SiteSlices]) -> Problem | None:
        """Carry slices out on a copy and say how its outputs differ, or None if they do not.

        Raises:
            ValueError: if the slices do not fit the model's layers.
        """
        check_modules(self.model, modules)
        network = apply_slices(working_copy(self.model, self.dtype).eval(), modules)
        for trial in self.trials:
            running: list[str] = []
            where = trial.where(trial is self.trials[0])
            network.train(trial.train)
            try:
                with torch.no_grad(), same_random_state(), watched(network, running, []):
                    found = tensors_of(trial.inputs.run(network))
            except Exception as error:
                raised = f"{type(error).__name__}: {error}{where}"
                return Problem(raised, tuple(running), trial.train)
            if (text := compare_shapes(trial.expected, found)) is not None:
                return Problem(text + where, train=trial.train)
            text = None if trial.train else compare(trial.expected, found, self.tolerance)
            if text is not None:
                return Problem(text + where, values=True)
        return None

    def other_paths(self) -> list[Trial]:
        """Return runs in eval that together took every step that the example's run did not take."""
        seen = set(self.trials[0].path)
        found = []
        for trial in self.trials:
            if not trial.train and not seen.issuperset(trial.path):
                seen.update(trial.path)
                found.append(trial)
        return found

    def only_in_training(self) -> list[str]:
        """Return the modules with parameters that only ran in train mode."""
        ran = {train: frozenset().union(*(t.modules for t in self.trials if t.train is train))
               for train in (False, True)}  # fmt: skip
        own = dict(self.model.named_modules())
        return [
            name
            for name in sorted(ran[True] - ran[False])
            if next(own[name].parameters(recurse=False), None) is not None
        ]


def open_gate(model: nn.Module, example: Inputs) -> Gate:
    """Run a copy of the dense network on random inputs, in float64 if its code allows it.

    Raises:
        ValueError: if the network cannot be run on these inputs.
    """
    reasons = []
    for dtype in (torch.float64, torch.float32):
        inputs = random_inputs(example, dtype)
        network = working_copy(model, dtype).eval()
        try:
            with Precision() as precision:
                first = run(network, inputs)
        except Exception as error:
            reasons.append(said_by(error))
            continue
        gate = Gate(model, network, inputs, dtype, trials=[first])
        set_tolerance_(gate, precision, reasons)
        return gate
    raise ValueError(cannot_run(model, example, reasons[-1]))


def set_tolerance_(gate: Gate, precision: Precision, reasons: list[str]) -> None:
    """Set the tolerance of a network that computes in lower precision than float64, and say so.

    It is ten times what the dense network's outputs differ by if its inputs are rounded so.
    """
    lowest = precision.lowest
    if lowest is None:
        return
    eps = torch.finfo(lowest).eps
    generator = torch.Generator().manual_seed(2)

    def rounded(x: Tensor) -> Tensor:
        if not x.is_floating_point():
            return x
        return x * (1 + eps * torch.randn(x.shape, generator=generator).to(x))

    other = run(gate.network, gate.inputs.map(rounded)).expected
    own = max(
        (relative(a, b) for a, b in zip(gate.trials[0].expected, other, strict=True)), default=0.0
    )
    gate.tolerance = min(max(LOWER[lowest], SPREADS * own), LARGEST)
    kind = str(lowest).removeprefix("torch.")
    why = f"float64 fails ({reasons[0]})" if reasons else f"its code computes in {kind} in places"
    gate.notes.append(
        f"both networks were compared to {gate.tolerance:.0e} of the outputs' scale only, in "
        f"{str(gate.dtype).removeprefix('torch.')}: {why}"
    )


def try_further(gate: Gate, *, train: bool = True) -> None:
    """Run the dense network at further sizes that it accepts, and once in train mode."""
    refused: dict[str, str] = {}
    axes = possible_axes(gate.inputs)
    free = next((axis for axis in axes if try_sizes(gate, axis, refused)), None)
    try_batches(gate, refused)
    try_thresholds(gate, free, refused)
    if refused:
        tried = "; ".join(list(refused)[:4])
        what = "other sizes of the inputs" if axes and free is None else "some sizes"
        gate.notes.append(
            f"{what} could not be compared, since the network itself refuses them: {tried} "
            f"({next(iter(refused.values()))})"
        )
    if train:
        try_training(gate)


def try_smaller(gate: Gate) -> Inputs | None:
    """Run the dense network on much smaller maps; return those if its code takes the same path."""
    for axis in possible_axes(gate.inputs):
        batch, sizes = next(further_sizes(axis.sizes))[0]
        if 2 * batch * math.prod(sizes) <= math.prod(axis.sizes):
            inputs = axis.resized(gate.inputs, batch, sizes)
            if try_one(gate, inputs, {}) and gate.trials[-1].path == gate.trials[0].path:
                return gate.trials[-1].inputs
    return None


def try_sizes(gate: Gate, axis: Axes, refused: dict[str, str]) -> bool:
    """Run the dense network at other sizes; return whether it accepts any."""
    changed = False
    for choices in further_sizes(axis.sizes):
        for batch, sizes in choices:
            if try_one(gate, axis.resized(gate.inputs, batch, sizes), refused):
                changed |= sizes != axis.sizes
                break
    return changed


def try_batches(gate: Gate, refused: dict[str, str]) -> None:
    """Run the dense network on a larger batch: an odd one of 9 or more if it accepts that.

    Of the sizes that it accepts the smallest is taken.
    """
    count = gate.inputs.batch
    inputs = min((t.inputs for t in gate.trials), key=elements_of)
    for batch in (max(2 * count + 1, 9), 2 * count) if count else ():
        if try_one(gate, inputs.at_batch(batch), refused):
            return


def try_thresholds(gate: Gate, axes: Axes | None, refused: dict[str, str]) -> None:
    """Run the dense network at sizes on the other side of numbers that its code compares with.

    Which size it was, that of the batch or a height, is not known: both are tried.
    """
    count = gate.inputs.batch
    smallest = min((t.inputs for t in gate.trials), key=elements_of)
    for scale in untried_scales(trial.compared for trial in gate.trials):
        if axes is not None:
            sizes = tuple(scaled(size, scale) for size in axes.sizes)
            if math.prod(sizes) <= max(LARGEST_MAP, math.prod(axes.sizes)):
                try_one(gate, axes.resized(gate.inputs, 1, sizes), refused)
        if count and scaled(count, scale) <= LARGEST_BATCH:
            try_one(gate, smallest.at_batch(scaled(count, scale)), refused)


def elements_of(inputs: Inputs) -> int:
    """Return the number of elements of all tensors."""
    return sum(map(Tensor.numel, inputs.tensors()))


def try_one(gate: Gate, inputs: Inputs, refused: dict[str, str]) -> bool:
    """Run the dense network on other inputs; return whether it accepts them."""
    inputs = random_inputs(inputs, gate.dtype)
    if any(sizes_of(inputs) == sizes_of(trial.inputs) for trial in gate.trials):
        return True
    try:
        gate.trials.append(run(gate.network, inputs))
    except Exception as error:
        refused[shapes_of(inputs)] = said_by(error, 240)
        return False
    return True


def try_training(gate: Gate) -> None:
    """Run the dense network in train mode, on two samples at least."""
    inputs = gate.inputs
    if inputs.batch == 1:
        inputs = inputs.at_batch(2)
    try:
        gate.trials.append(run(gate.network, inputs, train=True))
    except Exception as error:
        gate.notes.append(
            "train mode was not tried, since the network itself fails there "
            f"({said_by(error, 240)})"
        )


def run(network: nn.Module, inputs: Inputs, *, train: bool = False) -> Trial:
    """Run the dense network; watch what its code compares sizes with, if it lets us."""
    try:
        return recorded(network, inputs, train, watch=not train)
    except Exception:
        if train:
            raise
    return recorded(network, inputs, train, watch=False)


def recorded(network: nn.Module, inputs: Inputs, train: bool, *, watch: bool) -> Trial:
    """Run the dense network, and record its path."""
    running: list[str] = []
    ran: list[str] = []
    network.train(train)
    path = Path(running, watch=watch)
    with torch.no_grad(), same_random_state(), watched(network, running, ran), path:
        outputs = inputs.run(network)
    expected = [t.clone() for t in tensors_of(outputs)]
    compared = tuple(dict.fromkeys(path.compared))
    return Trial(inputs, expected, tuple(path.steps), frozenset(ran), train, compared)


def sizes_of(inputs: Inputs) -> list[tuple[int, ...]]:
    """Return the shapes of all tensors."""
    return [tuple(tensor.shape) for tensor in inputs.tensors()]


def shapes_of(inputs: Inputs) -> str:
    """Return the shapes of all tensors, to be read."""
    return ", ".join(str(shape) for shape in sizes_of(inputs))
