"""Files of networks in int8, made after training by NNCF: weights and activations of eight bits."""

from __future__ import annotations

import logging
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from ssl_lightning.graph import Inputs
from ssl_lightning.measure.engine import quiet
from ssl_lightning.measure.machine import instructions
from ssl_lightning.measure.openvino_core import only_this_core, openvino_core
from ssl_lightning.progress import is_shown

PACKAGES = ("nncf",)
EXTRA = "int8"
WIDE_SUMS = ("avx_vnni", "avx512_vnni", "amx_int8")
"""Instructions that add up products of eight bits in 32."""
ATTENTION = {"ScaledDotProductAttention", "Softmax", "SoftMax", "Attention"}
"""Operations of a graph that has attention: NNCF then treats their surroundings with more care."""


def quantize_openvino(path: Path, to: Path, inputs: Sequence[Inputs]) -> None:
    """Write an ``.xml`` file in int8 beside one in float32."""
    import openvino

    model = openvino_core().read_model(path)
    operations = {node.get_type_name() for node in model.get_ops()}
    items = [tuple(x.numpy() for x in each.tensors()) for each in inputs]
    with only_this_core():
        small = quantized(model, items, operations)
    openvino.save_model(small, to, compress_to_fp16=False)


def quantize_onnx(path: Path, to: Path, inputs: Sequence[Inputs]) -> None:
    """Write an ``.onnx`` file in int8 (QDQ: pairs of operators that round and scale back)."""
    import onnx

    model = onnx.load(path)
    names = [entry.name for entry in model.graph.input]
    operations = {node.op_type for node in model.graph.node}
    items = [
        {name: x.numpy() for name, x in zip(names, each.tensors(), strict=True)} for each in inputs
    ]
    onnx.save(quantized(model, items, operations), to)


def quantized(model: Any, items: Sequence[Any], operations: set[str]) -> Any:
    """Return a model of ONNX or OpenVINO in int8.

    Weights are symmetric with a scale per channel; activations have a zero point (``MIXED``), which
    hard-swish, SiLU and GELU need: they are hardly negative. Ranges span all that was seen on the
    items; NNCF's own choice, the mean over the items, cuts off half of what inputs without pixels
    are. On x86 processors without VNNI, sums of pairs of products are cut off at 16 bits: there
    weights take half of their range (in the first layer they always do).
    """
    with quiet(), progress_on_terminals():
        kind = logging.getLoggerClass()
        try:
            import nncf
            from nncf.quantization.advanced_parameters import OverflowFix
            from nncf.quantization.range_estimator import RangeEstimatorParametersSet
        finally:  # it makes all loggers that are still to come its own, which say things once
            logging.setLoggerClass(kind)

        logging.getLogger("nncf").setLevel(logging.ERROR)
        ranges = RangeEstimatorParametersSet.MINMAX
        return nncf.quantize(
            model,
            nncf.Dataset(items),
            subset_size=len(items),
            preset=nncf.QuantizationPreset.MIXED,
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                activations_range_estimator_params=ranges,
                overflow_fix=OverflowFix.ENABLE if sums_are_cut() else OverflowFix.FIRST_LAYER,
            ),
            model_type=nncf.ModelType.TRANSFORMER if operations & ATTENTION else None,
        )


def sums_are_cut() -> bool:
    """Whether this processor's sums of products of eight bits are cut off at 16 bits."""
    is_x86 = platform.machine().lower() in ("x86_64", "amd64", "i686")
    return is_x86 and not set(instructions()) & set(WIDE_SUMS)


@contextmanager
def progress_on_terminals() -> Iterator[None]:
    """Let NNCF's bars go to the terminal, unless others are there; standard output has results."""
    if sys.stderr.isatty() and not is_shown():
        with redirect_stdout(sys.stderr):
            yield
    else:
        with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
            yield
