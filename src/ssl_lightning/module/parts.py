"""What SSLLightningModule is put together from: backbone, optimizer and its parameter groups."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.plugins import MixedPrecision, Precision
from lightning.pytorch.utilities import GradClipAlgorithmType
from torch import Tensor, nn
from torch.optim import Optimizer

from ssl_lightning.backbones import class_path, create_backbone
from ssl_lightning.checkpoints import load_backbone, missing_checkpoint, read_weights
from ssl_lightning.suggest import shortened
from ssl_lightning.zoo.entries import entry_folder
from ssl_lightning.zoo.loading import PREFIX, load_with_digest

TRAINED = ("pretrained", "weights", "checkpoint_path")
"""Arguments by which functions that make networks are asked for trained weights."""


def default_optimizer(parameters: Iterable[Any]) -> Optimizer:
    """Return SGD with lr 0.01 and momentum 0.9, as in the paper."""
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9)


def make_backbone(backbone: str | nn.Module, arguments: Mapping[str, Any]) -> nn.Module:
    """Return the module itself, or create the named one."""
    if not isinstance(backbone, str):
        if arguments:
            raise ValueError(
                f"backbone_args={dict(arguments)} given with a module as backbone. They are for "
                "backbones given by name; build the module with them."
            )
        return backbone
    return create_backbone(backbone, **arguments)


def backbone_settings(backbone: str | nn.Module) -> dict[str, Any]:
    """Return what a checkpoint says of a backbone: its name, or the class of one given as object.

    What that class was called with is not known here; the command line, which makes the network
    from a config, adds it.
    """
    if isinstance(backbone, str):
        return {"backbone": backbone}
    return {"backbone_class": class_path(backbone), "backbone_init_args": {}}


def is_trained(settings: Mapping[str, Any]) -> bool:
    """Whether a module's settings say that its network begins with trained weights.

    Args:
        settings: hyperparameters of the module, or the section ``model`` of a config.

    Example:
        >>> [is_trained({"backbone": b}) for b in ("zoo:lenet_mnist_dense", "lenet")]
        [True, False]
        >>> own = {"class_path": "my.Net", "init_args": {"pretrained": True}}
        >>> is_trained({"backbone": own}), is_trained({"backbone": "lenet", "init_from": "a.ckpt"})
        (True, True)
        >>> is_trained({"backbone": {"depth": 18}, "backbone_args": [64, 128]})  # of one's own
        False
    """
    backbone: Any = settings.get("backbone", settings.get("backbone_class"))
    given: Any = settings.get("backbone_args") or settings.get("backbone_init_args")
    if isinstance(backbone, Mapping):
        backbone, given = backbone.get("class_path"), backbone.get("init_args")
    arguments = given if isinstance(given, Mapping) else {}  # a module of one's own names its own
    name = backbone if isinstance(backbone, str) else ""
    if name.startswith(PREFIX):
        return arguments.get("pretrained", True) is not False or bool(settings.get("init_from"))
    reads = name.endswith("load_compact") or settings.get("init_from")
    return bool(reads or any(arguments.get(a) for a in TRAINED))


def refuse_another_network(stored: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Refuse a checkpoint of the user's own network for a module that made one by name.

    Raises:
        ValueError: naming the class and the way out.
    """
    if "backbone" in own and "backbone" not in stored and "backbone_class" in stored:
        raise ValueError(
            f"The checkpoint is of the network {shortened(stored['backbone_class'])}, this module "
            f"has the backbone {own['backbone']!r}, and no code is imported because a file names "
            "it. Give that network: load_from_checkpoint(path, backbone=...), or the config that "
            "it was trained with."
        )


def check_source(source: str) -> None:
    """Make sure that there is what :func:`start_from_` will read.

    Raises:
        FileNotFoundError: if there is no such checkpoint.
        ValueError: if there is no such entry of the zoo.
    """
    if source.startswith(PREFIX):
        entry_folder(source.removeprefix(PREFIX))
    elif not Path(source).is_file():
        raise missing_checkpoint(source)


def start_from_(backbone: nn.Module, source: str) -> dict[str, str]:
    """Copy weights into a backbone, and nothing else: no optimizer state, no epoch.

    Args:
        backbone: is filled; all of its tensors must be in the source, and no others.
        source: a checkpoint that ``fit`` wrote, a file of weights (see
            :func:`~ssl_lightning.checkpoints.read_weights`), or ``"zoo:<name>"``.

    Returns:
        ``source`` and ``sha256``, of the checkpoint's or the entry's file of weights.

    Raises:
        FileNotFoundError: if there is no such checkpoint.
        ValueError: if it is damaged or cannot be read without unpickling, its weights are not
            finite, or they are those of another network.
    """
    if source.startswith(PREFIX):
        start, digest = load_with_digest(source.removeprefix(PREFIX))
        state: Mapping[str, Tensor] = start.state_dict()
    else:
        found = read_weights(source)
        state = load_backbone(source, backbone).model.state_dict() if found is None else found
        with Path(source).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    wanted = backbone.state_dict()
    if differing := [
        f"{shape_of(state, name)} instead of {shape_of(wanted, name)} as `{name}`"
        for name in dict.fromkeys([*wanted, *state])
        if shape_of(state, name) != shape_of(wanted, name)
    ]:
        raise ValueError(
            f"Cannot start from {source}: expected the weights of {type(backbone).__name__}, got "
            f"{differing[0]} and {len(differing) - 1} more that differ. Give the same backbone "
            "and backbone_args as there; a compact network is itself the backbone, such as zoo:..."
        )
    backbone.load_state_dict(state)
    return {"source": source, "sha256": digest}


def check_tensors(
    state: Mapping[str, Any], wanted: Mapping[str, Tensor], complete: bool = True
) -> None:
    """Compare the tensors of a checkpoint with those of the module that they are for.

    Args:
        state: of the checkpoint.
        wanted: of the module.
        complete: whether no tensor may be missing or superfluous.

    Raises:
        ValueError: naming the first that differs.

    Example:
        >>> check_tensors({"w": torch.zeros(2)}, {"w": torch.zeros(3)})
        Traceback (most recent call last):
        ...
        ValueError: The checkpoint does not fit the module: `w` is (2,) instead of (3,), ...
    """
    names = dict.fromkeys([*wanted, *state] if complete else (n for n in wanted if n in state))
    differing = [
        f"`{shortened(name)[1:-1]}` is {shape_of(state, name)} instead of {shape_of(wanted, name)}"
        for name in names
        if isinstance(wanted.get(name, Tensor()), Tensor)  # extra state is of any kind
        and shape_of(state, name) != shape_of(wanted, name)
    ]
    if differing:
        raise ValueError(
            f"The checkpoint does not fit the module: {differing[0]}, and {len(differing) - 1} "
            "more differ. Give the backbone and backbone_args that it was trained with."
        )


def shape_of(state: Mapping[str, Any], name: str) -> str:
    """Write a tensor's shape, ``nothing`` if there is no such tensor, or what is there instead.

    Example:
        >>> shape_of({"w": torch.zeros(2, 3)}, "w"), shape_of({}, "w")
        ('(2, 3)', 'nothing')
    """
    if name not in state:
        return "nothing"
    value = state[name]
    return str(tuple(value.shape)) if isinstance(value, Tensor) else shortened(value)


def count_classes(backbone: nn.Module) -> int:
    """Return the number of classes that a backbone says, or that its last linear layer has."""
    given = getattr(backbone, "num_classes", None)
    linear = [m.out_features for m in backbone.modules() if isinstance(m, nn.Linear)]
    if isinstance(given, int) or linear:
        return given if isinstance(given, int) else linear[-1]
    raise ValueError(
        f"Cannot tell how many classes {type(backbone).__name__} has: it has no attribute "
        "`num_classes` and no linear layer. Pass `num_classes`."
    )


def clip_task_gradient(
    module: pl.LightningModule,
    optimizer: Optimizer,
    value: float | None,
    algorithm: str | None,
) -> None:
    """Clip gradients as Lightning does, those of fused optimizers too where nothing is scaled."""
    plugin = module.trainer.precision_plugin
    if isinstance(plugin, MixedPrecision) and plugin.scaler is None:
        # Its own method refuses fused optimizers, which unscale inside; here nothing is scaled.
        kind = GradClipAlgorithmType(algorithm or "norm")
        Precision.clip_gradients(plugin, optimizer, value or 0.0, kind)
    else:
        module.clip_gradients(optimizer, value, algorithm)


def refuse_sharding(strategy: Any) -> None:
    """Refuse strategies that cut parameters into pieces: group norms need whole ones."""
    name = type(strategy).__name__
    if name in ("FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy"):
        raise MisconfigurationException(
            f"{name} shards parameters, but the norm of a group needs the whole parameter. Use "
            "`strategy=ddp` or one device."
        )


def refuse_spawning(strategy: Any) -> None:
    """Refuse strategies that train in forked or spawned copies of the process.

    Raises:
        MisconfigurationException: naming the way out.
    """
    if getattr(strategy, "_start_method", "popen") != "popen":
        raise MisconfigurationException(
            "ddp_spawn, ddp_fork and ddp_notebook train in copies of the process and bring back "
            "weights only: locked groups and plans would be lost. Use `strategy: ddp`."
        )


def epochs_of(trainer: pl.Trainer) -> float | None:
    """Return how many epochs a run has, by ``max_epochs`` and ``max_steps``.

    None if that is not known: for a run of some hours, or loaders without a length.
    """
    known = [] if trainer.max_epochs in (None, -1) else [float(trainer.max_epochs)]
    module = trainer.lightning_module
    if trainer.max_steps >= 0 and module is not None and module.automatic_optimization:
        trainer.fit_loop.setup_data()
        batches = trainer.num_training_batches
        if 0 < batches < float("inf"):
            known.append(trainer.max_steps / -(-batches // trainer.accumulate_grad_batches))
    return min(known, default=None)


def begin_next_epoch_(loop: Any) -> None:
    """Let a fit that is resumed after the last batch of an epoch begin the next one as any other.

    Lightning counts the epoch as done then, but still takes the next for the rest of it: it leaves
    out ``on_train_epoch_start`` and counts one epoch too few, so that checkpoints of the resumed
    run would be resumed at a wrong place. Of loaders without a length, it does not know that the
    batch was the last.
    """
    progress, batches = loop.epoch_progress.total, loop.epoch_loop
    if loop.restarted_mid_epoch and progress.processed == progress.started:
        loop.reset_restart_stage()
        if batches.trainer.num_training_batches == float("inf") and batches.restarting:
            total = batches.batch_progress.total
            if total.completed < total.processed:
                batches._batches_that_stepped += 1
                batches.batch_progress.increment_completed()
            batches.restarting = False


def scheduler_settings(scheduler: Any, interval: str) -> dict[str, Any]:
    """Return a scheduler's entry of ``configure_optimizers``.

    Raises:
        MisconfigurationException: for a ``ReduceLROnPlateau`` without a metric to look at.
    """
    settings = {"scheduler": scheduler, "interval": interval}
    if not isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
        return settings
    monitor = getattr(scheduler, "monitor", None)
    if monitor is None:
        raise MisconfigurationException(
            "ReduceLROnPlateau needs a metric to look at. Use "
            "`lightning.pytorch.cli.ReduceLROnPlateau` with `monitor`, such as val/error."
        )
    return {**settings, "monitor": monitor}


def set_learning_rate_(
    optimizers: Iterable[Optimizer], schedulers: Iterable[Any], rate: float
) -> list[tuple[dict[str, Any], float]]:
    """Set the learning rate that optimizers and their schedulers start from.

    Returns:
        The parameter groups and the rate of each now: ``rate``, or what a warm-up makes of it.
    """
    rates = []
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            share = group["lr"] / group["initial_lr"] if group.get("initial_lr") else 1.0
            group["lr"] = share * rate
            if "initial_lr" in group:
                group["initial_lr"] = rate
            rates.append((group, group["lr"]))
    for scheduler in schedulers:
        for part in (scheduler, *getattr(scheduler, "_schedulers", ())):
            if hasattr(part, "base_lrs"):
                part.base_lrs = [rate] * len(part.base_lrs)
    return rates


def split_parameters(
    backbone: nn.Module, groups: Sequence[Mapping[str, Any]], names: Iterable[str] = ()
) -> list[dict[str, Any]] | list[nn.Parameter]:
    """Return the optimizer's parameter groups: one per mapping, and one for the rest.

    Args:
        backbone: whose parameters to split.
        groups: mappings with a glob ``parameters`` and settings.
        names: parameters that the backbone had before it was compacted. A group that lost all of
            its parameters remains, empty, so that groups keep their numbers.

    Raises:
        ValueError: if a glob matches no parameter.
    """
    present = dict(backbone.named_parameters())
    if not groups:
        return list(present.values())
    rest = list(dict.fromkeys([*names, *present]))

    def those(wanted: Sequence[str]) -> list[nn.Parameter]:
        return [parameter for name, parameter in present.items() if name in wanted]

    split: list[dict[str, Any]] = []
    for given in groups:
        settings = dict(given)
        pattern = settings.pop("parameters", None)
        matched = [n for n in rest if pattern is not None and fnmatchcase(n, pattern)]
        if not matched:
            raise ValueError(
                f"parameter_groups: the pattern {pattern!r} matches no further parameter. "
                f"Parameters: {', '.join(rest)}."
            )
        split.append({**settings, "params": those(matched)})
        rest = [n for n in rest if n not in matched]
    return [*([{"params": those(rest)}] if rest else []), *split]
