"""What a file format is: how to write a captured network, and how to run what was written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ssl_lightning.export.capturing import Captured, numbered
from ssl_lightning.graph import Inputs

Runner: TypeAlias = Callable[[Inputs], list[Tensor]]
"""From inputs to outputs, on the CPU."""

ONNX_LIMIT = 2_000_000_000
"""Bytes of weights above which they go to a file of their own: one ONNX file holds 2 GiB."""


@dataclass(frozen=True)
class Format:
    """A file format and the engine that reads it.

    Attributes:
        suffix: of the file; there may be others beside it.
        packages: modules that must be installed, from the extra ``engines``.
        engine: what runs the file, for messages.
        write: writes a captured network to a path.
        load: opens a file and returns what runs it.
        flat: whether the file takes tensors by position, and nothing else.
    """

    suffix: str
    packages: tuple[str, ...]
    engine: str
    write: Callable[[Captured, Path], None]
    load: Callable[[Path], Runner]
    flat: bool = True

    def require_packages(self, name: str) -> None:
        """Refuse to start without what is needed to write and to check.

        Raises:
            ValueError: naming the packages that are missing and how to get them.
        """
        missing = [package for package in self.packages if find_spec(package) is None]
        if missing:
            raise ValueError(
                f"Export to {name} needs {', '.join(missing)}, which this environment does not "
                "have. Install the extra `engines`: pip install 'ssl-lightning[engines]'."
            )


def write_program(captured: Captured, path: Path) -> None:
    """Write a ``.pt2`` file."""
    torch.export.save(captured.program, path)


def load_program(path: Path) -> Runner:
    """Open a ``.pt2`` file."""
    module = torch.export.load(path).module()

    def run(inputs: Inputs) -> list[Tensor]:
        with torch.no_grad():
            return tensors_of(module(*inputs.args, **inputs.kwargs))

    return run


def write_onnx(captured: Captured, path: Path) -> None:
    """Write an ``.onnx`` file; weights of more than 2 GB go to a second one beside it."""
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


def load_onnx(path: Path) -> Runner:
    """Open an ``.onnx`` file with onnxruntime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are raised
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    known = [entry.name for entry in session.get_inputs()]

    def run(inputs: Inputs) -> list[Tensor]:
        arrays = {name: x.numpy() for name, x in zip(known, inputs.tensors(), strict=True)}
        return [torch.from_numpy(output) for output in session.run(None, arrays)]

    return run


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


def load_openvino(path: Path) -> Runner:
    """Open an ``.xml`` file with OpenVINO; it computes in float32 even where bfloat16 is faster."""
    import openvino

    model = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(inputs: Inputs) -> list[Tensor]:
        found = model([x.numpy() for x in inputs.tensors()])
        return [torch.from_numpy(found[index].copy()) for index in range(len(model.outputs))]

    return run


def tensors_of(outputs: object) -> list[Tensor]:
    """Return all tensors in nested lists, tuples and mappings."""
    return [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]


FORMATS: dict[str, Format] = {
    "onnx": Format(
        ".onnx", ("onnx", "onnxscript", "onnxruntime"), "onnxruntime", write_onnx, load_onnx
    ),
    "torch_export": Format(
        ".pt2", (), "the reloaded program", write_program, load_program, flat=False
    ),
    "openvino": Format(".xml", ("openvino",), "OpenVINO", write_openvino, load_openvino),
}
"""Name -> format."""
