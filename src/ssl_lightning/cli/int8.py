"""Networks in int8: what `export --int8` and `benchmark int8` do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from ssl_lightning.cli.data import (
    calibration_images,
    describe,
    make_data,
    needed_section,
    validation_images,
)
from ssl_lightning.cli.records import check_output, finish
from ssl_lightning.cli.sources import NamedNetwork, in_form, named_network
from ssl_lightning.export import Int8Result, compare_precisions, export_int8
from ssl_lightning.measure import num_parameters
from ssl_lightning.measure.turns import num_threads
from ssl_lightning.publishing.measuring import measure_error
from ssl_lightning.report import (
    precision_chart,
    precision_reasons,
    precision_table,
)
from ssl_lightning.report.precisions import TABLE_WIDTH

IMAGES = 300
"""Training images that the ranges of activations are taken from, as NNCF's default."""
EVERY = 1_000_000_000


@dataclass(frozen=True)
class Task:
    """What int8 is calibrated on and judged by.

    Attributes:
        calibration: training images, in batches.
        evaluate: returns a network's error in percent on the validation images.
        measure: the same in words.
    """

    calibration: list[Tensor]
    evaluate: Callable[[nn.Module], float]
    measure: str

    @classmethod
    def of(cls, where: str, named: NamedNetwork, data: str | None, images: int) -> Task:
        """Return the task of a network: the data that it was trained with, or a config's.

        Raises:
            FileNotFoundError: if there is no such config.
            ValueError: if there is no data, or it does not fit the network.
        """
        section = needed_section(where, data, named.home)
        module = make_data(section)
        calibration = calibration_images(where, module, images)
        held_out = validation_images(where, module, EVERY, named.model)
        measure = describe(held_out, section)
        return cls(calibration, partial(measure_error, batches=held_out), measure)


def written_int8(
    named: NamedNetwork, network: nn.Module, task: Task, path: Path, settings: dict[str, Any]
) -> Int8Result:
    """Write a network in int8, and say what it loses.

    Raises:
        ValueError: as :func:`~ssl_lightning.export_int8`.
    """
    result = export_int8(
        network,
        named.example(),
        path,
        calibration=task.calibration,
        evaluate=task.evaluate,
        **settings,
    )
    console = Console()
    console.print(
        f"int8 in {result.engine}, ranges from {result.examples} training images; "
        f"{task.measure}: {result.before:.2f} in torch -> {result.after:.2f}",
        soft_wrap=True,
    )
    console.print(
        f"file: {result.float_size / 1e6:.2f} MB in float32 -> {result.size / 1e6:.2f} MB"
    )
    return result


def int8(
    network: str,
    dense: str | None = None,
    engines: str | list[str] = ["openvino", "onnxruntime"],  # noqa: B006 - read only, for --help
    data: str | None = None,
    images: int = IMAGES,
    batch_size: int = 1,
    threads: int | None = None,
    repeats: int = 30,
    title: str | None = None,
    output: str | None = None,
    backbone_args: dict[str, Any] | None = None,
    model: str | None = None,
    config: str | None = None,
) -> None:
    """Compare the dense and the compact network in float32, bfloat16 and int8.

    Int8 is made after training, by NNCF. Bfloat16 is measured where the processor and the engine
    have it. Errors are of validation images; the test split is not read.

    Args:
        network: checkpoint that ``fit`` wrote, folder that ``compact`` wrote, ``zoo:<name>``, or
            name of a backbone.
        dense: the dense network beside it, given in the same ways; default: the checkpoint's
            network with its zeros, which has the sizes that training began with.
        engines: some of openvino and onnxruntime.
        data: config whose ``data`` names the images, or a data set such as mnist; default: the
            config.yaml that the network was trained with, if it lies beside it.
        images: training images that the ranges of int8 are taken from.
        batch_size: images of a timed call.
        threads: number of threads; default: torch's own.
        repeats: interleaved samples per network and precision.
        title: heading of the table.
        output: JSON file to write; the picture is drawn beside it as a PNG.
        backbone_args: arguments of a backbone given by name.
        model: import path of the network's class, such as ``my_package.MyNetwork``, if it is your
            own.
        config: instead, the config that it was trained with, whose ``model.backbone`` is used.
    """
    check_output(output)
    named = named_network(network, model, config, backbone_args)
    networks = beside_dense(named, dense)
    task = Task.of("benchmark int8", named, data, images)
    with num_threads(threads or torch.get_num_threads()):
        record = compare_precisions(
            networks,
            named.example(),
            task.calibration,
            task.evaluate,
            engines=engines,
            batch_size=batch_size,
            repeats=repeats,
            title=title or named.name,
            measure=task.measure,
        )
    finish(record, precision_table(record), precision_chart, output, TABLE_WIDTH)
    for line in precision_reasons(record):
        Console().print(line, highlight=False, markup=False)


def beside_dense(named: NamedNetwork, dense: str | None) -> dict[str, nn.Module]:
    """Return the networks to compare: dense and compact, or only one if nothing was removed."""
    compact = in_form(named, masked=False)
    if dense is not None:
        return {"dense": named_network(dense).masked(), "compact": compact}
    wide = named.masked()
    if num_parameters(wide) == num_parameters(compact):
        return {named.name: compact}
    return {"dense": wide, "compact": compact}
