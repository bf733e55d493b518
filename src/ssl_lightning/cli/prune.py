"""prune: the least important groups of a network are zeroed and removed, without training."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from torch import Tensor, nn

from ssl_lightning.cli.examples import program, suggest
from ssl_lightning.cli.network import LAST
from ssl_lightning.cli.parse import call
from ssl_lightning.cli.sources import (
    NamedNetwork,
    named_network,
    print_change,
    sizes_of,
    warn_of_fresh,
)
from ssl_lightning.compaction import plan_and_compact, save_compact
from ssl_lightning.compaction.store import is_unknown_class
from ssl_lightning.groups import resolve_each
from ssl_lightning.measure.turns import several
from ssl_lightning.prune import PruneReport, prune_
from ssl_lightning.suggest import reasons


def run(name: str, arguments: list[str]) -> None:
    """Carry out the command."""
    call(prune_network, name, arguments)


def prune_network(
    network: str,
    macs: float | None = None,
    parameters: float | None = None,
    size: float | None = None,
    depth: float | None = None,
    latency: float | None = None,
    latency_ms: float | None = None,
    engine: str | None = None,
    fraction: float | None = None,
    threshold: float | None = None,
    kind: str | list[str] = "coupled",
    layers: str | list[str] = "*",
    importance: str = "l2",
    multiple: int | Literal["auto"] | None = None,
    seed: int = 0,
    output: str | None = None,
    backbone_args: dict[str, Any] | None = None,
    model: str | None = None,
    config: str | None = None,
) -> None:
    """Zero the least important groups of a network, remove them, and write what is left.

    Nothing is trained. One budget or several say how much is left, or else a fraction or threshold.

    Args:
        network: checkpoint that ``fit`` wrote, folder that ``compact`` wrote, ``zoo:<name>``, or
            name of a backbone, such as ``timm:mobilenetv3_small_100``.
        macs: multiply-adds that are left at most: a share of the network's, or a number above 100.
        parameters: the same for its parameters.
        size: the same for the bytes of its parameters and buffers.
        depth: the same for its convolutions and linear layers; whole layers go then.
        latency: share of the network's time in an engine that is left at most.
        latency_ms: the same in milliseconds.
        engine: where the network will run: eager, compile, onnxruntime or openvino.
        fraction: share of all groups to zero.
        threshold: largest norm of a group to zero.
        kind: of the groups, or a list of several: coupled, filter, head, ffn, depth, ...
        layers: pattern of the layers to prune, or a list of several.
        importance: l2, l1, fpgm, bn_scale, random, uniform, or the JSON file that ``sensitivity``
            wrote of it.
        multiple: retain a multiple of so many groups where any go, such as 8 or 16; auto, the
            default with an engine: what its own timings say; without one 1.
        seed: of random importance, and of the weights of a backbone given by name.
        output: folder to write to; default: ``pruned`` in the folder above the checkpoint's, or,
            for a folder or a name, that with ``-pruned``.
        backbone_args: arguments of a backbone given by name, such as '{"pretrained": true}'.
        model: import path of the network's class, such as ``my_package.MyNetwork``, if it is your
            own.
        config: instead, the config that it was trained with, whose ``model.backbone`` is used.
    """
    budgets = {"macs": macs, "parameters": parameters, "size": size, "depth": depth}
    budgets |= {"latency": latency, "latency_ms": latency_ms}
    goal = one_goal(budgets, {"fraction": fraction, "threshold": threshold})
    torch.manual_seed(seed)
    named = named_network(network, model, config, backbone_args)
    net, example, console = named.model, named.example(), Console()
    warn_of_fresh(console, named)
    if output is not None:
        check_folder(Path(output))
    before = sizes_of(net, example)
    kinds = dict.fromkeys([*several(kind), *(["depth"] if depth is not None else [])])
    groups = group_settings(net, example, list(kinds), several(layers))
    settings = {**goal, **groups, "importance": importance}
    settings |= {"multiple": multiple, "engine": engine}
    report = pruned(net, example, settings)
    console.print(str(replace(report, macs=None)), highlight=False, soft_wrap=True)
    plan, small = plan_and_compact(net, example)
    recipe = named.recipe.then(plan)
    folder = Path(output) if output else named.beside("pruned", "-pruned")
    save_compact(folder, small, recipe.plans, recipe.backbone, recipe.arguments)
    print_change(console, before, sizes_of(small, example))
    for note in plan.notes:
        console.print(f"note: {note}")
    console.print(f"The compact network's outputs agree with the pruned one's. Wrote {folder}")
    console.print(how_to_train(folder, named), soft_wrap=True, highlight=False)
    suggest(f"export {folder}")


def check_folder(folder: Path) -> None:
    """Refuse to write a network where a file or a run is.

    Raises:
        ValueError: if so.
    """
    what = "a file" if folder.is_file() else "the folder of a run"
    if folder.is_file() or (folder / LAST).exists():
        raise ValueError(f"--output: {folder} is {what}. Give another folder.")


def pruned(model: nn.Module, example: Tensor, settings: Mapping[str, Any]) -> PruneReport:
    """Prune a network in place.

    Raises:
        ValueError: as :func:`prune_`, and if there is nothing to prune.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="prune_: .*nothing is pruned")
        report = prune_(model, example, **settings)
    if not report.zeroed:
        why = "; ".join(["", *reasons(report.retained)])
        raise ValueError(
            f"prune: expected groups that compaction could remove, got none in "
            f"{type(model).__name__}{why}. Give other groups (--kind)."
        )
    return report


def one_goal(
    budgets: Mapping[str, float | None], others: Mapping[str, float | None]
) -> dict[str, Any]:
    """Return how much :func:`prune_` shall zero: several budgets together, or one other goal.

    Raises:
        ValueError: if nothing is given, or goals that exclude each other.

    Example:
        >>> one_goal({"macs": 0.5, "depth": 14, "size": None}, {"fraction": None})
        {'budget': {'macs': 0.5, 'depth': 14}}
    """
    budget = {name: value for name, value in budgets.items() if value is not None}
    goals: dict[str, Any] = {name: value for name, value in others.items() if value is not None}
    if len(goals) + bool(budget) != 1:
        flags = [f"--{name}" for name in (*budget, *goals)]
        raise ValueError(
            f"prune: expected budgets ({', '.join(f'--{name}' for name in budgets)}) or one of "
            f"{', '.join(f'--{name}' for name in others)}, got {' and '.join(flags) or 'none'}. "
            "Give --macs 0.5, say."
        )
    return goals or {"budget": budget}


def group_settings(
    model: nn.Module, example: Tensor, kinds: Sequence[str], layers: Sequence[str]
) -> dict[str, Any]:
    """Return the groups for :func:`prune_` or :func:`sensitivity`: a kind, or groups.

    Depth groups in all layers are those of layers with a shortcut around them.

    Args:
        model: the network.
        example: of its inputs.
        kinds: that the user named.
        layers: patterns.

    Raises:
        ValueError: if depth groups in all layers are asked for and no layer has a shortcut.

    Example:
        >>> group_settings(nn.Linear(4, 2), torch.zeros(1, 4), ["coupled"], ["*"])
        {'kind': 'coupled'}
        >>> group_settings(nn.Linear(4, 2), torch.zeros(1, 4), ["neuron_out"], ["conv*"])
        {'groups': [{'kind': 'neuron_out', 'layers': ['conv*']}]}
    """
    everywhere = list(layers) == ["*"]
    if "depth" not in kinds or not everywhere:
        if len(kinds) == 1 and everywhere:
            return {"kind": kinds[0]}
        return {"groups": [{"kind": kind, "layers": list(layers)} for kind in kinds]}
    (whole,) = resolve_each(model, [{"kind": "depth"}], example, strict=False)
    if not whole:
        raise ValueError(
            f"Expected layers with a shortcut around them, which depth groups need; "
            f"{type(model).__name__} has none. Give other groups or budgets."
        )
    return {"groups": [*whole, *({"kind": kind} for kind in kinds if kind != "depth")]}


def how_to_train(folder: Path, named: NamedNetwork) -> str:
    """Say that a pruned network is to be trained, and how."""
    said = "It was not trained after pruning, so its error is higher than it could be."
    if is_unknown_class(named.recipe.backbone):
        return (
            f"{said} To train it, give `load_compact({str(folder)!r}, model=...)` to "
            "SSLLightningModule in Python, with your network."
        )
    spec = f"{{class_path: ssl_lightning.load_compact, init_args: {{folder: {folder}}}}}"
    return (
        f"{said} To train it:\n  {program()} fit --config CONFIG --model.backbone '{spec}'\n"
        "where CONFIG has the data, the optimizer and no `backbone_args`. Give `compact` and "
        "others the config.yaml of that run: `--config`."
    )
