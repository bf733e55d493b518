"""Linear maps whose weight is a stored matrix of any module: ``x @ w``, ``addmm``, ``einsum``."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ssl_lightning.graph.flow import Flow, Value
from ssl_lightning.graph.labels import spread
from ssl_lightning.graph.ops import Op, Ref
from ssl_lightning.graph.slices import fix_all, linear_labels
from ssl_lightning.graph.support import first

TURNS = frozenset({"t", "transpose", "permute", "numpy_T", "mT", "swapaxes", "swapdims", "movedim"})
INPUTS = ("nx", "in_features", "input_dim", "in_dim", "n_in")
OUTPUTS = ("nf", "out_features", "output_dim", "out_dim", "n_out")
"""Attributes in which modules hold the sizes of their matrices."""


def any_linear_labels(op: Op, flow: Flow) -> Value:
    """A linear layer's own weight, or a stored matrix."""
    module, weight = flow.model.get_submodule(op.module), op.args[1].name
    if isinstance(module, nn.Linear) or stored_matrix(flow, weight) is None:
        return linear_labels(op, flow)
    result = matrix_labels(op, flow, weight, 0, first(op), -1, -1)
    if isinstance(op.argument(2, "bias"), Ref):
        flow.labels.union(result, flow.slices[op.args[2].name])
    return result


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


def addmm_support(op: Op, alive: Mapping[str, Value]) -> Tensor:
    """A sum can be non-zero where the bias or a product can."""
    bias, x, weight = (alive[arg.name] for arg in op.args[:3])
    return bias + x @ weight


def stored_matrix(flow: Flow, value: str) -> tuple[str, bool, list[str]] | None:
    """Return the parameter that a value is, transposed or not, and the operations between.

    None if the value is no stored matrix.
    """
    turned, between = False, []
    while value in flow.producers:
        op = flow.producers[value]
        shape = flow.alive[value].shape if value in flow.alive else ()
        if op.kind not in TURNS or len(op.inputs()) != 1 or len(shape) != 2:
            return None
        probe = op.run({first(op): torch.arange(6).view(2, 3)})
        turned ^= tuple(probe.shape) == (3, 2)
        between.append(value)
        value = first(op)
    name = flow.trace.names.get(value)
    if name not in flow.names_of_parameters or flow.alive[value].dim() != 2:
        return None
    return value, turned, between


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
    value, turned, between = found
    dim = out_dim ^ turned
    inputs = flow.labels.per_index(flow.slices[x], x_dim % flow.slices[x].dim())
    known = flow.matrices.get(flow.trace.names[value])
    size = op.shape[result_dim]
    if known is not None and known.dim == dim:
        outputs = known.outputs
    else:
        outputs = flow.labels.fresh(size)
    flow.add_matrix(op, value, outputs, inputs, dim)
    matrix = flow.matrices[flow.trace.names[value]]
    matrix.ops.update(between)
    matrix.values.update(between)
    owner = flow.trace.names[value].rpartition(".")[0]
    flow.sizes.setdefault(owner, []).extend([(OUTPUTS, outputs), (INPUTS, inputs)])
    return spread(outputs, op.shape, result_dim % len(op.shape))
