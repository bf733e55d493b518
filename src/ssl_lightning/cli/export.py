"""export: a checkpoint, a compact network or a zoo entry, for another runtime."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

import torch
from rich.console import Console
from torch import nn

from ssl_lightning import zoo
from ssl_lightning.cli.network import (
    LAST,
    load_trained,
    not_needed,
    own_network,
    refuse_folder,
    with_own_network,
)
from ssl_lightning.cli.parse import call
from ssl_lightning.compaction import compact, load_compact, make_plan
from ssl_lightning.export import ExportResult, export_model
from ssl_lightning.export.exporting import TOLERANCE
from ssl_lightning.measure.engines import file_formats
from ssl_lightning.suggest import pick
from ssl_lightning.zoo.cards import CARD
from ssl_lightning.zoo.entries import list_models, zoo_root


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
    model: str | None = None,
    config: str | None = None,
) -> None:
    """Write a network for another runtime, once that runtime was seen to compute the same.

    Args:
        network: checkpoint that ``fit`` wrote, folder that ``compact`` wrote, or folder of a zoo
            entry.
        format: onnx, torch_export or openvino.
        output: file to write; default: ``model`` with the format's suffix in the folder above the
            checkpoint's, or, for a folder, its name with that suffix beside it.
        batch: the one batch size that the file takes, or dynamic.
        size: dynamic (the file takes other heights and widths where the network does), or fixed.
        masked: leave the zeros of a checkpoint in; otherwise it is compacted first.
        tolerance: largest difference of outputs to accept, relative to the largest output.
        model: import path of the network's class, such as ``my_package.MyNetwork``, if it is your
            own.
        config: instead, the config that it was trained with, whose ``model.backbone`` is used.
    """
    engine = pick("export format", format, file_formats())
    net = read_network(Path(network), masked=masked, model=model, config=config)
    path = Path(output) if output else default_path(Path(network), engine.suffix)
    example = torch.zeros(1, *net.input_shape)  # type: ignore[misc]
    result = export_model(net, example, path, format, batch=batch, size=size, tolerance=tolerance)
    sizes = ", ".join(map(str, result.batch_sizes))
    console = Console()
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


def read_network(
    path: Path, *, masked: bool, model: str | None = None, config: str | None = None
) -> nn.Module:
    """Return the network of a checkpoint, a compact network's folder or a zoo entry's.

    Raises:
        FileNotFoundError, ValueError: if there is none, or a network is given that is not needed.
    """
    if (path / CARD).is_file():
        if model is not None or config is not None:
            raise not_needed(f"{path} is an entry of the zoo", config)
        folder = path.resolve()
        return zoo.load(folder.name, root=folder.parent)
    refuse_folder(path, LAST, "compact")
    refuse_name(path)
    if path.is_dir():
        own = own_network(model, config)
        return with_own_network(lambda given: load_compact(path, given), path, own)
    trained = load_trained(path, model, config)
    if masked:
        return trained.masked()
    example = torch.zeros(1, *trained.model.input_shape)  # type: ignore[misc]
    return compact(trained.model, make_plan(trained.model, example))


def refuse_name(path: Path) -> None:
    """Refuse the name of a zoo entry, and say which folder it is.

    Raises:
        ValueError: if nothing is at the path, and an entry has this name.
    """
    if path.exists():
        return
    with suppress(FileNotFoundError):  # there is no zoo
        if path.name == str(path) and str(path) in list_models():
            folder = zoo_root() / path
            raise ValueError(f"No file or folder {path}. The zoo's entry of this name is {folder}.")


def default_path(network: Path, suffix: str) -> Path:
    """Return where to write what a network becomes.

    Example:
        >>> default_path(Path("runs/a/checkpoints/last.ckpt"), ".onnx").as_posix()
        'runs/a/model.onnx'
    """
    if network.is_dir():
        folder = network.resolve()
        return network.parent / f"{folder.name}{suffix}"
    return network.parent.parent / f"model{suffix}"
