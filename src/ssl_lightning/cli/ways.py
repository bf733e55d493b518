"""The runs that `sparsify` compares, as configs: the one asked for, the dense one, and controls."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from ssl_lightning.zoo.loading import PREFIX

Config = dict[str, Any]
GIVEN, RESULT, DENSE, ONE_SHOT, RANDOM, NARROW = (
    "given",
    "result",
    "dense",
    "one_shot",
    "random",
    "narrow",
)
LABELS = {
    GIVEN: "dense, as given",
    RESULT: "result",
    DENSE: "dense, trained as long",
    ONE_SHOT: "largest norms, retrained",
    RANDOM: "random groups, retrained",
    NARROW: "uniformly narrower, from scratch",
}
"""Name of a run, which its folder has -> what it is."""


def ways(config: Config, controls: bool) -> dict[str, Config]:
    """Return the runs by name: the network as it is given, the result, and controls if asked for.

    All runs have as many epochs as the one asked for. A control that would be the same run as the
    result is not among them.

    Args:
        config: resolved config of `fit`, with a budget.
        controls: whether there are to be controls.

    Raises:
        ValueError: if the network cannot be made with fresh weights, which a control needs.

    Example:
        >>> config = {"model": {"backbone": "lenet"}, "trainer": {},
        ...           "budget": {"class_path": "Budget", "init_args": {"macs": 0.5}}}
        >>> list(ways(config, controls=True))
        ['given', 'result', 'dense', 'one_shot', 'random', 'narrow']
    """
    found = {GIVEN: as_given(config), RESULT: config}
    if controls:
        makers: dict[str, Callable[[Config], Config]] = {
            DENSE: without_budget,
            ONE_SHOT: lambda c: with_budget(c, method="one_shot", importance="l2"),
            RANDOM: lambda c: with_budget(c, method="one_shot", importance="random"),
            NARROW: narrower,
        }
        for name, make in makers.items():
            control = make(config)
            if control["budget"] is None or settings(control) != settings(config):
                found[name] = control
    return found


def settings(config: Config) -> dict[str, Any]:
    """Return the budget's arguments, with the defaults that decide what is chosen."""
    defaults = {"method": "one_shot", "importance": "measured"}
    return {**defaults, **config["budget"]["init_args"]}


def with_budget(config: Config, **changes: Any) -> Config:
    """Return a config with other arguments of the budget."""
    changed = copy.deepcopy(config)
    changed["budget"]["init_args"].update(changes)
    return changed


def without_budget(config: Config) -> Config:
    """Return a config that trains the dense network for as long.

    Example:
        >>> without_budget({"model": {"penalties": [{"kind": "coupled"}]}, "budget": {}})
        {'model': {'penalties': None}, 'budget': None}
    """
    changed = copy.deepcopy(config)
    changed["budget"] = None
    changed["model"]["penalties"] = None
    return changed


def as_given(config: Config) -> Config:
    """Return a config that trains nothing: what the run begins with is measured."""
    changed = without_budget(config)
    changed["model"]["lr_scheduler"] = None
    changed["trainer"] |= {"max_epochs": 0, "max_steps": -1, "callbacks": None, "logger": False}
    return changed


def narrower(config: Config) -> Config:
    """Return a config that trains a uniformly narrower network from fresh weights."""
    changed = with_budget(config, method="one_shot", importance="uniform", start=0, end=0)
    changed["model"] = fresh(config["model"])
    return changed


def reads_compact(model: Mapping[str, Any]) -> bool:
    """Whether a config's network is read from a folder that `compact` wrote."""
    backbone = model.get("backbone")
    return isinstance(backbone, dict) and backbone["class_path"].endswith("load_compact")


def fresh(model: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config's model with fresh weights.

    Raises:
        ValueError: if they are those of a file that a function reads.

    Example:
        >>> fresh({"backbone": "zoo:lenet_mnist_dense"})
        {'backbone': 'zoo:lenet_mnist_dense', 'backbone_args': {'pretrained': False}}
        >>> fresh({"backbone": "timm:resnet18", "backbone_args": {"pretrained": True}})
        {'backbone': 'timm:resnet18', 'backbone_args': {'pretrained': False}}
        >>> fresh({"backbone": "lenet", "init_from": "dense.ckpt"})
        {'backbone': 'lenet', 'init_from': None}
    """
    if reads_compact(model):
        raise ValueError(
            "--controls: a network that `load_compact` reads cannot be made with fresh weights. "
            "Give a backbone by its name or class, or leave --controls out."
        )
    changed = copy.deepcopy(dict(model))
    backbone = changed.get("backbone")
    if changed.get("init_from"):
        changed["init_from"] = None
    arguments = changed.get("backbone_args") or {}
    if isinstance(backbone, dict):
        arguments = backbone.get("init_args") or {}
    elif isinstance(backbone, str) and backbone.startswith(PREFIX):
        changed["backbone_args"] = {**arguments, "pretrained": False}
        return changed
    if arguments.get("pretrained"):
        arguments["pretrained"] = False
    for name in ("weights", "checkpoint_path"):
        if arguments.get(name):
            arguments[name] = None
    return changed
