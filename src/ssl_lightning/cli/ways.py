"""What `sparsify` and `compare` run, as configs: a run asked for, the dense one, other ways."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from ssl_lightning.callbacks import LowRank
from ssl_lightning.callbacks.peers import PEERS, PATBudget, PeerBudget, TorchPruningBudget
from ssl_lightning.costs import RESOURCES
from ssl_lightning.zoo.loading import PREFIX

Config = dict[str, Any]
TARGETS = (*RESOURCES, "latency_ms")
SHORTEST = 3
"""Epochs of a run of which a third is a window."""
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
    ONE_SHOT: "smallest norms removed",
    RANDOM: "random groups removed",
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


def at_once(importance: str) -> Callable[[Config], Config]:
    """Return what changes a config so that groups go when training begins."""

    def make(config: Config) -> Config:
        budget = {"method": "one_shot", "importance": importance, "start": 0, "end": 0}
        return unpenalised(with_budget(config, **budget))

    return make


def in_window(importance: str, method: str, *penalties: Config) -> Callable[[Config], Config]:
    """Return what changes a config so that a window of a third of the run leads to the budget.

    Args:
        importance: by which groups go at its end.
        method: of the budget, in the window.
        penalties: that act in the window.
    """

    def make(config: Config) -> Config:
        epochs = config["trainer"]["max_epochs"]
        if epochs < SHORTEST:
            raise ValueError(
                f"expected at least {SHORTEST} epochs, a third of which is the window in which the "
                f"way acts, got {epochs}. Give --epochs {SHORTEST}, or more."
            )
        end = epochs // 3
        budget = {"method": method, "importance": importance, "start": 0, "end": end}
        changed = unpenalised(with_budget(config, **budget))
        changed["model"]["penalties"] = [copy.deepcopy(p) for p in penalties] or None
        return changed

    return make


def unpenalised(config: Config) -> Config:
    """Return a config without penalties."""
    changed = copy.deepcopy(config)
    changed["model"]["penalties"] = None
    return changed


def damaged(config: Config) -> Config:
    """Return a config of group-wise brain damage: filter shapes go, by their norms.

    The penalty on them is truncated, and a budget in multiply-adds counts what is left for a
    column-sparse convolution.

    Raises:
        ValueError: if the budget has other targets: zero columns do not change them.

    Reference:
        Lebedev & Lempitsky, Fast ConvNets using group-wise brain damage, 2016.
    """
    changed = in_window("l2", "one_shot", TRUNCATED)(config)
    only_macs("group-wise brain damage", config)
    arguments = changed["budget"]["init_args"]
    arguments["sparse_macs"] = arguments.pop("macs")
    return changed


def only_macs(way: str, config: Config) -> float:
    """Return the multiply-adds of a budget.

    Raises:
        ValueError: if it has other targets, which the way cannot reach.
    """
    arguments = config["budget"]["init_args"]
    targets = [key for key in TARGETS if arguments.get(key) is not None]
    if targets != ["macs"]:
        raise ValueError(
            f"{way}: expected a budget in macs alone, got {', '.join(targets)}. Give --budget.macs."
        )
    return float(arguments["macs"])


def low_rank(method: str) -> Callable[[Config], Config]:
    """Return what changes a config so that low rank factors replace layers when training begins."""

    def make(config: Config) -> Config:
        settings = {"macs": only_macs(f"low rank ({method})", config), "method": method}
        changed = without_budget(config)
        callback = {"class_path": LOW_RANK, "init_args": settings}
        given = changed["trainer"].get("callbacks") or []
        changed["trainer"]["callbacks"] = [*given, callback]
        return changed

    return make


def by_peer(budget: type[PeerBudget]) -> Callable[[Config], Config]:
    """Return what changes a config so that another library acts in a window, to the same budget.

    Raises:
        ValueError: of the maker, if the budget has targets that the class does not take.
    """
    known = inspect.signature(PeerBudget).parameters

    def make(config: Config) -> Config:
        changed = in_window("l2", "one_shot")(config)
        given = {k: v for k, v in changed["budget"]["init_args"].items() if v is not None}
        if others := [key for key in TARGETS if key in given and key not in known]:
            raise ValueError(
                f"{budget.__name__}: expected a budget in macs, parameters or size, got "
                f"{', '.join(others)}. Give --budget.macs."
            )
        settings = {key: value for key, value in given.items() if key in known}
        changed["budget"] = {"class_path": path_of(budget), "init_args": settings}
        return changed

    return make


def path_of(kind: type) -> str:
    """Return the import path of a class."""
    return f"{kind.__module__}.{kind.__qualname__}"


def settings(config: Config) -> dict[str, Any]:
    """Return the budget's arguments, with the defaults that decide what is chosen."""
    defaults = {"method": "one_shot", "importance": "measured"}
    return {**defaults, **config["budget"]["init_args"]}


def with_budget(config: Config, **changes: Any) -> Config:
    """Return a config with other arguments of the budget.

    Raises:
        ValueError: if it is that of another library.
    """
    if (path := config["budget"]["class_path"]) in map(path_of, PEERS):
        raise ValueError(
            f"expected a budget that other ways can be made of, got {path}. Give the library's own "
            "(--budget Budget); `compare --ways torch_pruning pat` has the others."
        )
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


LOW_RANK = path_of(LowRank)
STRENGTH = 1e-4
"""Of penalties in a window: the best of eight for the group lasso on LeNet (docs/budgets.md)."""
TRUNCATED = {"kind": "shape", "strength": STRENGTH, "function": "capped", "theta": 0.1}
LASSO = {"kind": "coupled", "strength": STRENGTH}
SCALES = {"kind": "bn_scale", "strength": STRENGTH, "mode": "subgradient"}
ALTERNATIVES: dict[str, tuple[str, Callable[[Config], Config]]] = {
    "measured": ("measured importance, at once", at_once("measured")),
    "taylor": ("Taylor expansion of the loss, at once", at_once("taylor")),
    "magnitude": ("smallest norms removed, at once", at_once("l2")),
    "fpgm": ("geometric median, at once", at_once("fpgm")),
    "gradual": ("smallest norms removed, gradually", in_window("l2", "gradual")),
    "fading": ("growing regularization", in_window("l2", "fading")),
    "group_lasso": ("group lasso of a constant strength", in_window("l2", "one_shot", LASSO)),
    "slimming": ("network slimming", in_window("bn_scale", "one_shot", SCALES)),
    "gbd": ("group-wise brain damage", damaged),
    "torch_pruning": ("torch-pruning: its GroupNorm pruner", by_peer(TorchPruningBudget)),
    "pat": ("torchao: PAT, then smallest norms removed", by_peer(PATBudget)),
    "tucker": ("low rank: Tucker-2", low_rank("tucker")),
    "svd": ("low rank: singular values", low_rank("svd")),
    "random": ("random groups, at once", at_once("random")),
    "narrow": ("uniformly narrower, from scratch", lambda config: narrower(unpenalised(config))),
    "dense": ("dense, trained as long", without_budget),
}
"""Name of a way, in `compare` -> what it is, and what makes the config of a run by it."""
