"""How a network's inputs are nested, as data that a plan can store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ssl_lightning.graph import Inputs

SEQUENCES: dict[str, type[list[Any]] | type[tuple[Any, ...]]] = {"list": list, "tuple": tuple}


def structure_of(inputs: Inputs) -> Any:
    """Return how inputs are nested, as JSON data; None if they are tensors by position.

    A tensor is ``{"tensor": i}``, the i-th of all; a list ``{"list": [...]}``, a tuple
    ``{"tuple": [...]}``, a dict ``{"dict": [[key, value], ...]}``, all else ``{"value": ...}``.

    Raises:
        ValueError: for a value that no plan can store.

    Example:
        >>> structure_of(Inputs([1.5, None]))
        {'args': [{'list': [{'value': 1.5}, {'value': None}]}], 'kwargs': []}
    """
    if not inputs.kwargs and all(isinstance(value, Tensor) for value in inputs.args):
        return None
    order = {id(tensor): i for i, tensor in enumerate(inputs.tensors())}
    args = [nested(value, order) for value in inputs.args]
    return {"args": args, "kwargs": [[k, nested(v, order)] for k, v in inputs.kwargs.items()]}


def nested(value: Any, order: dict[int, int]) -> dict[str, Any]:
    """Return one value as JSON data; tensors are numbered as ``order`` says."""
    if isinstance(value, Tensor):
        return {"tensor": order[id(value)]}
    for name, kind in SEQUENCES.items():
        if type(value) is kind:
            return {name: [nested(item, order) for item in value]}
    if type(value) is dict and all(isinstance(key, (str, int)) for key in value):
        return {"dict": [[key, nested(item, order)] for key, item in value.items()]}
    if value is None or type(value) in (bool, int, float, str):
        return {"value": value}
    raise ValueError(
        f"make_plan: an input of type {type(value).__name__} cannot be stored in a plan. Expected "
        "tensors, numbers, strings, None, and lists, tuples and dicts of them."
    )


def from_structure(structure: Any, tensors: Sequence[Tensor]) -> Inputs:
    """Return the inputs that :func:`structure_of` describes.

    Raises:
        TypeError, KeyError: if the structure is damaged.
    """
    if structure is None:
        return Inputs(*tensors)
    args = [rebuilt(value, tensors) for value in structure["args"]]
    return Inputs(*args, **{str(k): rebuilt(v, tensors) for k, v in structure["kwargs"]})


def rebuilt(data: Any, tensors: Sequence[Tensor]) -> Any:
    """Return the value that JSON data stands for."""
    ((kind, value),) = data.items()
    if kind == "tensor":
        if type(value) is not int or not 0 <= value < len(tensors):
            raise KeyError(f"there is no input tensor {value!r}")
        return tensors[value]
    if kind in SEQUENCES:
        return SEQUENCES[kind](rebuilt(item, tensors) for item in value)
    if kind == "dict":
        return {key: rebuilt(item, tensors) for key, item in value}
    if kind == "value" and (value is None or type(value) in (bool, int, float, str)):
        return value
    raise KeyError(f"unknown input {kind!r}")
