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
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

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


def prepare(engine: str, model: nn.Module, example_input: Tensor) -> Call:
    """Build a call that runs ``model`` on ``example_input`` and returns the output as a tensor.

    Args:
        engine: one of :data:`PACKAGES`.
        model: in evaluation mode, on the CPU.
        example_input: batch; its values are those that are computed with.

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
        return _ENGINES[engine](model, example_input)


@torch.no_grad()
def prepare_checked(engine: str, model: nn.Module, example_input: Tensor, expected: object) -> Call:
    """As :func:`prepare`, if the engine computes what eager does.

    Args:
        engine: one of :data:`PACKAGES`.
        model: as :func:`prepare` takes it.
        example_input: batch.
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
    bound = TOLERANCE[example_input.dtype] * float(expected.abs().max())
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


def _eager(model: nn.Module, x: Tensor) -> Call:
    return lambda: model(x)


def _compile(model: nn.Module, x: Tensor) -> Call:
    with _quiet():
        compiled = torch.compile(model, dynamic=False)
        compiled(x)
    return lambda: compiled(x)


def _onnxruntime(model: nn.Module, x: Tensor) -> Call:
    """Bind input and output once, as one would in a program that cares."""
    import onnxruntime

    if x.dtype != torch.float32:
        raise ValueError(
            "The engine 'onnxruntime' runs convolutions on the CPU in float32 only, got "
            f"{x.dtype}. Leave it out for this type."
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # its threads wait busily only while it runs, not while another engine is timed
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(
        _onnx_bytes(model, x), options, providers=["CPUExecutionProvider"]
    )
    with torch.inference_mode():
        output = model(x).contiguous().clone()
    binding = session.io_binding()
    for name, tensor, bind in (
        (session.get_inputs()[0].name, x.contiguous(), binding.bind_input),
        (session.get_outputs()[0].name, output, binding.bind_output),
    ):
        bind(name, "cpu", 0, "float32", tuple(tensor.shape), tensor.data_ptr())

    def run(kept: tuple[Tensor, ...] = (x.contiguous(), output)) -> Tensor:
        session.run_with_iobinding(binding)
        return kept[1]

    return run


def _onnx_bytes(model: nn.Module, x: Tensor) -> bytes:
    with _quiet(), torch.inference_mode(False), torch.no_grad():
        program: Any = torch.onnx.export(model, (x.clone(),), dynamo=True, verbose=False)
    file = io.BytesIO()
    file.write(program.model_proto.SerializeToString())
    return file.getvalue()


def _openvino(model: nn.Module, x: Tensor) -> Call:
    """Compute in the type of the input: by itself it would take bfloat16 where it is faster."""
    import openvino

    with _quiet(), torch.inference_mode(False), torch.no_grad():
        wide = copy.deepcopy(model).float()  # the type to compute in is a hint
        exported = torch.export.export(wide, (x.clone().float(),))
        graph = openvino.convert_model(exported, input=[x.shape])
    compiled = openvino.Core().compile_model(
        graph,
        "CPU",
        {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "INFERENCE_PRECISION_HINT": "bf16" if x.dtype == torch.bfloat16 else "f32",
        },
    )
    request = compiled.create_infer_request()
    kept = x.contiguous().float()
    request.set_input_tensor(openvino.Tensor(kept.numpy(), shared_memory=True))
    output = torch.from_numpy(request.get_output_tensor().data)

    def run(_: Tensor = kept) -> Tensor:
        request.infer()
        return output

    return run


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


_ENGINES: Mapping[str, Callable[[nn.Module, Tensor], Call]] = {
    "eager": _eager,
    "compile": _compile,
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
}
