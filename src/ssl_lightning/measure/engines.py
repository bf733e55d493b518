"""The table of engines, which measuring and exporting share.

An engine is prepared for one input and for torch's present number of threads, and then called
without arguments, so that a timing holds nothing but the computation.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from ssl_lightning.compaction.equality import (
    LOWER,
    TOLERANCE,
    compare_shapes,
    difference,
    tensors_of,
)
from ssl_lightning.graph import ExampleInput, as_inputs
from ssl_lightning.kernels import ColumnSparseConv2d
from ssl_lightning.measure.csr import CsrProduct
from ssl_lightning.measure.engine import Call, Engine, prepare_by_file, prepare_side_by_side
from ssl_lightning.measure.machine import package_versions
from ssl_lightning.measure.runtimes import BUILT_IN, type_of
from ssl_lightning.registry import Registration, register
from ssl_lightning.suggest import pick, shortened

TORCH_ONLY = (ColumnSparseConv2d, CsrProduct)
"""Layers with operators that exporters cannot write down."""

ENGINES: dict[str, Engine] = {engine.name: engine for engine in BUILT_IN}
"""Name -> engine."""


def register_engine(engine: Engine, *, replace: bool = False) -> Registration:
    """Add an engine of your own to the table, for ``benchmark`` and ``export_model`` alike.

    Args:
        engine: with a name, and a format if it writes files, that no other engine has.
        replace: whether there may be another engine of that name already.

    Returns:
        What ends it: ``undo()``; also a context manager.

    Raises:
        ValueError: if its name, unless ``replace``, or its format is another engine's already.

    Example:
        >>> own = Engine("again", prepare=lambda model, inputs: lambda: inputs.run(model))
        >>> with register_engine(own):
        ...     "again" in ENGINES
        True
    """
    where = "register_engine"
    if not isinstance(engine, Engine):
        raise ValueError(f"{where}: expected an Engine, got {shortened(engine)}. Make one.")
    other = file_formats().get(format_of(engine)) if engine.export else None
    if other is not None and other.name != engine.name:
        raise ValueError(
            f"{where}: the format {format_of(engine)!r} of {engine.name!r} is already that of the "
            f"engine {other.name!r}. Take another."
        )
    return register(where, engine.name, (ENGINES, engine.name, engine), replace=replace)


def find_engine(name: str) -> Engine:
    """Return an engine whose packages are installed.

    Raises:
        ValueError: if there is no such engine, or its packages are not installed.
    """
    engine = pick("engine", name, ENGINES, "register_engine")
    engine.require()
    return engine


def file_formats() -> dict[str, Engine]:
    """Return format of files -> engine that reads and writes it.

    Example:
        >>> list(file_formats())
        ['onnx', 'openvino', 'torch_export']
    """
    return {format_of(engine): engine for engine in ENGINES.values() if engine.export}


def format_of(engine: Engine) -> str:
    """Return the name of an engine's format."""
    return engine.format or engine.name


def installed_engines() -> list[str]:
    """Return the engines that ``engines="all"`` measures here."""
    return [engine.name for engine in ENGINES.values() if engine.timed and engine.available]


def engine_versions(engines: Iterable[Engine] | None = None) -> dict[str, str]:
    """Return package -> version of what engines (all, by default) run on, where it is installed."""
    used = ENGINES.values() if engines is None else engines
    return package_versions(["torch", *{name for engine in used for name in engine.packages}])


def prepare(name: str, model: nn.Module, example_input: ExampleInput) -> Call:
    """Build a call that runs ``model`` on ``example_input`` and returns the output.

    Args:
        name: one of :data:`ENGINES`.
        model: in evaluation mode, on the CPU.
        example_input: batch, or all inputs; their values are those that are computed with.

    Raises:
        ValueError: if there is no such engine, its packages are not installed, or it cannot run
            this type or layer. Exporters and compilers raise errors of their own.

    Example:
        >>> call = prepare("eager", nn.Linear(3, 2).eval(), torch.ones(1, 3))
        >>> call().shape
        torch.Size([1, 2])
    """
    engine, inputs = find_engine(name), as_inputs(example_input)
    own = {type(layer).__name__ for layer in model.modules() if isinstance(layer, TORCH_ONLY)}
    if own and not engine.any_operator:
        raise ValueError(
            f"The engine {name!r} does not know the operators of {' and '.join(sorted(own))}. "
            "Run such layers in eager or compile."
        )
    kind = type_of(inputs)
    if engine.dtypes and kind not in engine.dtypes:
        known = ", ".join(str(dtype).removeprefix("torch.") for dtype in engine.dtypes)
        raise ValueError(
            f"The engine {name!r} computes in {known} only, got {kind}. Leave it out for this type."
        )
    with torch.inference_mode():
        if engine.prepare is not None:
            return engine.prepare(model, inputs)
        return prepare_by_file(engine, model, inputs)


def prepare_several(name: str, parts: Sequence[tuple[nn.Module, Tensor]]) -> list[Call]:
    """Build a call for each of several networks of one input, such as layers, at once if possible.

    Args:
        name: one of :data:`ENGINES`.
        parts: networks as :func:`prepare` takes them, each with its input; all of one type.

    Raises:
        ValueError: as :func:`prepare`.

    Example:
        >>> x = torch.tensor(-1.0)
        >>> calls = prepare_several("eager", [(nn.ReLU(), x), (nn.Tanh(), x)])
        >>> [round(float(call()), 2) for call in calls]
        [0.0, -0.76]
    """
    engine = find_engine(name)
    single = all(x.dtype == torch.float32 for _, x in parts)  # what files compute in
    if engine.split is None or not single or len(parts) < 2:
        return [prepare(name, part, x) for part, x in parts]
    with torch.inference_mode():
        return prepare_side_by_side(engine, parts)


@torch.no_grad()
def prepare_checked(
    name: str, model: nn.Module, example_input: ExampleInput, expected: object
) -> Call:
    """As :func:`prepare`, if the engine computes what eager does.

    Args:
        name: one of :data:`ENGINES`.
        model: as :func:`prepare` takes it.
        example_input: as :func:`prepare` takes it.
        expected: eager's output for it.

    Raises:
        ValueError: as :func:`prepare`, or if there is no tensor in the output, or one differs by
            more than the tolerance of its type. Exporters and compilers raise errors of their own.

    Example:
        >>> model, x = nn.Linear(3, 2).eval(), torch.ones(1, 3)
        >>> prepare_checked("eager", model, x, torch.zeros(1, 2))
        Traceback (most recent call last):
        ...
        ValueError: The engine 'eager' computes something else than eager: outputs differ by ...
    """
    tensors = tensors_of(expected)
    if not tensors:
        raise ValueError(
            f"The engine {name!r} expects a model that returns tensors, got "
            f"{type(expected).__name__}. Measure such a model in eager."
        )
    call = prepare(name, model, example_input)
    found = call()
    if (text := compare_shapes(tensors, tensors_of(found))) is not None:
        raise ValueError(
            f"The engine {name!r} does not return what eager does: {text} (torch tensors, also in "
            f"lists, tuples, mappings; got {type(found).__name__}). Do not use it for this model."
        )
    error = difference(expected, found)
    tolerance = LOWER.get(type_of(as_inputs(example_input), tensors[0].dtype), TOLERANCE)
    if not error <= tolerance:
        raise ValueError(
            f"The engine {name!r} computes something else than eager: outputs differ by "
            f"{error:.1e} of their scale, more than {tolerance:g}. Do not use it for this model."
        )
    return call


def forget_compiled() -> None:
    """Drop all that torch.compile has compiled: it is for one number of threads."""
    if "torch._dynamo" in sys.modules:  # else nothing is compiled, and the import is slow
        torch.compiler.reset()
