"""Controls of a zoo entry: runs of other methods, measured as the entry is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ssl_lightning.measure import num_parameters
from ssl_lightning.progress import track
from ssl_lightning.publishing.runs import (
    FinishedRun,
    as_stored,
    check_same_config,
    differences,
    measure_run,
    read_run,
)
from ssl_lightning.suggest import pick
from ssl_lightning.zoo.records import CONTROLS, Control

Place = str | Path


def measure_control(
    kind: str, folders: Sequence[Place], of: Mapping[str, Any], config: Mapping[str, Any]
) -> Control:
    """Measure the runs of a control.

    Args:
        kind: of control.
        folders: of the runs.
        of: what they are compared with: its ``name``, ``backbone`` and ``epochs``.
        config: of that, with its ``data``.

    Raises:
        ValueError: if the kind is unknown, the runs differ in more than their seed, they were
            trained on other data, or they are no such network trained as long, where the kind says
            so.
    """
    pick("kind of control", kind, CONTROLS)
    finished = [as_stored(read_run(Path(folder)), "float32") for folder in folders]
    check_same_config(finished)
    for control in finished:
        if found := differences(control.config, {"data": config["data"]}, "data"):
            raise ValueError(
                f"Cannot compare {control.folder} with {of['name']}: their configs differ in "
                f"{found}. Train the control on the same images."
            )
        if kind == "dense":
            check_dense(control, of)
    return Control(kind, tuple(measure_run(control) for control in track(finished, kind)))


def check_dense(control: FinishedRun, of: Mapping[str, Any]) -> None:
    """Refuse as "the dense network trained as long" what is no such network or another length.

    Raises:
        ValueError: naming both.
    """
    here, there = (control.recipe.backbone, control.epochs), (of["backbone"], of["epochs"])
    cut = num_parameters(control.compact) < num_parameters(control.backbone())
    if cut or here != there:
        texts = [f"{name}, {epochs} epochs" for name, epochs in (there, here)]
        texts[1] += ", compacted" if cut else ""
        raise ValueError(
            f"Cannot compare {control.folder} with {of['name']} as the dense network trained as "
            f"long: expected {texts[0]}, got {texts[1]}. Train that network for as many epochs."
        )
