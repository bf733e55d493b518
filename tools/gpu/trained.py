"""Runs of stage ``cifar``: the queue as data, the config of a run, and what its folder holds."""

from __future__ import annotations

import csv
import re
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from ssl_lightning.sweep.space import with_values

KEYS = {"name", "config", "seeds", "epochs", "lr", "from", "teacher", "set"}
DISTILL = "ssl_lightning.callbacks.Distill"
EPOCH = re.compile(r"epoch-(\d+)\.ckpt")


@dataclass(frozen=True)
class Row:
    """A row of the queue; see the head of ``queue.yaml``."""

    name: str
    config: Path
    seeds: tuple[int, ...]
    epochs: tuple[int, ...]
    lr: tuple[float, ...]
    start: str | None = None
    teacher: str | None = None
    values: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """One row with one seed, below the folder where all are trained.

    Attributes:
        row: of the queue.
        seed: of the row's seeds.
        work: folder of all runs.
    """

    row: Row
    seed: int
    work: Path

    @property
    def name(self) -> str:
        """Name of the run's folder."""
        return f"{self.row.name}-{self.seed}"

    @property
    def folder(self) -> Path:
        """Where the run writes."""
        return self.work / "runs" / self.name

    @property
    def epochs(self) -> int:
        """How many epochs it trains."""
        return sum(self.row.epochs)

    def other(self, row: str) -> str:
        """Return the folder of another row's run with this seed, as configs name it."""
        return f"runs/{row}-{self.seed}"


# The queue


def read_queue(path: Path, configs: Path) -> tuple[int, tuple[Row, ...]]:
    """Return how many runs to train at a time, and the rows.

    Raises:
        ValueError: if the file is no queue, or a row names what is not there.
    """
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or content.keys() != {"together", "rows"}:
        raise ValueError(f"{path.name}: expected the keys `together` and `rows`. Correct the file.")
    rows: list[Row] = []
    for given in content["rows"]:
        row = read_row(given, configs, path.name)
        for key, name in (("from", row.start), ("teacher", row.teacher)):
            seeds = {seed for other in rows if other.name == name for seed in other.seeds}
            if name is not None and not seeds >= set(row.seeds):
                raise ValueError(
                    f"{path.name}, row {row.name}: expected `{key}` to be an earlier row with the "
                    f"seeds {list(row.seeds)}, got {name!r}. Write that row first."
                )
        rows.append(row)
    names = [row.name for row in rows]
    if len(set(names)) < len(names):
        raise ValueError(f"{path.name}: expected different names, got {names}. Rename a row.")
    return int(content["together"]), tuple(rows)


def read_row(given: Any, configs: Path, file: str) -> Row:
    """Return a row of the queue.

    Raises:
        ValueError: if a key is unknown or missing, or there is no such config.
    """
    where = f"{file}, row {given.get('name') if isinstance(given, dict) else given}"
    if not isinstance(given, dict) or not {"name", "seeds", "epochs", "lr"} <= given.keys() <= KEYS:
        raise ValueError(
            f"{where}: expected `name`, `seeds`, `epochs`, `lr` and, if wanted, `config`, `from`, "
            "`teacher` and `set`. Correct the row."
        )
    config = configs / f"{given.get('config', given['name'])}.yaml"
    if not config.is_file():
        raise ValueError(f"{where}: no file {config.name} in {configs.name}/. Correct `config`.")
    if len(given["epochs"]) != len(given["lr"]) or not given["epochs"]:
        raise ValueError(
            f"{where}: expected as many `epochs` as `lr`, got {given['epochs']} and {given['lr']}."
            " Give one of each per stage."
        )
    return Row(
        given["name"],
        config,
        tuple(given["seeds"]),
        tuple(given["epochs"]),
        tuple(given["lr"]),
        given.get("from"),
        given.get("teacher"),
        given.get("set", {}),
    )


# The config of a run


def config_of(run: Run, rows: tuple[Row, ...], device: str, compiled: bool) -> dict[str, Any]:
    """Return the row's config for this run: seed, epochs, where to start, on which device."""
    config = yaml.safe_load(run.row.config.read_text(encoding="utf-8"))
    config = with_values(config, run.row.values)
    config = moved(config, config["trainer"]["default_root_dir"], f"runs/{run.name}")
    config["seed_everything"] = run.seed
    model, trainer = config["model"], config["trainer"]
    model["lr_scheduler"]["init_args"] |= {"epochs": [*run.row.epochs], "lr": [*run.row.lr]}
    model["optimizer"]["init_args"] |= {"lr": run.row.lr[0], "fused": device == "cuda"}
    model["compile"] = compiled
    if run.row.start is not None:
        start = next(row for row in rows if row.name == run.row.start)
        model["backbone"] = yaml.safe_load(start.config.read_text())["model"]["backbone"]
        model["init_from"] = f"{run.other(start.name)}/checkpoints/last.ckpt"
    if run.row.teacher is not None:
        teach(trainer["callbacks"], f"{run.other(run.row.teacher)}/checkpoints/last.ckpt")
    config["data"]["init_args"]["on_device"] = True
    trainer |= {"max_epochs": run.epochs, "devices": 1, "enable_progress_bar": False}
    trainer["accelerator"] = "gpu" if device == "cuda" else "cpu"
    trainer["benchmark"] = device == "cuda"
    if device == "cpu" and not bfloat16_pays():
        trainer["precision"] = "32-true"
    trainer["num_sanity_val_steps"] = 0  # the first batch that is compiled is one of training
    trainer["logger"]["init_args"] |= {"name": run.name, "flush_logs_every_n_steps": 1}
    for callback in trainer["callbacks"]:
        name, settings = callback["class_path"].rpartition(".")[2], callback.get("init_args")
        if name == "ModelCheckpoint":
            settings["save_top_k"] = 1  # the newest
    return config


def teach(callbacks: list[dict[str, Any]], checkpoint: str) -> None:
    """Let the callback `Distill`, added where there is none, have this teacher."""
    found = next((c for c in callbacks if c["class_path"].endswith("Distill")), None)
    if found is None:
        found = {"class_path": DISTILL}
        callbacks.append(found)
    found["init_args"] = found.get("init_args", {}) | {"teacher": checkpoint}


@cache
def bfloat16_pays() -> bool:
    """Whether this processor trains a convolution faster in bfloat16.

    Also some that multiply in it do not: they have no faster kernels for it.
    """
    import torch

    layer = torch.nn.Conv2d(32, 32, 3, padding=1).to(memory_format=torch.channels_last)
    x = torch.randn(64, 32, 16, 16).to(memory_format=torch.channels_last).requires_grad_()

    def seconds(enabled: bool) -> float:
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            layer(x).sum().backward()
        return time.perf_counter() - start

    turns = [(seconds(True), seconds(False)) for _ in range(12)]
    lower, full = (min(times) for times in zip(*turns[2:], strict=True))
    return lower < full


def moved(value: Any, old: str, new: str) -> Any:
    """Return a part of a config with another run folder."""
    if isinstance(value, dict):
        return {key: moved(item, old, new) for key, item in value.items()}
    if isinstance(value, list):
        return [moved(item, old, new) for item in value]
    if isinstance(value, str) and (value == old or value.startswith(f"{old}/")):
        return new + value[len(old) :]
    return value


def shortened(config: dict[str, Any]) -> dict[str, Any]:
    """Return a config for a dry run: few images, and every stage begins after one epoch."""
    config["data"]["init_args"] |= {"batch_size": 16, "num_validation": 16, "eval_batch_size": 16}
    return _early(config)


def _early(value: Any) -> Any:
    if isinstance(value, dict):
        early = {key: _early(item) for key, item in value.items()}
        for key in {"start", "end", "at"} & early.keys():
            early[key] = min(early[key], 1)
        return early
    return [_early(item) for item in value] if isinstance(value, list) else value


# What a run's folder holds


def checkpoint_of(folder: Path) -> tuple[Path | None, int | None]:
    """Return the newest whole checkpoint and the epochs it has seen; None where its name hides it.

    A process that is ended while it writes leaves half a file.
    """
    found = sorted(
        (int(match[1]) + 1, path)
        for path in (folder / "checkpoints").glob("epoch-*.ckpt")
        if (match := EPOCH.fullmatch(path.name))
    )
    for epochs, path in reversed(found):
        if zipfile.is_zipfile(path):
            return path, epochs
    last = folder / "checkpoints" / "last.ckpt"
    return (last, None) if zipfile.is_zipfile(last) else (None, None)


def figures_of(folder: Path) -> dict[str, float]:
    """Return the last value of every error in a run's logs, in percent."""
    figures: dict[str, float] = {}
    for log in sorted(folder.glob("version_*/metrics.csv"), key=lambda p: p.stat().st_mtime):
        with log.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                for name in ("val/error", "test/error"):
                    if row.get(name):
                        figures[name.replace("/", "_")] = float(row[name])
    return figures


def kept_files(run: Run) -> Iterator[tuple[Path, str]]:
    """Yield the files to store of a run, and their names in its folder."""
    checkpoint, _ = checkpoint_of(run.folder)
    if checkpoint is not None:
        yield checkpoint, "checkpoints/last.ckpt"
    for path in sorted(run.folder.glob("version_*/metrics.csv")):
        yield path, path.relative_to(run.folder).as_posix()
    if (run.folder / "config.yaml").is_file():
        yield run.folder / "config.yaml", "config.yaml"
