"""The engines that come with the library: eager, torch.compile, ONNX Runtime, OpenVINO, .pt2."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ssl_lightning.graph import Inputs
from ssl_lightning.measure.capturing import Captured, numbered
from ssl_lightning.measure.engine import Bind, Call, Engine, prepare_by_file, quiet
from ssl_lightning.measure.int8 import quantize_onnx, quantize_openvino
from ssl_lightning.measure.openvino_core import openvino_core

ONNX_LIMIT = 2_000_000_000
"""Bytes of weights above which a second file has them: one ONNX file holds 2 GiB."""


def prepare_eager(model: nn.Module, inputs: Inputs) -> Call:
    """Return the call of the network itself."""
    return partial(model, *inputs.args, **inputs.kwargs)


def prepare_compiled(model: nn.Module, inputs: Inputs) -> Call:
    """Return the call of the compiled network, which has run once."""

    def run(*args: Any, **kwargs: Any) -> Any:
        return model(*args, **kwargs)

    # torch keeps 8 compiled forms of one code object, then runs it in eager: each has its own
    run.__code__ = run.__code__.replace()
    with quiet():
        compiled = torch.compile(run, dynamic=False)
        compiled(*inputs.args, **inputs.kwargs)
    return partial(compiled, *inputs.args, **inputs.kwargs)


def write_program(captured: Captured, path: Path) -> None:
    """Write a ``.pt2`` file."""
    torch.export.save(captured.program, path)


def load_program(path: Path) -> Bind:
    """Open a ``.pt2`` file."""
    module = torch.export.load(path).module()
    return lambda inputs: torch.no_grad()(partial(module, *inputs.args, **inputs.kwargs))


def write_onnx(captured: Captured, path: Path) -> None:
    """Write an ``.onnx`` file; weights of more than 2 GB are in a second one beside it."""
    program = captured.program
    outputs = [name for name in program.graph_signature.user_outputs if isinstance(name, str)]
    weights = sum(t.numel() * t.element_size() for t in program.state_dict.values())
    torch.onnx.export(
        program,
        f=path,
        dynamo=True,
        input_names=captured.names,
        output_names=numbered("output", len(outputs)),
        dynamic_shapes=named_once(captured.dims),
        external_data=weights > ONNX_LIMIT,
        verbose=False,
    )


def named_once(dims: Sequence[dict[int, str]]) -> tuple[dict[int, str] | None, ...] | None:
    """Return names of dimensions, each where it is met first: the exporter ties those it knows.

    Example:
        >>> named_once([{0: "batch", 2: "height"}, {0: "batch"}])
        ({0: 'batch', 2: 'height'}, None)
    """
    known: set[str] = set()
    found = []
    for own in dims:
        new = {dim: name for dim, name in own.items() if name not in known}
        known.update(new.values())
        found.append(new or None)
    return tuple(found) if known else None


def split_onnx(path: Path, parts: Sequence[Path]) -> None:
    """Cut an ``.onnx`` file into one per output."""
    import onnx
    from onnx.utils import Extractor

    model = onnx.load(path)
    cutter = Extractor(model)
    for part, x, y in zip(parts, model.graph.input, model.graph.output, strict=True):
        onnx.save(cutter.extract_model([x.name], [y.name]), part)


def load_onnx(path: Path) -> Bind:
    """Open an ``.onnx`` file; inputs and outputs are bound, as in a program that cares for time."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # errors are raised
    # its threads wait busily only while it runs, not while another engine is timed
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]

    def bind(inputs: Inputs) -> Call:
        given = [x.detach().contiguous() for x in inputs.tensors()]
        arrays = {name: x.numpy() for name, x in zip(names, given, strict=True)}
        outputs = [torch.from_numpy(y).clone() for y in session.run(None, arrays)]
        binding = session.io_binding()
        bound = [(name, x, binding.bind_input) for name, x in zip(names, given, strict=True)]
        results = [entry.name for entry in session.get_outputs()]
        bound += [(n, y, binding.bind_output) for n, y in zip(results, outputs, strict=True)]
        for name, x, where in bound:
            kind = str(x.dtype).removeprefix("torch.")
            where(name, "cpu", 0, kind, tuple(x.shape), x.data_ptr())

        def run(_: list[Tensor] = given) -> list[Tensor]:
            session.run_with_iobinding(binding)
            return outputs

        return run

    return bind


def write_openvino(captured: Captured, path: Path) -> None:
    """Write an ``.xml`` file and its weights, ``.bin``, in full precision."""
    import openvino

    model = openvino.convert_model(captured.program)
    tensors = captured.inputs.tensors()
    for entry, tensor, dims in zip(model.inputs, tensors, captured.dims, strict=True):
        shape = [-1 if dim in dims else size for dim, size in enumerate(tensor.shape)]
        entry.get_node().set_partial_shape(openvino.PartialShape(shape))
    model.validate_nodes_and_infer_types()
    openvino.save_model(model, path, compress_to_fp16=False)


def split_openvino(path: Path, parts: Sequence[Path]) -> None:
    """Cut an ``.xml`` file into one per output."""
    import openvino

    model = openvino_core().read_model(path)
    pairs = zip(parts, model.get_parameters(), model.get_results(), strict=True)
    for part, parameter, result in pairs:
        openvino.save_model(openvino.Model([result], [parameter]), part, compress_to_fp16=False)


def load_openvino(path: Path, precision: str = "f32") -> Bind:
    """Open an ``.xml`` file; by itself OpenVINO would compute in bfloat16 where it is faster."""
    import openvino

    compiled = openvino_core().compile_model(
        path,
        "CPU",
        {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "INFERENCE_PRECISION_HINT": precision,
        },
    )
    dynamic = any(port.partial_shape.is_dynamic for port in compiled.outputs)

    def bind(inputs: Inputs) -> Call:
        request = compiled.create_infer_request()
        given = [x.detach().contiguous() for x in inputs.tensors()]
        for i, x in enumerate(given):
            request.set_input_tensor(i, openvino.Tensor(x.numpy(), shared_memory=True))

        def results() -> list[Tensor]:
            tensors = [request.get_output_tensor(i) for i in range(len(compiled.outputs))]
            return [torch.from_numpy(tensor.data) for tensor in tensors]

        fixed = [] if dynamic else results()  # the same memory in every call

        def run(_: list[Tensor] = given) -> list[Tensor]:
            request.infer()
            return results() if dynamic else fixed

        return run

    return bind


def prepare_openvino(model: nn.Module, inputs: Inputs) -> Call:
    """Compute in the type of the input, which is a hint: the file is in float32."""
    with torch.inference_mode(False):
        wide = copy.deepcopy(model).float()
    half = type_of(inputs) == torch.bfloat16
    engine = replace(OPENVINO, load=OPENVINO.half) if half else OPENVINO
    return prepare_by_file(engine, wide, inputs.map(widened))


def type_of(inputs: Inputs, default: torch.dtype = torch.float32) -> torch.dtype:
    """Return the type of the first floating-point tensor."""
    return next((x.dtype for x in inputs.tensors() if x.is_floating_point()), default)


def widened(x: Tensor) -> Tensor:
    """Return a floating-point tensor in float32; others as they are."""
    return x.float() if x.is_floating_point() else x


EAGER = Engine("eager", prepare_eager, any_operator=True)
COMPILE = Engine("compile", prepare_compiled, any_operator=True)
ONNXRUNTIME = Engine(
    "onnxruntime",
    export=write_onnx,
    load=load_onnx,
    split=split_onnx,
    quantize=quantize_onnx,
    suffix=".onnx",
    format="onnx",
    packages=("onnx", "onnxruntime", "onnxscript"),
    extra="engines",
    dtypes=(torch.float32,),
)
OPENVINO = Engine(
    "openvino",
    prepare=prepare_openvino,
    export=write_openvino,
    load=load_openvino,
    split=split_openvino,
    half=partial(load_openvino, precision="bf16"),
    quantize=quantize_openvino,
    suffix=".xml",
    title="OpenVINO",
    packages=("openvino",),
    extra="engines",
)
TORCH_EXPORT = Engine(
    "torch_export",
    export=write_program,
    load=load_program,
    suffix=".pt2",
    title="the reloaded program",
    by_position=False,
    any_operator=True,
    timed=False,  # it runs eager's operators
)
BUILT_IN = (EAGER, COMPILE, ONNXRUNTIME, OPENVINO, TORCH_EXPORT)
