"""Linear layers, and linear maps whose weight is a stored matrix: ``x @ w``, ``addmm``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ssl_lightning.graph.flow import Flow, Value
from ssl_lightning.graph.labels import spread
from ssl_lightning.graph.operations.owned import known_outputs, layer_varies, owns
from ssl_lightning.graph.ops import Op, Ref
from ssl_lightning.graph.rule import Rule, as_alive, first, fix_all, literal

TURNS = frozenset({"t", "transpose", "permute", "numpy_T", "mT", "swapaxes", "swapdims", "movedim"})
INPUTS = ("nx", "in_features", "input_dim", "in_dim", "n_in")
OUTPUTS = ("nf", "out_features", "output_dim", "out_dim", "n_out")
"""Attributes in which modules hold the sizes of their matrices."""


@dataclass(frozen=True)
class Stored:
    """What a value is of a stored matrix.

    Attributes:
        value: the matrix's own name in the trace.
        turned: whether the value is its transpose.
        between: the operations from one to the other.
        rows: the rows of the matrix that the value is; None for all.
    """

    value: str
    turned: bool
    between: tuple[str, ...]
    rows: slice | None


def stored_matrix(flow: Flow, value: str) -> Stored | None:
    """Return which stored matrix, or part of its rows, a value is; None if it is none."""
    turned, between, rows = False, [], None
    while value in flow.producers:
        op = flow.producers[value]
        between.append(value)
        if op.kind == "getitem" and rows is None:
            split = flow.producers[first(op)]
            rows = rows_of(split, op.args[1], flow)
            if rows is None:
                return None
            between.append(split.name)
            op = split
        elif op.kind not in TURNS or len(op.inputs()) != 1 or len(op.shape) != 2 or rows:
            return None
        else:
            probe = op.run({first(op): torch.arange(6).view(2, 3)})
            turned ^= tuple(probe.shape) == (3, 2)
        value = first(op)
    name = flow.trace.names.get(value)
    if name not in flow.names_of_parameters or flow.alive[value].dim() != 2:
        return None
    return Stored(value, turned, tuple(between), rows)


def rows_of(split: Op, number: int, flow: Flow) -> slice | None:
    """Return the rows of one part of a matrix that is split, None if it is not along its rows.

    Code that names sizes can split into equal parts only; torch's attention is replaced anyway.
    """
    if split.kind not in ("split", "split_with_sizes", "chunk") or split.argument(2, "dim", 0):
        return None
    sizes = [shape[0] for shape in split.shape]
    if len(set(sizes)) > 1 and not is_torch_attention(split, flow):
        return None
    start = sum(sizes[:number])
    return slice(start, start + sizes[number])


def is_torch_attention(op: Op, flow: Flow) -> bool:
    """Whether an operation is part of torch's own multi-head attention."""
    return type(flow.model.get_submodule(op.module)) is nn.MultiheadAttention


def matrix_labels(
    op: Op, flow: Flow, weight: str, out_dim: int, x: str, x_dim: int, result_dim: int
) -> Value:
    """Record the slices of a stored matrix and return the labels of its product.

    Args:
        op: the product.
        flow: the analysis.
        weight: the value that is the matrix, or its transpose.
        out_dim: the dimension of that value that numbers the outputs.
        x: the other operand.
        x_dim: the dimension of it that is summed over.
        result_dim: the dimension of the result that numbers the outputs.
    """
    found = stored_matrix(flow, weight)
    assert found is not None
    value, dim = found.value, out_dim ^ found.turned
    if found.rows is not None and dim:
        return fix_all(op, flow)  # parts of the inputs
    inputs = flow.labels.per_index(flow.slices[x], x_dim % flow.slices[x].dim())
    known = flow.matrices.get(flow.trace.names[value])
    size = flow.alive[value].shape[dim]
    outputs = known.outputs if known and known.dim == dim else flow.labels.fresh(size)
    flow.add_matrix(op, value, outputs, inputs, dim)
    matrix = flow.matrices[flow.trace.names[value]]
    matrix.ops.update(found.between)
    matrix.values.update(found.between)
    add_sizes(flow, flow.trace.names[value].rpartition(".")[0], outputs, inputs)
    if found.rows is not None:
        if not is_torch_attention(op, flow):
            tie_parts(flow, outputs, found.rows)
        outputs = outputs[found.rows]
    return spread(outputs, op.shape, result_dim % len(op.shape))


def add_sizes(flow: Flow, owner: str, outputs: Tensor, inputs: Tensor) -> None:
    """Record the attributes in which a module holds the sizes of its matrix."""
    held = flow.model.get_submodule(owner).__dict__
    for names, labels in ((OUTPUTS, outputs), (INPUTS, inputs)):
        keys = tuple(key for key in names if held.get(key) == len(labels))
        if keys and not isinstance(flow.model.get_submodule(owner), nn.Linear):
            flow.sizes.setdefault(owner, []).append((keys, labels))


def tie_parts(flow: Flow, outputs: Tensor, rows: slice) -> None:
    """Tie the outputs of equal parts of a matrix, so that code that splits can still do so."""
    parts = outputs.view(-1, rows.stop - rows.start)
    flow.labels.union(parts, parts[:1])


def linear_labels(op: Op, flow: Flow) -> Value:
    """A linear layer's own weight, or a stored matrix."""
    module, weight = flow.model.get_submodule(op.module), op.args[1].name
    if isinstance(module, nn.Linear) or stored_matrix(flow, weight) is None:
        return layer_labels(op, flow)
    result = matrix_labels(op, flow, weight, 0, first(op), -1, -1)
    if isinstance(op.argument(2, "bias"), Ref):
        flow.labels.union(result, flow.slices[op.args[2].name])
    return result


def layer_labels(op: Op, flow: Flow) -> Value:
    """Input features are the weight's columns, output features its rows: new labels."""
    module, labels = flow.model.get_submodule(op.module), flow.slices[first(op)]
    if not isinstance(module, nn.Linear) or not owns(op, flow, "weight", "bias"):
        return fix_all(op, flow)
    if (module.in_features, module.out_features) != (labels.shape[-1], op.shape[-1]):
        return fix_all(op, flow)
    inputs = flow.labels.per_index(labels, labels.dim() - 1)
    outputs = known_outputs(op, flow, module.out_features)
    flow.add_site(op, inputs, outputs, dim=-1)
    return spread(outputs, op.shape, len(op.shape) - 1)


def linear_varies(op: Op, flow: Flow) -> Value:
    """The result varies where it reads what does."""
    return layer_varies(op, flow, literal, -1)


def addmm_support(op: Op, alive: Mapping[str, Value]) -> Tensor:
    """A sum can be non-zero where the bias or a product can."""
    bias, x, weight = (alive[arg.name] for arg in op.args[:3])
    found: Tensor = bias + x @ weight
    return found


def addmm_labels(op: Op, flow: Flow) -> Value:
    """Inputs are the weight's rows, outputs its columns, and the bias has the outputs."""
    bias, x, weight = (arg.name for arg in op.args[:3])
    if stored_matrix(flow, weight) is None:
        return fix_all(op, flow)
    result = matrix_labels(op, flow, weight, 1, x, -1, -1)
    given: Tensor = flow.slices[bias]
    wide = given.view(*[1] * (2 - given.dim()), *given.shape)
    flow.labels.union(result, wide)
    return result


TABLE = {
    "linear": Rule(literal, linear_labels, varies=linear_varies),
    "addmm": Rule(addmm_support, addmm_labels, varies=as_alive, constants=False),
}
