"""Engines that run a layer or network: eager, torch.compile, ONNX Runtime, OpenVINO.

Each is prepared for one input and for torch's present number of threads, and then called without
arguments, so that a timing holds nothing but the computation.
"""

from __future__ import annotations

import copy
import io
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from ssl_lightning.graph import ExampleInput, Flat, Inputs, as_inputs
from ssl_lightning.kernels import ColumnSparseConv2d
from ssl_lightning.measure.csr import CsrProduct
from ssl_lightning.suggest import pick

Call = Callable[[], object]

PACKAGES: dict[str, tuple[str, ...]] = {
    "eager": (),
    "compile": (),
    "onnxruntime": ("onnx", "onnxruntime", "onnxscript"),
    "openvino": ("openvino",),
}
"""Engine -> what it needs beside torch."""

TORCH_ENGINES = ("eager", "compile")
TORCH_ONLY = (ColumnSparseConv2d, CsrProduct)
"""Layers with operators that exporters cannot write down."""

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 5e-2}
"""Of the largest output: how far an engine may be from eager."""


def prepare(engine: str, model: nn.Module, example_input: ExampleInput) -> Call:
    """Build a call that runs ``model`` on ``example_input`` and returns the output as a tensor.

    Args:
        engine: one of :data:`PACKAGES`.
        model: in evaluation mode, on the CPU.
        example_input: batch, or all inputs; their values are those that are computed with.

    Raises:
        ValueError: if there is no such engine, its packages are not installed, or it cannot run
            this type.

    Example:
        >>> call = prepare("eager", nn.Linear(3, 2).eval(), torch.ones(1, 3))
        >>> call().shape
        torch.Size([1, 2])
    """
    require(engine)
    own = {type(layer).__name__ for layer in model.modules() if isinstance(layer, TORCH_ONLY)}
    if own and engine not in TORCH_ENGINES:
        raise ValueError(
            f"The engine {engine!r} does not know the operators of {' and '.join(sorted(own))}. "
            "Run such layers in eager or compile."
        )
    with torch.inference_mode():
        return _ENGINES[engine](model, as_inputs(example_input))


@torch.no_grad()
def prepare_checked(
    engine: str, model: nn.Module, example_input: ExampleInput, expected: object
) -> Call:
    """As :func:`prepare`, if the engine computes what eager does.

    Args:
        engine: one of :data:`PACKAGES`.
        model: as :func:`prepare` takes it.
        example_input: as :func:`prepare` takes it.
        expected: eager's output for it.

    Raises:
        ValueError: as :func:`prepare`, or if the output is no tensor or differs by more than
            :data:`TOLERANCE`. Exporters and compilers raise errors of their own.

    Example:
        >>> model, x = nn.Linear(3, 2).eval(), torch.ones(1, 3)
        >>> prepare_checked("eager", model, x, torch.zeros(1, 2))
        Traceback (most recent call last):
        ...
        ValueError: The engine 'eager' computes something else: expected outputs within ...
    """
    if not isinstance(expected, Tensor):
        raise ValueError(
            f"The engine {engine!r} expects a model that returns one tensor, got "
            f"{type(expected).__name__}. Measure such a model in eager."
        )
    call = prepare(engine, model, example_input)
    found = call()
    assert isinstance(found, Tensor)
    bound = TOLERANCE[type_of(as_inputs(example_input), expected.dtype)] * float(
        expected.abs().max()
    )
    error = float((found.double() - expected.double()).abs().max())
    if not error <= bound:
        raise ValueError(
            f"The engine {engine!r} computes something else: expected outputs within {bound:.2g} "
            f"of eager's, got a difference of {error:.2g}. Do not use it for this model."
        )
    return call


def require(engine: str) -> None:
    """Make sure that there is such an engine, and that its packages are installed.

    Raises:
        ValueError: if not.
    """
    pick("engine", engine, PACKAGES)
    missing = missing_packages(engine)
    if missing:
        raise ValueError(
            f"The engine {engine!r} needs {' and '.join(missing)}, not installed here. Install "
            "them with `pip install 'ssl-lightning[engines]'`, or leave the engine out."
        )


def forget_compiled() -> None:
    """Drop all that torch.compile has compiled: it is for one number of threads."""
    if "torch._dynamo" in sys.modules:  # else nothing is compiled, and the import is slow
        torch.compiler.reset()


def missing_packages(engine: str) -> list[str]:
    """Return what would have to be installed for an engine."""
    return [name for name in PACKAGES[engine] if find_spec(name) is None]


def installed_engines() -> list[str]:
    """Return the engines that can run here."""
    return [engine for engine in PACKAGES if not missing_packages(engine)]


def engine_versions() -> dict[str, str]:
    """Return package -> version of what the engines run on, where it is installed."""
    found = {}
    for package in ("torch", *{name for names in PACKAGES.values() for name in names}):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return dict(sorted(found.items()))


def type_of(inputs: Inputs, default: torch.dtype = torch.float32) -> torch.dtype:
    """Return the type of the first floating-point tensor."""
    return next((x.dtype for x in inputs.tensors() if x.is_floating_point()), default)


def flat(model: nn.Module, inputs: Inputs) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Return a network that takes the inputs' tensors by position, and those."""
    tensors = tuple(tensor.contiguous() for tensor in inputs.tensors())
    return (model if inputs.by_position() else Flat(model, inputs).eval()), tensors


def _eager(model: nn.Module, inputs: Inputs) -> Call:
    return partial(model, *inputs.args, **inputs.kwargs)


def _compile(model: nn.Module, inputs: Inputs) -> Call:
    with _quiet():
        compiled = torch.compile(model, dynamic=False)
        compiled(*inputs.args, **inputs.kwargs)
    return partial(compiled, *inputs.args, **inputs.kwargs)


def _onnxruntime(model: nn.Module, inputs: Inputs) -> Call:
    """Bind inputs and output once, as one would in a program that cares."""
    import onnxruntime

    if type_of(inputs) != torch.float32:
        raise ValueError(
            "The engine 'onnxruntime' runs convolutions on the CPU in float32 only, got "
            f"{type_of(inputs)}. Leave it out for this type."
        )
    network, tensors = flat(model, inputs)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # its threads wait busily only while it runs, not while another engine is timed
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(
        _onnx_bytes(network, tensors), options, providers=["CPUExecutionProvider"]
    )
    with torch.inference_mode():
        output = network(*tensors).contiguous().clone()
    binding = session.io_binding()
    names = [entry.name for entry in session.get_inputs()]
    bound = [(name, x, binding.bind_input) for name, x in zip(names, tensors, strict=True)]
    bound.append((session.get_outputs()[0].name, output, binding.bind_output))
    for name, tensor, bind in bound:
        kind = str(tensor.dtype).removeprefix("torch.")
        bind(name, "cpu", 0, kind, tuple(tensor.shape), tensor.data_ptr())

    def run(kept: tuple[Tensor, ...] = (*tensors, output)) -> Tensor:
        session.run_with_iobinding(binding)
        return kept[-1]

    return run


def _onnx_bytes(model: nn.Module, tensors: tuple[Tensor, ...]) -> bytes:
    with _quiet(), torch.inference_mode(False), torch.no_grad():
        copies = tuple(x.clone() for x in tensors)
        program: Any = torch.onnx.export(model, copies, dynamo=True, verbose=False)
    file = io.BytesIO()
    file.write(program.model_proto.SerializeToString())
    return file.getvalue()


def _openvino(model: nn.Module, inputs: Inputs) -> Call:
    """Compute in the type of the input: by itself it would take bfloat16 where it is faster."""
    import openvino

    with _quiet(), torch.inference_mode(False), torch.no_grad():
        # the type to compute in is a hint
        wide = copy.deepcopy(model).float()
        network, tensors = flat(wide, inputs.map(lambda x: widened(x).clone()))
        exported = torch.export.export(network, tensors)
        graph = openvino.convert_model(exported, input=[x.shape for x in tensors])
    compiled = openvino.Core().compile_model(
        graph,
        "CPU",
        {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "INFERENCE_PRECISION_HINT": "bf16" if type_of(inputs) == torch.bfloat16 else "f32",
        },
    )
    request = compiled.create_infer_request()
    for i, x in enumerate(tensors):
        request.set_input_tensor(i, openvino.Tensor(x.numpy(), shared_memory=True))
    output = torch.from_numpy(request.get_output_tensor().data)

    def run(_: tuple[Tensor, ...] = tensors) -> Tensor:
        request.infer()
        return output

    return run


def widened(x: Tensor) -> Tensor:
    """Return a floating-point tensor in float32; others as they are."""
    return x.float() if x.is_floating_point() else x


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep back what exporters and compilers say about themselves."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


_ENGINES: Mapping[str, Callable[[nn.Module, Inputs], Call]] = {
    "eager": _eager,
    "compile": _compile,
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
}
