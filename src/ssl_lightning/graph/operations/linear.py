"""Linear layers, and products with a stored matrix to which a bias is added."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from ssl_lightning.graph.flow import Flow, Value
from ssl_lightning.graph.labels import spread
from ssl_lightning.graph.operations.matrices import matrix_labels, stored_matrix
from ssl_lightning.graph.operations.owned import known_outputs, layer_varies, owns
from ssl_lightning.graph.ops import Op, Ref
from ssl_lightning.graph.rule import Rule, as_alive, first, fix_all, literal


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
