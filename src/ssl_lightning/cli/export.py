"""export: a checkpoint, a compact network or a zoo entry, for another runtime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from ssl_lightning.cli.int8 import IMAGES, Task, written_int8
from ssl_lightning.cli.parse import call
from ssl_lightning.cli.sources import in_form, named_network
from ssl_lightning.export import ExportResult, export_model
from ssl_lightning.export.exporting import TOLERANCE
from ssl_lightning.export.int8 import MAX_RISE, int8_formats
from ssl_lightning.measure.engines import file_formats
from ssl_lightning.suggest import pick


def run(name: str, arguments: list[str]) -> None:
    """Carry out the command."""
    call(export_network, name, arguments)


def export_network(
    network: str,
    format: str = "onnx",  # noqa: A002 - the field's name for it
    output: str | None = None,
    batch: int | Literal["dynamic"] = "dynamic",
    size: Literal["dynamic", "fixed"] = "dynamic",
    masked: bool = False,
    tolerance: float = TOLERANCE,
    int8: bool = False,
    data: str | None = None,
    images: int = IMAGES,
    max_rise: float = MAX_RISE,
    backbone_args: dict[str, Any] | None = None,
    model: str | None = None,
    config: str | None = None,
) -> None:
    """Write a network for another runtime, once that runtime was seen to compute the same.

    Args:
        network: checkpoint that ``fit`` wrote, folder that ``compact`` wrote, ``zoo:<name>``, or
            name of a backbone, such as ``timm:mobilenetv3_small_100``.
        format: onnx, torch_export or openvino.
        output: file to write; default: ``model`` with the format's suffix in the folder above the
            checkpoint's, or, for a folder or a name, that with this suffix.
        batch: the one batch size that the file takes, or dynamic.
        size: dynamic (the file takes other heights and widths where the network does), or fixed.
        masked: leave the zeros of a checkpoint in; otherwise it is compacted first.
        tolerance: largest difference of outputs to accept, relative to the largest output.
        int8: write it in eight bits (onnx and openvino), if its error on validation images is
            about the same.
        data: for int8, config whose ``data`` names the images, or a data set such as mnist;
            default: the config.yaml that the network was trained with, if it lies beside it.
        images: for int8, training images that the ranges of activations are taken from.
        max_rise: for int8, largest rise of the error to accept, in points of a percent.
        backbone_args: arguments of a backbone given by name, such as '{"pretrained": true}'.
        model: import path of the network's class, such as ``my_package.MyNetwork``, if it is your
            own.
        config: instead, the config that it was trained with, whose ``model.backbone`` is used.
    """
    if not int8 and (data, images, max_rise) != (None, IMAGES, MAX_RISE):
        raise ValueError(
            "export: --data, --images and --max_rise are for int8. Add --int8, or leave them out."
        )
    kinds = ("format with int8", int8_formats()) if int8 else ("export format", file_formats())
    engine = pick(kinds[0], format, kinds[1])
    named = named_network(network, model, config, backbone_args)
    net, example = in_form(named, masked=masked), named.example()
    ending = f"-int8{engine.suffix}" if int8 else engine.suffix
    path = Path(output) if output else named.beside(f"model{ending}", ending)
    console = Console()
    if int8:
        task = Task.of("export --int8", named, data, images)
        settings: dict[str, Any] = {"format": format, "batch": batch, "size": size}
        settings |= {"tolerance": tolerance, "max_rise": max_rise}
        written_int8(named, net, task, path, settings)
        console.print(f"Wrote {path}")
        return
    result = export_model(net, example, path, format, batch=batch, size=size, tolerance=tolerance)
    sizes = ", ".join(map(str, result.batch_sizes))
    console.print(
        f"{result.engine} against torch on random inputs, batch size {sizes}: outputs differ by "
        f"{result.difference:.1e} of their scale (tolerance {result.tolerance:g})"
    )
    console.print(what_sizes(result, example.shape[2:]))
    console.print(f"Wrote {result.path}")


def what_sizes(result: ExportResult, own: Sequence[int]) -> str:
    """Say which heights and widths a file takes.

    Example:
        >>> file = Path("m.onnx")
        >>> result = ExportResult(file, "onnx", "onnxruntime", (1,), 0.0, 1e-4, ((64, 32),))
        >>> what_sizes(result, (32, 32))
        'height and width: dynamic, compared at 64x32'
    """
    if not result.sizes:
        return f"height and width: fixed at {'x'.join(map(str, own))}: {result.why_fixed}"
    text = ", ".join("x".join(map(str, sizes)) for sizes in result.sizes)
    refused = f"; the file refuses {', '.join(result.refused)}" if result.refused else ""
    return f"height and width: dynamic, compared at {text}{refused}"
