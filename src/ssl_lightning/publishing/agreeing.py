"""Whether the parts of a run's folder are of one run: checkpoint, config, compact network, curves.

A folder may hold a ``config.yaml`` that another run wrote. Nothing is published then.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from inspect import signature
from pathlib import Path
from typing import Any

from ssl_lightning.backbones import storable
from ssl_lightning.checkpoints import TrainedBackbone
from ssl_lightning.compaction.store import Recipe
from ssl_lightning.module import SSLLightningModule
from ssl_lightning.penalties import parse_penalty
from ssl_lightning.report.training_log import logs_of_last_run
from ssl_lightning.suggest import shortened

SAME = (
    "num_classes",
    "lr_interval",
    "parameter_groups",
    "label_smoothing",
    "channels_last",
    "compile",
)
"""Settings of the module that a checkpoint holds as the config does."""


def check_agreement(
    folder: Path,
    config: Mapping[str, Any],
    stored: Mapping[str, Any],
    trained: TrainedBackbone,
    recipe: Recipe,
    num_batches: int,
) -> None:
    """Refuse a folder whose parts are of different runs.

    Args:
        folder: of the run.
        config: what its ``config.yaml`` says.
        stored: content of its last checkpoint.
        trained: backbone of that checkpoint.
        recipe: of its compact network.
        num_batches: of an epoch on the config's data.

    Raises:
        ValueError: naming what differs, with both values.
    """
    for what, mine, other, where in disagreements(config, stored, trained, recipe, num_batches):
        found = shortened(", ".join(unequal(mine, other, what)), 300)[1:-1]
        raise ValueError(
            f"Cannot publish {folder}: its parts are of different runs: checkpoints/last.ckpt and "
            f"{where} differ in {found}. Put the files that belong to this checkpoint there."
        )
    check_log(folder, stored)


def disagreements(
    config: Mapping[str, Any],
    stored: Mapping[str, Any],
    trained: TrainedBackbone,
    recipe: Recipe,
    num_batches: int,
) -> Iterator[tuple[str, Any, Any, str]]:
    """Yield what differs, the checkpoint's value, the other one, and where that was found."""
    model, settings = config["model"], stored.get("hyper_parameters", {})
    own = stored.get("ssl_lightning", {})
    name, arguments = named_in(model, trained.name)
    given = settings.get("backbone_args") or settings.get("backbone_init_args") or {}
    shape = model.get("input_shape")  # None: taken from the data
    pairs: list[tuple[str, Any, Any]] = [
        ("backbone", trained.name, name),
        (
            "backbone_args",
            storable(trained.name, given),
            storable(name, arguments),
        ),
        ("penalties", parsed(settings.get("penalties")), parsed(model.get("penalties"))),
        ("the seed", own.get("run_seed"), config["seed_everything"]),
        (
            "batches per epoch",
            batches_of(stored),
            expected_batches(config, num_batches // (own.get("num_processes") or 1)),
        ),
        ("input_shape", shape and settings.get("input_shape"), shape),
        *((key, settings.get(key), setting(model, key)) for key in SAME),
    ]
    if own.get("data") is not None:
        pairs.append(("data", own["data"], str(config["data"]["class_path"]).rpartition(".")[2]))
    for what, mine, other in pairs:
        if mine is not None and mine != other:
            yield what, mine, other, "config.yaml"
    start = trained.started_from or Recipe(trained.name, trained.arguments)
    mine, found = ((r.backbone, storable(r.backbone, r.arguments)) for r in (start, recipe))
    if mine != found:
        yield "backbone", mine, found, "compact/plan.json"


def named_in(model: Mapping[str, Any], trained: str) -> tuple[str, dict[str, Any]]:
    """Return the backbone's name and arguments in the ``model`` section of a config.

    A class may be imported from another place than it is defined in; then it has the name by which
    the checkpoint knows it.

    Example:
        >>> named_in({"backbone": {"class_path": "mine.Net"}}, "mine.nets.Net")
        ('mine.nets.Net', {})
    """
    given = setting(model, "backbone")
    if not isinstance(given, Mapping):
        return given, model.get("backbone_args") or {}
    name = str(given["class_path"])
    same = name.rpartition(".")[2] == trained.rpartition(".")[2]
    return trained if same else name, given.get("init_args") or {}


def setting(model: Mapping[str, Any], key: str) -> Any:
    """Return a setting of the module, or its default.

    Example:
        >>> setting({}, "lr_interval"), setting({"lr_interval": "step"}, "lr_interval")
        ('epoch', 'step')
    """
    parameter = signature(SSLLightningModule).parameters.get(key)
    return model.get(key, None if parameter is None else parameter.default)


def parsed(penalties: Any) -> list[dict[str, Any]]:
    """Return penalties with all their defaults, as plain values."""
    return [parse_penalty(given).to_dict() for given in penalties or []]


def batches_of(stored: Mapping[str, Any]) -> int | None:
    """Return the training batches of the last epoch in a checkpoint."""
    try:
        progress = stored["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        return int(progress["current"]["completed"])
    except (KeyError, TypeError, ValueError):
        return None


def expected_batches(config: Mapping[str, Any], num_batches: int) -> int:
    """Return the training batches of an epoch with the trainer's limits.

    Example:
        >>> [expected_batches({"trainer": {"limit_train_batches": n}}, 9) for n in (0.5, 8, 8.0)]
        [4, 8, 8]
    """
    trainer = config["trainer"]
    limit = 1 if trainer.get("fast_dev_run") is True else trainer.get("limit_train_batches")
    if limit is None:
        return num_batches
    if isinstance(limit, int) or limit > 1:  # a parser may write 8 as 8.0; the trainer takes both
        return min(int(limit), num_batches)
    return int(num_batches * limit)


def check_log(folder: Path, stored: Mapping[str, Any]) -> None:
    """Refuse curves with steps after the checkpoint's: another run wrote them.

    Raises:
        ValueError: naming the log.
    """
    steps = stored.get("global_step")
    if not isinstance(steps, int):
        return
    for log, rows in logs_of_last_run(folder).items():
        found = [int(row["step"]) for row in rows if (row.get("step") or "").isdigit()]
        if found and max(found) > steps:
            raise ValueError(
                f"Cannot publish {folder}: its parts are of different runs: {log} has figures of "
                f"step {max(found)}, checkpoints/last.ckpt ends at step {steps}. Remove the log of "
                "the other run."
            )


def unequal(one: Any, other: Any, where: str) -> list[str]:
    """Return the places in plain values that are not equal, each with both values."""
    parts: list[tuple[str, Any, Any]]
    if isinstance(one, dict) and isinstance(other, dict):
        parts = [(f"{where}.{key}", one.get(key), other.get(key)) for key in one | other]
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        parts = [(f"{where}[{i}]", one[i], other[i]) for i in range(len(one))]
    else:
        return [] if one == other else [f"`{where}` ({one} and {other})"]
    return [found for place, a, b in parts for found in unequal(a, b, place)]
