"""Sweeps of tiny runs in processes that can be killed, and what is needed to look at them."""

from __future__ import annotations

import csv
import multiprocessing
import os
import signal
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import optuna
import torch
import yaml
from lightning.pytorch import Callback

PRELOADED = ["ssl_lightning.cli.training", "ssl_lightning.sweep.running", "torch.export._trace"]
"""Imported once, by the server that all processes here are forked from."""

CONFIG: dict[str, Any] = {
    "seed_everything": 3,
    "model": {
        "backbone": "mlp",
        "penalties": [{"kind": "neuron_out", "layers": "fc1", "strength": 1e-3}],
        "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.05, "momentum": 0.9}},
    },
    "data": {
        "class_path": "ssl_lightning.data.SyntheticDataModule",
        "init_args": {"num_classes": 10, "num_train": 288, "num_validation": 192, "augment": True},
    },
    "trainer": {
        "max_epochs": 3,
        "accelerator": "cpu",
        "enable_model_summary": False,
        "log_every_n_steps": 1,
        "default_root_dir": "runs/tiny",
        "logger": {
            "class_path": "lightning.pytorch.loggers.CSVLogger",
            "init_args": {"save_dir": "runs", "name": "tiny"},
        },
        "callbacks": [
            {
                "class_path": "ssl_lightning.callbacks.ThresholdPruning",
                "init_args": {"start": 1, "fraction": 0.2},
            },
            {
                "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
                "init_args": {
                    "dirpath": "runs/tiny/checkpoints",
                    "save_last": True,
                    "save_top_k": 0,
                    "enable_version_counter": False,
                },
            },
        ],
    },
}
SPACE = {
    "model.penalties.0.strength": {"log": ["1e-4", "1e-2"]},
    "trainer.callbacks.0.init_args.fraction": {"uniform": [0.0, 0.95]},
}


class Mishap(Callback):
    """Ends the second epoch as told: well, by an error, by a signal, or with NaN weights."""

    def __init__(self, how: str = "well") -> None:
        self.how = how

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch != 1:
            return
        if self.how == "error":
            raise ValueError("As told.\nAnd more.")
        if self.how == "signal":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.how == "nan":
            with torch.no_grad():
                next(pl_module.parameters()).fill_(float("nan"))


def written(folder: Path, config: Any = CONFIG, space: Any = SPACE) -> list[str]:
    """Write config and space, and return the arguments of a sweep of them."""
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "space.yaml").write_text(yaml.safe_dump(space))
    return ["--config", str(folder / "config.yaml"), "--space", str(folder / "space.yaml")]


def command(output: Path, *arguments: str) -> None:
    """Carry out a command in this process; its trials are forked from it."""
    from ssl_lightning.cli import main, sweep

    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    warnings.simplefilter("ignore")
    sweep.START_METHOD = "fork"
    sys.exit(main(list(arguments)))


def started(output: Path, *arguments: str) -> Any:
    """Start a command in a process of its own; its output goes to a file."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=command, args=(output, *arguments))
    process.start()
    return process


def carried_out(output: Path, *arguments: str) -> int:
    """Carry out a command in a process of its own; return the exit status."""
    process = started(output, *arguments)
    process.join()
    return int(process.exitcode)


def killed(process: Any, moment: Any) -> None:
    """Kill a process at the moment that a function is true, unless it ends before."""
    while process.is_alive() and not moment():
        time.sleep(0.01)
    process.kill()
    process.join()


def state_of(output: Path) -> dict[int, str]:
    """Return number -> state of the trials in the folder's study, if it is there yet."""
    if output.name not in optuna.get_all_study_names(f"sqlite:///{output}/study.db"):
        return {}
    study = optuna.load_study(study_name=output.name, storage=f"sqlite:///{output}/study.db")
    return {trial.number: trial.state.name for trial in study.get_trials(deepcopy=False)}


def results_of(output: Path) -> dict[int, tuple[Any, ...]]:
    """Return number -> error, cost and values of the trials in the folder's table."""
    with (output / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    return {int(row["trial"]): tuple(row.values())[1:-2] for row in rows}


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    """Return what a run trained."""
    path = folder / "checkpoints" / "last.ckpt"
    return torch.load(path, weights_only=True)["state_dict"]
