"""Reading the checkpoints that training wrote, safely and with errors that name the culprit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ssl_lightning.backbones import storable
from ssl_lightning.compaction import Plan, expand
from ssl_lightning.compaction.plan import plans_from_data
from ssl_lightning.compaction.store import (
    OwnNetwork,
    Recipe,
    carry_out_,
    check_state,
    is_own_class,
)
from ssl_lightning.suggest import shortened, there_are


@dataclass(frozen=True)
class TrainedBackbone:
    """A backbone with trained weights, and how to create it again.

    Attributes:
        model: the network, in eval mode.
        name: of the backbone, ``zoo:<name>`` if training started from an entry.
        arguments: of the backbone.
        epoch: number of the last one trained.
        plans: what was carried out on the backbone during training; nothing, usually.
        started_from: how the network is made that training started from, if it was compact already.
        own: the dense network, or what makes it, if it is the user's own.
    """

    model: nn.Module
    name: str
    arguments: dict[str, Any]
    epoch: int
    plans: tuple[Plan, ...] = ()
    started_from: Recipe | None = None
    own: OwnNetwork | None = None

    def original(self) -> nn.Module:
        """Return what training started with, untrained."""
        made = (self.started_from or Recipe(self.name, self.arguments)).create(self.own)
        return self.sized(made)

    def sized(self, network: nn.Module) -> nn.Module:
        """Give a network the ``input_shape`` of the run: its backbone may be made for another."""
        if hasattr(self.model, "input_shape"):
            network.__dict__["input_shape"] = self.model.input_shape
        return network

    def masked(self) -> nn.Module:
        """Return the trained network with the sizes that training started with.

        What was removed during training is zero.
        """
        if not self.plans:
            return self.model
        return self.sized(expand(self.model, self.original(), self.plans).eval())

    def recipe(self, *plans: Plan) -> Recipe:
        """Return how the model is made again, or what further plans leave of it."""
        start = self.started_from or Recipe(self.name, self.arguments)
        return start.then(*self.plans, *plans)


PARTS: dict[str, type] = {
    "hyper_parameters": Mapping,
    "ssl_lightning": Mapping,
    "callbacks": Mapping,
    "loops": Mapping,
    "optimizer_states": list,
    "lr_schedulers": list,
    "epoch": int,
    "global_step": int,
    "pytorch-lightning_version": str,
}
"""Part of a Lightning checkpoint -> what it is, if it is there."""


def read_checkpoint(path: Any, map_location: Any = "cpu") -> dict[str, Any]:
    """Return a checkpoint's content; only tensors and plain values are ever unpickled.

    All that reads a checkpoint comes here: commands, the module, and trainers that train it.

    Args:
        path: of a file that training wrote, or an open file.
        map_location: of its tensors, as :func:`torch.load` takes it.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is truncated, damaged or no checkpoint of this library.
    """
    opened = hasattr(path, "seek")
    if not opened and not Path(path).is_file():
        raise missing_checkpoint(path)
    try:
        content = torch.load(path, map_location=map_location, weights_only=True)
        if opened:
            path.seek(0)
    except Exception as error:  # damaged archives raise whatever the unpickler stumbles over
        raise unreadable(path) from error
    return checked(content, str(path))


def missing_checkpoint(path: str | Path) -> FileNotFoundError:
    """Return the error that says where checkpoints are."""
    where = there_are(Path(path), ".ckpt") or (
        "`fit` writes them where its ModelCheckpoint callback says, or in the folder "
        "`checkpoints` of the run."
    )
    return FileNotFoundError(f"No checkpoint at {path}. {where}")


def read_weights(path: str | Path) -> dict[str, Tensor] | None:
    """Return the tensors of a file of weights, or None if it is none.

    Files of weights are ``.safetensors``, and what ``torch.save(network.state_dict(), path)``
    writes, also as ``{"state_dict": ...}``.

    Raises:
        ValueError: if it cannot be read without unpickling objects, or weights are not finite.
    """
    if not Path(path).is_file():
        return None
    content: Any
    try:
        if Path(path).suffix == ".safetensors":
            content = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged archives raise whatever the unpickler stumbles over
        raise unreadable(path) from error
    if isinstance(content, Mapping) and set(content) == {"state_dict"}:
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not all(map(torch.is_tensor, content.values())):
        return None
    for name, tensor in content.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError(f"{path}: expected finite weights, got {name} with others.")
    return dict(content)


def unreadable(path: Any) -> ValueError:
    """Return the error of a file that is no checkpoint of tensors and plain values."""
    return ValueError(
        f"{path} cannot be read as a checkpoint: it is truncated or damaged, or holds objects "
        "beside tensors and plain values, whose code would run. Take another one, or train again."
    )


def checked(content: Any, path: str) -> dict[str, Any]:
    """Return what was read from a checkpoint, if its parts are what Lightning writes.

    Raises:
        ValueError: naming the part that is not.
    """
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), Mapping):
        weights = isinstance(content, dict) and any(isinstance(v, Tensor) for v in content.values())
        more = " It holds weights alone: `fit` and `sparsify` start from them by --model.init_from."
        raise ValueError(
            f"{path} is no Lightning checkpoint: it holds no `state_dict`.{more if weights else ''}"
        )
    for part, kind in PARTS.items():
        if part in content and not isinstance(content[part], kind):
            raise ValueError(
                f"{path} is damaged: expected its `{part}` as {kind.__name__}, got "
                f"{shortened(content[part])}. Take another one, or train again."
            )
    return content


def load_backbone(path: str | Path, model: OwnNetwork | None = None) -> TrainedBackbone:
    """Return the trained backbone of a checkpoint, in eval mode, as small as it was in training.

    Args:
        path: of the checkpoint.
        model: the dense network, its class or a function that makes it; needed, and only used, if
            it is the user's own. A file never says what to import. A class is called with the
            arguments that the checkpoint holds.

    Raises:
        FileNotFoundError, ValueError: as :func:`read_checkpoint`, and if the network is the user's
            own and ``model`` was not given, or does not fit.

    Example:
        >>> from tempfile import mkdtemp
        >>> from lightning.pytorch import Trainer
        >>> from ssl_lightning import SSLLightningModule
        >>> path = f"{mkdtemp()}/last.ckpt"
        >>> trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
        >>> trainer.strategy.connect(SSLLightningModule("lenet"))
        >>> trainer.save_checkpoint(path)
        >>> load_backbone(path).model.conv1.out_channels
        20
    """
    content = read_checkpoint(path)
    settings = content.get("hyper_parameters", {})
    name, arguments = named_backbone(settings, path)
    start = read_start(content, str(path))
    own = model if start is None and is_own_class(name) else None
    network = (start or Recipe(name, arguments, where=str(path))).create(own)
    plans = read_plans(content, str(path))
    prefix = "backbone."
    state = {
        str(k).removeprefix(prefix): v
        for k, v in content["state_dict"].items()
        if str(k).startswith(prefix)
    }
    carry_out_(network, plans, str(path))
    check_state(state, str(path), network)
    try:
        network.load_state_dict(state)
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} does not fit the backbone {shortened(name)}: {shortened(str(error), 300)}"
        ) from error
    if settings.get("input_shape") is not None:  # of the run: the backbone may be made for another
        network.__dict__["input_shape"] = read_shape(settings["input_shape"], str(path))
    epoch = content.get("epoch", 0)
    if type(epoch) is not int:
        raise ValueError(f"{path} is damaged: `epoch` is {shortened(epoch)}, no number.")
    return TrainedBackbone(network.eval(), name, arguments, epoch, plans, start, own)


def named_backbone(settings: Mapping[str, Any], path: str | Path) -> tuple[str, dict[str, Any]]:
    """Return the name of a checkpoint's backbone, or of the user's class, and its arguments.

    Raises:
        ValueError: if it holds none.
    """
    name = settings.get("backbone", settings.get("backbone_class"))
    if not isinstance(name, str):
        raise ValueError(
            f"{path} does not name its backbone. Load it with "
            "SSLLightningModule.load_from_checkpoint(path, backbone=...) and call make_plan and "
            "compact yourself."
        )
    own = "backbone" not in settings
    arguments = settings.get("backbone_init_args" if own else "backbone_args") or {}
    if not isinstance(arguments, dict):
        raise ValueError(f"{path}: `backbone_args` are no mapping: {shortened(arguments)}.")
    if own and not is_own_class(name):
        raise ValueError(f"{path}: {shortened(name)} is not the import path of a class.")
    arguments = storable(name, arguments)
    if not own and settings.get("num_classes") is not None and not name.startswith("zoo:"):
        arguments.setdefault("num_classes", settings["num_classes"])
    return name, arguments


def read_shape(value: Any, where: str) -> tuple[int, ...]:
    """Return the shape of one example that a checkpoint holds.

    Raises:
        ValueError: if it is no short list of sizes.

    Example:
        >>> read_shape([3, 32, 32], "last.ckpt")
        (3, 32, 32)
    """
    sizes = value if isinstance(value, (list, tuple)) and 0 < len(value) <= 5 else [None]
    if not all(type(size) is int and 0 < size <= 1 << 16 for size in sizes):
        raise ValueError(f"{where} is damaged: `input_shape` is {shortened(value)}, no shape.")
    return tuple(sizes)


def read_start(content: Mapping[str, Any], where: str) -> Recipe | None:
    """Return the recipe that a checkpoint holds if training started from a compact network.

    Raises:
        ValueError: if it is damaged.
    """
    text = content.get("ssl_lightning", {}).get("started_from")
    if text is not None and not isinstance(text, (str, bytes)):
        raise ValueError(f"`started_from` in {where} is damaged: {shortened(text)}.")
    return None if text is None else Recipe.from_json(text, f"`started_from` in {where}")


def read_plans(content: Mapping[str, Any], where: str) -> tuple[Plan, ...]:
    """Return the plans that were carried out in the training that a checkpoint is of.

    Raises:
        ValueError: if one is damaged.
    """
    try:
        return plans_from_data(content.get("ssl_lightning", {}).get("plans", []))
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"`plans` in {where}: {error}") from error
