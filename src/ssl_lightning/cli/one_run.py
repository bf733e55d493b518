"""One of several runs that are compared: trained once, continued if it was stopped, measured."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from ssl_lightning.callbacks import LowRank, SaveCompact
from ssl_lightning.callbacks.cycles import give_cycles
from ssl_lightning.callbacks.latest import RESUME, LatestCheckpoint
from ssl_lightning.cli.training import SSLCLI, ContinuedCLI, carry_out
from ssl_lightning.compaction import Plan
from ssl_lightning.compaction.planning import empty_plan
from ssl_lightning.files import replacing
from ssl_lightning.graph import ExampleInput, as_inputs
from ssl_lightning.module import is_trained
from ssl_lightning.publishing.agreeing import unequal
from ssl_lightning.sweep.paths import set_at
from ssl_lightning.sweep.places import places

RUN, CONFIG, COMPACT = "run.json", "config.yaml", "compact"
"""What a finished run's folder has."""
INTERRUPTED = 130
"""Exit status of commands that the user stops."""


@dataclass(frozen=True)
class Trained:
    """What one run came to.

    Attributes:
        name: of the run.
        values: name -> value of all that is measured on the split, after the last epoch.
        has_weights: whether any training gave the network its weights.
    """

    name: str
    values: dict[str, float]
    has_weights: bool


class SaveDense(SaveCompact):
    """Writes the network as it is: what others are compared with loses nothing.

    An untrained network may have whole branches that start at zero, behind batch norms; they are
    no zeros that anything has trained.
    """

    def smaller(self, network: nn.Module, example: ExampleInput) -> tuple[Plan, nn.Module]:
        """Return the network, and a plan that removes nothing."""
        return empty_plan(as_inputs(example)), network


def saves(settings: Mapping[str, Any]) -> type[SaveCompact]:
    """Return what writes the network of a run: compacted, if anything in it makes it smaller."""
    callbacks = settings["trainer"]["callbacks"] or []
    factors = any(c["class_path"].endswith(LowRank.__name__) for c in callbacks)
    shrinks = settings["budget"] is not None or settings["model"].get("penalties") or factors
    return SaveCompact if shrinks else SaveDense


class OneCycle(Callback):
    """Gives a run without a budget the learning-rate cycle that those with one have.

    Args:
        command: that is carried out, for messages.
    """

    def __init__(self, command: str) -> None:
        self.command = command

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do so, unless the run has a scheduler of its own."""
        give_cycles(trainer, pl_module, 0, self.command)


class OneProcessCLI(ContinuedCLI):
    """Refuses several processes: each of them would run the whole command."""

    command: str = "sparsify"

    def before_fit(self) -> None:
        """Refuse, before processes are started."""
        if self.trainer.world_size > 1:
            raise ValueError(
                f"{self.command}: expected one process, and `trainer.devices` gives "
                f"{self.trainer.world_size}. Give --trainer.devices 1, or train with `fit`, which "
                "takes the same --budget."
            )
        super().before_fit()


def trained(
    name: str, config: Mapping[str, Any], folder: Path, split: str | None, command: str
) -> Trained:
    """Train as a config says, unless that was done before, and measure.

    A run that was stopped is continued. Its folder gets the config, the last checkpoint, the
    compact network and what was measured.

    Args:
        name: of the run.
        config: resolved config of ``fit``, as plain values.
        folder: of the run.
        split: on which to measure, ``"val"`` or ``"test"``; None: nowhere.
        command: that is carried out, for messages.
    """
    path = folder / RUN
    if path.is_file():
        return Trained(**json.loads(path.read_text()))
    settings = json.loads(json.dumps(config))
    for where, value in places(settings, folder.as_posix()).items():
        set_at(settings, where, value)
    given = settings["trainer"]["callbacks"] or []
    others = [c for c in given if not c["class_path"].endswith(SaveCompact.__name__)]
    settings["trainer"] |= {"callbacks": others, "enable_model_summary": False}
    trains = settings["trainer"]["max_epochs"] != 0
    latest = LatestCheckpoint(folder)
    OneProcessCLI.command = command
    OneProcessCLI.checkpoint = latest.path if latest.path.is_file() else None
    callbacks: list[Callback] = [saves(settings)((folder / COMPACT).as_posix())]
    callbacks += [latest] if trains else []
    callbacks += [OneCycle(command)] if trains and settings["budget"] is None else []
    cli = carry_out("fit", [], OneProcessCLI, settings, callbacks)
    has_weights = trains or is_trained(settings["model"])
    result = Trained(name, {} if split is None else values_of(cli, split), has_weights)
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(asdict(result)))
    shutil.rmtree(folder / RESUME, ignore_errors=True)
    return result


def values_of(cli: SSLCLI, split: str) -> dict[str, float]:
    """Return what is measured over the whole split."""
    trainer: Any = cli.trainer
    trainer.limit_val_batches = trainer.limit_test_batches = 1.0
    measure_split = trainer.validate if split == "val" else trainer.test
    found: list[Mapping[str, Any]] = measure_split(cli.model, cli.datamodule, verbose=False)
    return {name: float(value) for values in found[:1] for name, value in values.items()}


def begun(folder: Path) -> bool:
    """Whether a run in a folder, or below, has something that the next one would take up."""
    return any(path.name in (RUN, RESUME) for path in folder.rglob("r*"))


def agree(folder: Path, settings_file: str, settings: Mapping[str, Any]) -> None:
    """Store what is run, or refuse the folder if another run was begun there.

    Args:
        folder: of all runs.
        settings_file: name of the file of settings in it.
        settings: plain values.

    Raises:
        ValueError: naming what differs, with both values.
    """
    given, path = json.loads(json.dumps(settings)), folder / settings_file
    if not path.is_file() or not begun(folder):
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(given, indent=2))
    elif differing := unequal(json.loads(path.read_text()), given, "")[:3]:
        raise ValueError(
            f"--output: {folder} was begun with other settings: {', '.join(differing)}. Give what "
            "it was begun with, another --output, or remove the folder."
        )
