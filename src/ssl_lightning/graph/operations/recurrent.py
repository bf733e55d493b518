"""LSTM, GRU and RNN: the inputs that they read, and the hidden units that are always zero.

A unit starts at zero. An LSTM's cell becomes ``f c + i g``, a GRU's unit ``(1 - z) n + z h``, that
of a plain RNN ``n``: as long as the candidate (g, n) is zero, so is the unit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ssl_lightning.graph.flow import Flow, Value, binary
from ssl_lightning.graph.labels import spread
from ssl_lightning.graph.ops import Op
from ssl_lightning.graph.rule import Rule, as_alive, fix_all, rows

GATES = {"lstm": (4, 2), "gru": (3, 2), "rnn_tanh": (1, 0), "rnn_relu": (1, 0)}
"""Kind -> number of gates, and which of them is the candidate."""

PASSED_ON = frozenset({"to", "_to_copy", "clone", "contiguous", "detach", "alias"})
SIZES = ("hidden_size", "hidden_dim", "hid_dim", "n_hidden", "num_hidden", "nhid", "hidden")
"""Attributes in which modules around a recurrent layer hold the number of its units."""


@dataclass
class Cell:
    """The stored tensors of one layer in one direction: value names."""

    ih: str
    hh: str
    biases: tuple[str, ...]
    hr: str | None


def cells_of(op: Op) -> list[list[Cell]]:
    """Return the cells, by layer and direction."""
    assert isinstance(op.args[2], (list, tuple)), "packed sequences have no rule"
    names = [ref.name for ref in op.args[2]]
    biased, layers, bidirectional = op.args[3], op.args[4], op.args[7]
    directions = 2 if bidirectional else 1
    per = len(names) // (layers * directions)
    cells = []
    for start in range(0, len(names), per):
        own = names[start : start + per]
        biases = tuple(own[2:4]) if biased else ()
        cells.append(Cell(own[0], own[1], biases, own[-1] if per in (3, 5) else None))
    return [cells[i : i + directions] for i in range(0, len(cells), directions)]


def states(op: Op) -> list[str]:
    """Return the names of the initial states: hidden, and of an LSTM cell."""
    given = op.args[1] if isinstance(op.args[1], (list, tuple)) else [op.args[1]]
    return [ref.name for ref in given]


def start(op: Op, alive: Mapping[str, Value], row: int) -> list[Tensor]:
    """Return which units of one cell can be non-zero at the start, per initial state."""
    return [alive[name][row].amax(0) for name in states(op)]


def starts_at_zero(flow: Flow, value: str) -> Op | None:
    """Return the operation that made a state of zeros, if it did."""
    op = flow.producers.get(value)
    while op is not None and op.kind in PASSED_ON:
        op = flow.producers.get(op.inputs()[0]) if op.inputs() else None
    return op if op is not None and op.kind in ("zeros", "zeros_like", "new_zeros") else None


def living(op: Op, alive: Mapping[str, Value]) -> list[list[tuple[Tensor, Tensor]]]:
    """Return, by layer and direction, which outputs and which units can be non-zero."""
    gates, candidate = GATES[op.kind]
    x = per_last(alive[op.args[0].name])
    result = []
    for number, layer in enumerate(cells_of(op)):
        found = []
        for direction, cell in enumerate(layer):
            initial = start(op, alive, number * len(layer) + direction)
            ih, hh = (alive[n].chunk(gates)[candidate] for n in (cell.ih, cell.hh))
            bias = sum((alive[n].chunk(gates)[candidate] for n in cell.biases), torch.zeros(()))
            hidden = initial[0]
            while True:
                unit = torch.maximum(binary(ih @ x + hh @ hidden + bias), initial[-1])
                new = unit if cell.hr is None else binary(alive[cell.hr] @ unit)
                new = torch.maximum(new, initial[0])
                if torch.equal(new, hidden):
                    break
                hidden = new
            found.append((hidden, unit))
        x = torch.cat([hidden for hidden, _ in found])
        result.append(found)
    return result


def per_last(mask: Tensor) -> Tensor:
    """Return where anything is not zero, per index of the last dimension."""
    return mask.reshape(-1, mask.shape[-1]).amax(0)


def recurrent_labels(op: Op, flow: Flow) -> Value:
    """Rows of the weights are units, of all gates; columns are inputs, or the layer's own units."""
    cells = cells_of(op)
    owned = {flow.trace.names.get(ref.name, "").rpartition(".")[0] for ref in op.args[2]}
    if owned != {op.module}:
        return fix_all(op, flow)
    labels = flow.slices[op.args[0].name]
    x = inputs = flow.labels.per_index(labels, labels.dim() - 1)
    hidden_rows, unit_rows = [], []
    for layer in cells:
        outputs = []
        for cell in layer:
            units, hidden = add_cell(op, flow, cell, x)
            unit_rows.append(units)
            hidden_rows.append(hidden)
            outputs.append(hidden)
        x = torch.cat(outputs)
    flow.balanced += [torch.stack(unit_rows), torch.stack(hidden_rows)]
    sizes = [(("hidden_size",), unit_rows[0]), (("input_size",), inputs)]
    if cells[0][0].hr is not None:
        sizes.append((("proj_size",), hidden_rows[0]))
    flow.sizes.setdefault(op.module, []).extend(sizes)
    tie_states(op, flow, [hidden_rows, unit_rows])
    results = [spread(x, op.shape[0], len(op.shape[0]) - 1)]
    for number, labels in enumerate([hidden_rows, unit_rows][: len(op.shape) - 1], start=1):
        if is_read(op, number, flow):
            for row in labels[1:]:
                flow.labels.union(labels[0], row)
        results.append(spread(labels[0], op.shape[number], 2))
    return results


def add_cell(op: Op, flow: Flow, cell: Cell, x: Tensor) -> tuple[Tensor, Tensor]:
    """Record one cell's weights; return the labels of its units and of its outputs."""
    gates, _ = GATES[op.kind]
    known = flow.matrices.get(flow.trace.names[cell.ih])
    size = flow.alive[cell.ih].shape[0] // gates
    units = flow.labels.fresh(size) if known is None else known.outputs[:size]
    hidden = units
    if cell.hr is not None:
        known = flow.matrices.get(flow.trace.names[cell.hr])
        hidden = flow.labels.fresh(len(flow.alive[cell.hr])) if known is None else known.outputs
        flow.add_matrix(op, cell.hr, hidden, units)
    rows = units.repeat(gates)
    flow.add_matrix(op, cell.ih, rows, x)
    flow.add_matrix(op, cell.hh, rows, hidden)
    for bias in cell.biases:
        flow.labels.union(flow.slices[bias], rows)
    return units, hidden


def tie_states(op: Op, flow: Flow, rows: list[list[Tensor]]) -> None:
    """Tie the initial states' slices to the units; the layer's own zeros have as many as it has."""
    for name, own in zip(states(op), rows, strict=False):
        zeros = starts_at_zero(flow, name)
        if zeros is not None and zeros.module == op.module:
            continue
        if zeros is not None:
            module = flow.model.get_submodule(zeros.module)
            keys = tuple(key for key in SIZES if module.__dict__.get(key) == len(own[0]))
            if keys:
                flow.sizes.setdefault(zeros.module, []).append((keys, own[0]))
                continue
        given = flow.slices[name]
        for number, row in enumerate(own):
            flow.labels.union(row, flow.labels.per_index(given[number], 1))


def is_read(op: Op, number: int, flow: Flow) -> bool:
    """Whether anything reads one of an operation's results."""
    outputs = set(flow.trace.outputs)
    for user in flow.trace.users.get(op.name, []):
        whole = user.kind != "getitem"
        if whole or (
            user.args[1] == number and (flow.trace.users.get(user.name) or user.name in outputs)
        ):
            return True
    return op.name in outputs


def recurrent_support(op: Op, alive: Mapping[str, Value]) -> Value:
    """Return which units can be non-zero, whatever the time."""
    found = living(op, alive)
    hidden = torch.stack([h for layer in found for h, _ in layer])
    units = torch.stack([u for layer in found for _, u in layer])
    last = torch.cat([h for h, _ in found[-1]])
    rows = [r[:, None].expand(s) for r, s in zip((hidden, units), op.shape[1:], strict=False)]
    return [last.expand(op.shape[0]), *rows]


def recurrent_needs(op: Op, flow: Flow, needed: Value) -> dict[str, Value]:
    """What is read of the inputs by the units that are needed, and by those that they read."""
    gates, _ = GATES[op.kind]
    alive, cells = living(op, flow.alive), cells_of(op)
    final = [n.amax(1) for n in needed[1:]]
    above = per_last(needed[0]).chunk(len(cells[0]))
    useful: list[tuple[Tensor, Tensor]] = []
    for number in range(len(cells) - 1, -1, -1):
        below = torch.zeros(flow.alive[cells[number][0].ih].shape[1])
        for direction, cell in enumerate(cells[number]):
            row = number * len(cells[0]) + direction
            wanted = torch.maximum(above[direction], final[0][row])
            cell_wanted = final[1][row] if len(final) > 1 else torch.zeros(())
            units, wanted = read_units(
                flow, cell, gates, wanted, cell_wanted, alive[number][direction]
            )
            rows = units.repeat(gates)
            below = torch.maximum(below, binary(rows @ flow.alive[cell.ih]))
            names = flow.trace.names
            useful.append((flow.matrices[names[cell.ih]].outputs[: len(units)], units > 0))
            if cell.hr is not None:
                living_outputs = (wanted * alive[number][direction][0]) > 0
                useful.append((flow.matrices[names[cell.hr]].outputs, living_outputs))
        above = below.chunk(len(cells[0]))
    flow.inner[op.name] = useful
    x = op.args[0].name
    whole = {name: torch.ones_like(flow.alive[name]) for name in states(op)}
    return {x: below.expand(flow.alive[x].shape), **whole}


def read_units(
    flow: Flow, cell: Cell, gates: int, wanted: Tensor, units: Tensor, alive: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Return which living units are needed, and which outputs, through the recurrence too."""
    while True:
        inner = wanted if cell.hr is None else binary(wanted @ flow.alive[cell.hr])
        useful = torch.maximum(inner, units) * alive[1]
        new = torch.maximum(wanted, binary(useful.repeat(gates) @ flow.alive[cell.hh]))
        if torch.equal(new, wanted):
            return useful, wanted
        wanted = new


RECURRENT = Rule(
    recurrent_support,
    recurrent_labels,
    recurrent_needs,
    as_alive,
    constants=False,
    results="any",
)

TABLE = dict(rows(RECURRENT, "lstm gru rnn_tanh rnn_relu"))
