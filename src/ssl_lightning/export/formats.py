"""What a file format is: how to write a captured network, and how to run what was written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

Runner: TypeAlias = Callable[[Sequence[Tensor]], list[Tensor]]
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
        write: writes a captured network to a path; told whether its batch dimension is dynamic.
        load: opens a file and returns what runs it.
    """

    suffix: str
    packages: tuple[str, ...]
    engine: str
    write: Callable[[ExportedProgram, Path, bool], None]
    load: Callable[[Path], Runner]

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


def write_program(program: ExportedProgram, path: Path, dynamic: bool) -> None:
    """Write a ``.pt2`` file."""
    torch.export.save(program, path)


def load_program(path: Path) -> Runner:
    """Open a ``.pt2`` file."""
    module = torch.export.load(path).module()

    def run(inputs: Sequence[Tensor]) -> list[Tensor]:
        with torch.no_grad():
            return tensors_of(module(*inputs))

    return run


def write_onnx(program: ExportedProgram, path: Path, dynamic: bool) -> None:
    """Write an ``.onnx`` file; weights of more than 2 GB go to a second one beside it."""
    inputs = names("input", len(program.graph_signature.user_inputs))
    outputs = names("output", len(program.graph_signature.user_outputs))
    weights = sum(t.numel() * t.element_size() for t in program.state_dict.values())
    torch.onnx.export(
        program,
        f=path,
        dynamo=True,
        input_names=inputs,
        output_names=outputs,
        dynamic_shapes=({0: "batch"}, *[None] * (len(inputs) - 1)) if dynamic else None,
        external_data=weights > ONNX_LIMIT,
        verbose=False,
    )


def names(stem: str, count: int) -> list[str]:
    """Return names for so many inputs or outputs.

    Example:
        >>> names("input", 1), names("output", 2)
        (['input'], ['output_0', 'output_1'])
    """
    return [stem] if count == 1 else [f"{stem}_{index}" for index in range(count)]


def load_onnx(path: Path) -> Runner:
    """Open an ``.onnx`` file with onnxruntime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    known = [entry.name for entry in session.get_inputs()]

    def run(inputs: Sequence[Tensor]) -> list[Tensor]:
        arrays = {name: x.numpy() for name, x in zip(known, inputs, strict=True)}
        return [torch.from_numpy(output) for output in session.run(None, arrays)]

    return run


def write_openvino(program: ExportedProgram, path: Path, dynamic: bool) -> None:
    """Write an ``.xml`` file and its weights, ``.bin``, in full precision."""
    import openvino

    model = openvino.convert_model(program)
    shapes = [list(meta_of(node).shape) for node in input_nodes(program)]
    for entry, shape in zip(model.inputs, shapes, strict=True):
        batch = [-1] if dynamic else [int(shape[0])]
        entry.get_node().set_partial_shape(
            openvino.PartialShape(batch + [int(n) for n in shape[1:]])
        )
    model.validate_nodes_and_infer_types()
    openvino.save_model(model, path, compress_to_fp16=False)


def input_nodes(program: ExportedProgram) -> list[torch.fx.Node]:
    """Return the nodes of a captured network's inputs, in order."""
    wanted = program.graph_signature.user_inputs
    return [node for node in program.graph.nodes if node.name in wanted]


def meta_of(node: torch.fx.Node) -> Any:
    """Return a tensor without values that has a node's shape and type."""
    return node.meta["val"]


def load_openvino(path: Path) -> Runner:
    """Open an ``.xml`` file with OpenVINO; it computes in float32 even where bfloat16 is faster."""
    import openvino

    model = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(inputs: Sequence[Tensor]) -> list[Tensor]:
        found = model([x.numpy() for x in inputs])
        return [torch.from_numpy(found[index].copy()) for index in range(len(model.outputs))]

    return run


def tensors_of(outputs: object) -> list[Tensor]:
    """Return all tensors in nested lists, tuples and mappings."""
    return [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]


FORMATS: dict[str, Format] = {
    "onnx": Format(
        ".onnx", ("onnx", "onnxscript", "onnxruntime"), "onnxruntime", write_onnx, load_onnx
    ),
    "torch_export": Format(".pt2", (), "the reloaded program", write_program, load_program),
    "openvino": Format(".xml", ("openvino",), "OpenVINO", write_openvino, load_openvino),
}
"""Name -> format."""
