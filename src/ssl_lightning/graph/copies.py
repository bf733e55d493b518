"""Copies of a model to try things on, and a way to leave random generators as they were."""

from __future__ import annotations

import copy
import random
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ssl_lightning.graph.inputs import check_network

P = ParamSpec("P")
T = TypeVar("T")


def outside_inference(function: Callable[P, T]) -> Callable[P, T]:
    """Let a function run outside of :func:`torch.inference_mode`, without gradients.

    Inside, operations are hidden from what records them, and tensors cannot be trained later.
    """

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        if not torch.is_inference_mode_enabled():
            return function(*args, **kwargs)
        with torch.inference_mode(False), torch.no_grad():
            return function(*args, **kwargs)

    return run


def working_copy(
    model: nn.Module, dtype: torch.dtype | None = None, *, apart: bool = True
) -> nn.Module:
    """Return a copy of a model that can be run, traced and changed and leave nothing behind in it.

    It is a deep copy with three differences. Tensors that are results of other computations (caches
    of an earlier run, the weight that old-style weight norm or pruning masks compute), which
    ``copy.deepcopy`` refuses, are copied without their history. With a ``dtype``, floating-point
    tensors that are plain attributes are converted like parameters and buffers. Hooks, and
    functions that stand in the place of a module's methods, see the copy's modules, and copies of
    the lists, dicts and sets in which they collect. What cannot be copied (a lock, an open file) is
    shared.

    Args:
        model: any module; it is not changed.
        dtype: floating-point type to convert to; None: every tensor has the type it had.
        apart: False for a copy that the user gets: its hooks collect where the model's do.

    Raises:
        ValueError: if it is no module, or a part of it is a script, which can be neither changed
            nor traced.

    Example:
        >>> net = nn.Linear(2, 2)
        >>> net.cache = net(torch.ones(1, 2))
        >>> double = working_copy(net, torch.float64)
        >>> double.cache.requires_grad, double.cache.dtype, double.weight.dtype
        (False, torch.float64, torch.float64)
    """
    check_network(model)
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError(
                f"Cannot analyse {type(model).__name__}: expected modules in Python, but "
                f"`{name or 'the model'}` is a TorchScript module. Give the module that it was "
                "made from."
            )
    memo: dict[int, Any] = {id(shared): shared for shared in not_copyable(model)}
    functions = list(own_functions(model))
    for function in functions:
        memo[id(function)] = with_empty_cells(function)
    with CopyTensors(memo, dtype):
        copied = copy.deepcopy(model, memo)
        for function in functions:
            fill_cells(memo[id(function)], function, memo, apart)
    return copied if dtype is None else copied.to(dtype)


def not_copyable(model: nn.Module) -> Iterator[Any]:
    """Yield what the modules hold, however deep in lists and dicts, and ``deepcopy`` refuses."""
    seen: set[int] = set()
    waiting = [
        value
        for module in model.modules()
        for key, value in vars(module).items()
        if key not in ("_parameters", "_buffers", "_modules")
    ]
    while waiting:
        value = waiting.pop()
        known = isinstance(value, (type, Tensor, nn.Module)) or hasattr(value, "__deepcopy__")
        if known or id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, dict):
            waiting += [*value.keys(), *value.values()]
        elif isinstance(value, (list, tuple, set, frozenset)):
            waiting += value
        elif refuses(value):
            yield value
        else:
            waiting += getattr(value, "__dict__", {}).values()


def refuses(value: Any) -> bool:
    """Whether an object says that it cannot be copied."""
    try:
        value.__reduce_ex__(4)
    except Exception:
        return True
    return False


class CopyTensors(TorchFunctionMode):
    """While it is active, ``copy.deepcopy`` copies tensors with a history too, and converts."""

    def __init__(self, memo: dict[int, Any], dtype: torch.dtype | None) -> None:
        super().__init__()
        self.memo, self.dtype = memo, dtype

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is not Tensor.__deepcopy__:
            return func(*args, **(kwargs or {}))
        tensor = args[0]
        if id(tensor) in self.memo:
            return self.memo[id(tensor)]
        if tensor.is_leaf:
            copied = func(*args, **(kwargs or {}))
        else:
            copied = tensor.detach().clone().requires_grad_(False)
        if self.dtype is not None and copied.is_floating_point():
            copied = copied.detach().to(self.dtype).requires_grad_(copied.requires_grad)
        self.memo[id(tensor)] = copied
        return copied


def own_functions(model: nn.Module) -> Iterator[types.FunctionType]:
    """Yield the plain functions with a closure that modules have as hooks or as attributes."""
    found: dict[int, types.FunctionType] = {}
    for module in model.modules():
        values = list(vars(module).values())
        for name, table in vars(module).items():
            if name.endswith("_hooks") and isinstance(table, dict):
                values += list(table.values())
        functions = (v for v in values if isinstance(v, types.FunctionType) and v.__closure__)
        found.update({id(function): function for function in functions})
    yield from found.values()


def with_empty_cells(function: types.FunctionType) -> types.FunctionType:
    """Return the same function over variables that are not set yet."""
    cells = tuple(types.CellType() for _ in function.__closure__ or ())
    twin = types.FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, cells
    )
    twin.__kwdefaults__ = function.__kwdefaults__
    twin.__dict__.update(function.__dict__)
    return twin


def fill_cells(
    twin: types.FunctionType, function: types.FunctionType, memo: dict[int, Any], apart: bool
) -> None:
    """Set the variables of a function's twin: copies of what the model or a collection is."""
    for new, old in zip(twin.__closure__ or (), function.__closure__ or (), strict=True):
        try:
            value = old.cell_contents
        except ValueError:  # not set yet either
            continue
        if id(value) in memo or (apart and isinstance(value, (list, dict, set, Tensor))):
            value = copy.deepcopy(value, memo)
        new.cell_contents = value


@contextmanager
def same_random_state() -> Iterator[None]:
    """Leave the random generators of torch (all devices), numpy and Python as they were.

    Example:
        >>> with same_random_state():
        ...     first = torch.rand(1)
        >>> bool(first == torch.rand(1))
        True
    """
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    try:
        with torch.random.fork_rng(list(devices)):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
