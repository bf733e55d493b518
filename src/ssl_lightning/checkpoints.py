"""Reading the checkpoints that training wrote, safely and with errors that name the culprit."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ssl_lightning.backbones import create_backbone
from ssl_lightning.compaction import Plan, apply_plan
from ssl_lightning.compaction.store import Recipe, plans_from_data


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
    """

    model: nn.Module
    name: str
    arguments: dict[str, Any]
    epoch: int
    plans: tuple[Plan, ...] = ()
    started_from: Recipe | None = None

    def original(self) -> nn.Module:
        """Return what training started with, untrained."""
        if self.started_from is not None:
            return self.started_from.create()
        return create_backbone(self.name, **self.arguments)

    def recipe(self, plan: Plan) -> Recipe:
        """Return how the network that ``plan`` leaves of the model is made again."""
        start = self.started_from or Recipe(self.name, self.arguments)
        return start.then(*self.plans, plan)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Return a checkpoint's content; only tensors and plain values are ever unpickled.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is truncated, damaged or no checkpoint of this library.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"No checkpoint at {path}. `fit` writes them where its ModelCheckpoint callback says."
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"{path} cannot be read as a checkpoint: it is truncated or damaged, or no checkpoint "
            "of tensors and plain values. Take another one, or train again."
        ) from error
    if not isinstance(content, dict) or "state_dict" not in content:
        raise ValueError(f"{path} is no Lightning checkpoint: it holds no `state_dict`.")
    check_state(content["state_dict"], str(path))
    return content


def check_state(state: Mapping[str, Any], where: str) -> None:
    """Reject weights that are NaN or infinite.

    Raises:
        ValueError: naming the first such tensor.
    """
    for name, tensor in state.items():
        if isinstance(tensor, Tensor) and not bool(torch.isfinite(tensor).all()):
            raise ValueError(
                f"`{name}` in {where} holds NaN or infinite values: that training diverged. Take "
                "an earlier checkpoint, or train again with a lower learning rate."
            )


def load_backbone(path: str | Path) -> TrainedBackbone:
    """Return the trained backbone of a checkpoint, in eval mode, as small as it was in training.

    Raises:
        FileNotFoundError, ValueError: as :func:`read_checkpoint`, and if the backbone was given to
            the module as an object, so that its name is unknown.
    """
    content = read_checkpoint(path)
    settings = content.get("hyper_parameters", {})
    name = settings.get("backbone")
    if not isinstance(name, str):
        raise ValueError(
            f"{path} does not name its backbone: it was trained from a module given as an object. "
            "Load it with SSLLightningModule.load_from_checkpoint(path, backbone=...) and call "
            "make_plan and compact yourself."
        )
    arguments = dict(settings.get("backbone_args") or {})
    start = read_start(content, str(path))
    if start is None and settings.get("num_classes") is not None:
        arguments.setdefault("num_classes", settings["num_classes"])
    model = create_backbone(name, **arguments) if start is None else start.create()
    plans = plans_from_data(content.get("ssl_lightning", {}).get("plans", []))
    prefix = "backbone."
    state = {
        k.removeprefix(prefix): v for k, v in content["state_dict"].items() if k.startswith(prefix)
    }
    try:
        for plan in plans:
            apply_plan(model, plan)
        model.load_state_dict(state)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{path} does not fit the backbone {name!r}: {error}") from error
    if settings.get("input_shape"):  # of the run: the backbone may have been made for another
        model.__dict__["input_shape"] = tuple(settings["input_shape"])
    epoch = int(content.get("epoch", 0))
    return TrainedBackbone(model.eval(), name, arguments, epoch, plans, start)


def read_start(content: Mapping[str, Any], where: str) -> Recipe | None:
    """Return the recipe that a checkpoint holds if training started from a compact network.

    Raises:
        ValueError: if it is damaged.
    """
    text = content.get("ssl_lightning", {}).get("started_from")
    return None if text is None else Recipe.from_json(text, f"`started_from` in {where}")
