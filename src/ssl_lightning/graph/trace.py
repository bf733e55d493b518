"""From a model to a list of tensor operations that name the parameters they read.

``torch.export`` (non-strict) runs a copy of the model once in eval mode and records its ATen
operations. Two things are done on top of it, both so that the analysis need not know about them:
operations that write in place are resolved (:mod:`ssl_lightning.graph.aliases`), and modules that
the analysis treats as one operation (:data:`~ssl_lightning.graph.ops.LEAF_MODULES`) become one.
"""

from __future__ import annotations

import io
import operator
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stderr
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from ssl_lightning.graph.aliases import resolve_in_place
from ssl_lightning.graph.copies import outside_inference, same_random_state, working_copy
from ssl_lightning.graph.inputs import ExampleInput, Inputs, as_inputs, run_checked
from ssl_lightning.graph.layers import ANY_CHANNEL_NORM, OWN_LAYERS, class_name
from ssl_lightning.graph.ops import LEAF_MODULES, LayerCall, Op, Ref, Trace, has_hooks
from ssl_lightning.graph.owners import by_parameters, call_types
from ssl_lightning.graph.plain import with_plain_weights
from ssl_lightning.suggest import first_line

NEUTRAL = (ANY_CHANNEL_NORM, nn.modules.dropout._DropoutNd)
"""Modules that do in training what no analysis of zeros needs to know."""


@outside_inference
def trace(model: nn.Module, example_input: ExampleInput, *, train: bool = False) -> Trace:
    """Record the operations of ``model`` on ``example_input``; the model is unchanged.

    What is run is a copy, so that caches that ``forward`` fills are not the model's. A module may
    carry a ``forward`` of its own that computes the same function by a shorter way and says so with
    an attribute ``equivalent = True`` (a collapsed layer); then it is the class's ``forward`` that
    is recorded.

    Args:
        model: any module that ``torch.export`` captures.
        example_input: its inputs, with their batch dimension; one sample is enough. A tensor, a
            tuple of all positional inputs, or :class:`Inputs` where some have names.
        train: take the paths that are for training only; norms and dropouts do what they do in
            eval, as they are no paths.

    Raises:
        ValueError: if the model cannot be captured; torch's reason is part of the message.
    """
    inputs = as_inputs(example_input)
    model = with_plain_weights(model)
    copied = working_copy(model)
    set_paths_(copied, train)
    with same_random_state():
        program = export(copied, inputs)
    signature = program.graph_signature
    names = canonical_names(
        model, {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    )
    state = {**program.constants, **dict(model.named_parameters()), **dict(model.named_buffers())}
    tensors = {value: state[name] for value, name in names.items()}
    for value, name in signature.inputs_to_lifted_tensor_constants.items():
        tensors[value] = program.constants[name]
    leaves = zip(signature.user_inputs, inputs.leaves(), strict=True)
    given = {str(name): leaf for name, leaf in leaves if isinstance(leaf, Tensor)}
    read = read_ops(program.graph, first_names(model))
    owned = by_parameters(read, call_types(program.graph), names, model)
    outputs = [str(name) for name in signature.user_outputs]
    traced = Trace(list(owned), given, tensors, names, outputs)
    return resolve_in_place(replace(traced, ops=merge_leaves(traced, copied), users={}))


def set_paths_(model: nn.Module, train: bool) -> None:
    """Let every module run its class's ``forward`` in eval, or on the paths for training."""
    for module in model.modules():
        if has_equivalent_forward(module):
            del module.forward
        path = module is model or any(True for _ in module.children())
        module.training = train and path and not isinstance(module, NEUTRAL)


def has_equivalent_forward(module: nn.Module) -> bool:
    """Whether a module carries a ``forward`` that says it computes what the class's does."""
    return bool(getattr(module.__dict__.get("forward"), "equivalent", False))


def export(model: nn.Module, inputs: Inputs) -> torch.export.ExportedProgram:
    """Run ``torch.export``.

    Raises:
        ValueError: if it fails.
    """
    try:
        with warnings.catch_warnings(), torch.no_grad(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            return torch.export.export(model, inputs.args, inputs.kwargs, strict=False)
    except Exception as error:
        with torch.no_grad(), same_random_state():
            run_checked(model, inputs)  # what fails in torch too is not the capture's fault
        shapes = [tuple(x.shape) for x in inputs.tensors()]
        raise ValueError(
            f"Cannot capture {type(model).__name__} with torch.export on inputs of shapes "
            f"{shapes}: {first_line(error)}. {advice(inputs, error)}"
        ) from error


def advice(inputs: Inputs, error: Exception) -> str:
    """Say what to do about a model that cannot be captured."""
    if "Cache'> in output" in str(error):
        return "Let the model return no cache: `Inputs(input_ids=..., use_cache=False)`."
    return (
        f"{inputs.advice()} Make sure that forward() has no control flow that depends on the "
        "tensors' values."
    )


def canonical_names(model: nn.Module, names: Mapping[str, str]) -> dict[str, str]:
    """Give every tensor that has several names in the model the first of them."""
    given = [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]
    first: dict[int, str] = {}
    for name, tensor in given:
        first.setdefault(id(tensor), name)
    table = {name: first[id(tensor)] for name, tensor in given}
    return {value: table.get(name, name) for value, name in names.items()}


def first_names(model: nn.Module) -> dict[str, str]:
    """Map every name of every module to the first name it has."""
    first: dict[int, str] = {}
    table = {}
    for name, module in model.named_modules(remove_duplicate=False):
        table[name] = first.setdefault(id(module), name)
    return table


def read_ops(graph: fx.Graph, modules: Mapping[str, str]) -> Iterator[Op]:
    """Yield the operations of an exported graph."""
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        stack = node.meta.get("nn_module_stack") or {}
        call, (module, _) = next(reversed(stack.items())) if stack else ("", ("", None))
        args, kwargs = fx.map_arg((node.args, node.kwargs), as_ref)
        kind, shape = short_name(node.target), shapes(node)
        module = modules.get(module, module)
        yield Op(node.name, kind, node.target, tuple(args), dict(kwargs), module, call, shape)


def as_ref(node: fx.Node) -> Any:
    """Return a reference to a node's value; a graph held as an attribute is no value."""
    return node.target if node.op == "get_attr" else Ref(node.name)


def shapes(node: fx.Node) -> Any:
    """Return the shape, or list of shapes, of a node's result; a number has the shape ()."""
    value = node.meta.get("val")
    if isinstance(value, Tensor):
        return tuple(value.shape)
    if isinstance(value, (tuple, list)):
        return [tuple(item.shape) if isinstance(item, Tensor) else () for item in value]
    return None


def short_name(target: Any) -> str:
    """Return ``"add"`` for ``aten.add_.Tensor``, ``"mylib::add"`` for one of another library.

    In-place and other overloads compute the same function; the one that does not, a view as
    another type, keeps its full name.
    """
    if target is operator.getitem:
        return "getitem"
    packet = getattr(target, "overloadpacket", None)
    if packet is None:
        return str(getattr(target, "__name__", target))
    library, _, name = str(packet._qualified_op_name).rpartition("::")
    if library != "aten":
        return f"{library}::{name}"
    if getattr(target, "_overloadname", "") == "dtype" and name == "view":
        return "view.dtype"
    return name if name.endswith("__") else name.rstrip("_")


def merge_leaves(traced: Trace, model: nn.Module) -> list[Op]:
    """Return the operations, with one instead of those of each call of a leaf module.

    It reads the first activation that they read, if any, and their parameters and buffers. Modules
    with hooks remain as they are.
    """
    modules, ops = dict(model.named_modules()), traced.ops
    merged: list[Op] = []
    position = 0
    while position < len(ops):
        module = modules.get(ops[position].module)
        end = position + 1
        own = type(module) in OWN_LAYERS
        if not (own or isinstance(module, LEAF_MODULES)) or module is None or has_hooks(module):
            merged.append(ops[position])
        else:
            while end < len(ops) and ops[end].call == ops[position].call:
                end += 1
            part = ops[position:end]
            merged += merge_own(part, module, traced) if own else [merge(part, module, traced)]
        position = end
    return merged


def merge(ops: list[Op], module: nn.Module, traced: Trace) -> Op:
    """Return the one operation that ``ops``, all of one call of ``module``, are."""
    outer = read_from_outside(ops)
    activations = [name for name in outer if name not in traced.tensors]
    reads_input = getattr(module, "reads_input", True)
    args = [*activations[:reads_input], *[name for name in outer if name in traced.tensors]]
    return as_one(ops, type(module).__name__, module.forward, args)


def merge_own(ops: list[Op], module: nn.Module, traced: Trace) -> list[Op]:
    """Return the one operation that a layer of a registered type is.

    Or the operations that it consists of, if it is not what such a layer must be: a function of one
    value and of its own tensors, with one result, that writes into neither and holds no modules.
    """
    outer = read_from_outside(ops)
    activations = [name for name in outer if name not in traced.tensors]
    own = {n: traced.names[n].rpartition(".") for n in outer if n in traced.names}
    inside, users = {op.name for op in ops[:-1]}, traced.users
    readers = {user.name for name in inside for user in users.get(name, [])}
    simple = (
        len(activations) == 1
        and all(owner == ops[0].module for owner, _, _ in own.values())
        and not any(module.children())
        and not any(set(op.written()) - inside for op in ops)
        and isinstance(ops[-1].shape, tuple)
        and readers <= {op.name for op in ops}
        and inside.isdisjoint(traced.outputs)
    )
    if not simple:
        return ops
    call = LayerCall(module, tuple(attribute for _, _, attribute in own.values()))
    return [as_one(ops, class_name(type(module)), call, [*activations, *own])]


def read_from_outside(ops: list[Op]) -> list[str]:
    """Return the values that operations read and that none of them returns."""
    inside = {op.name for op in ops}
    return list(dict.fromkeys(n for op in ops for n in op.inputs() if n not in inside))


def as_one(ops: list[Op], kind: str, target: Callable[..., Any], args: list[str]) -> Op:
    """Return one operation in the place of several."""
    refs = tuple(Ref(name) for name in args)
    return replace(ops[-1], kind=kind, target=target, args=refs, kwargs={})
