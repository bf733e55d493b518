"""sensitivity: which layers of a network can be pruned, and what that saves."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from ssl_lightning.cli.data import describe, make_data, needed_section, validation_images
from ssl_lightning.cli.examples import suggest
from ssl_lightning.cli.parse import call
from ssl_lightning.cli.prune import group_settings
from ssl_lightning.cli.sources import named_network, warn_of_fresh
from ssl_lightning.measure.sensitivity_record import Sensitivity
from ssl_lightning.measure.turns import several
from ssl_lightning.progress import UNKNOWN, steps
from ssl_lightning.prune import SHARES, sensitivity
from ssl_lightning.publishing.measuring import measure_error
from ssl_lightning.report import print_sensitivity, sensitivity_chart

FILE = "sensitivity"


def run(name: str, arguments: list[str]) -> None:
    """Carry out the command."""
    call(measure_sensitivity, name, arguments)


def measure_sensitivity(
    network: str,
    data: str | None = None,
    shares: list[float] = list(SHARES),  # noqa: B006 - read only, for --help
    importance: str = "l2",
    images: int = 1000,
    kind: str | list[str] = "coupled",
    layers: str | list[str] = "*",
    seed: int = 0,
    output: str | None = None,
    backbone_args: dict[str, Any] | None = None,
    model: str | None = None,
    config: str | None = None,
) -> None:
    """Measure the error after removing shares of each layer's channels, one layer at a time.

    Nothing is trained, batch norms keep their statistics, and the test split is not read: this
    compares layers. It takes one pass over the images for each layer (or family of coupled layers)
    and share. Writes a record (JSON), its rows (CSV) and a picture (PNG).

    Args:
        network: checkpoint that ``fit`` wrote, folder that ``compact`` wrote, ``zoo:<name>``, or
            name of a backbone, such as ``timm:mobilenetv3_small_100``.
        data: config whose ``data`` names the images, or a data set such as mnist; default: the
            config.yaml that the network was trained with, if it lies beside it.
        shares: of the groups to remove from each set; one group is always retained.
        importance: which groups go first: those with the smallest l2 or l1 norm, or random ones.
        images: number of validation images to measure the error on, the first ones.
        kind: of the groups, or a list of several: coupled, filter, head, ffn, depth, ...
        layers: pattern of the layers to try, or a list of several.
        seed: of random importance, and of the weights of a backbone given by name.
        output: folder to write to; default: ``sensitivity`` in the folder above the checkpoint's,
            or, for a folder or a name, that with ``-sensitivity``.
        backbone_args: arguments of a backbone given by name, such as '{"pretrained": true}'.
        model: import path of the network's class, such as ``my_package.MyNetwork``, if it is your
            own.
        config: instead, the config that it was trained with, whose ``model.backbone`` is used.
    """
    torch.manual_seed(seed)
    named = named_network(network, model, config, backbone_args)
    warn_of_fresh(Console(), named)
    section = needed_section("sensitivity", data, named.home)
    batches = validation_images("sensitivity", make_data(section), images, named.model)
    example = torch.zeros_like(batches[0][0][:1])
    groups = group_settings(named.model, example, several(kind), several(layers))
    with steps("sensitivity", UNKNOWN) as part:
        found = sensitivity(
            named.model,
            example,
            partial(measure_error, batches=batches),
            **groups,
            shares=shares,
            importance=importance,
            title=named.name,
            conditions=describe(batches, section),
            progress=part.reach,
        )
    folder = Path(output) if output else named.beside(FILE, f"-{FILE}")
    write(found, folder)
    suggest(f"prune {network} --macs 0.5 --importance {folder / FILE}.json")


def write(found: Sensitivity, folder: Path) -> None:
    """Print the table; write record, rows and picture, each whole or not at all."""
    print_sensitivity(found)
    writers: dict[str, Callable[[Path], None]] = {
        f"{FILE}.json": found.save,
        f"{FILE}.csv": found.save_csv,
        f"{FILE}.png": partial(sensitivity_chart, found),
    }
    for file, store in writers.items():
        store(folder / file)
    Console().print(f"Wrote {', '.join(writers)} in {folder}", soft_wrap=True)
