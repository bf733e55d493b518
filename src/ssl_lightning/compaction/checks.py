"""Mistakes with plans and compact networks, which would not show before much later."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from ssl_lightning.compaction.plan import Plan
from ssl_lightning.compaction.rewrite import check_modules
from ssl_lightning.graph.layers import FOLDING
from ssl_lightning.suggest import shortened


def check_carried_out(model: nn.Module, plan: Plan, where: str) -> None:
    """Make sure that a plan was carried out on a model.

    Raises:
        ValueError: if all that it cuts is whole.
    """
    try:
        check_modules(model, plan.removed())
    except ValueError:
        return
    if plan.removed():
        raise ValueError(
            f"{where}: expected the compact network, got a {type(model).__name__} that the plan "
            "was not carried out on. Give what `compact(net, plan)` returned."
        )


def warn_of_later_zeros(model: nn.Module, plan: Plan, where: str) -> None:
    """Warn where filters of a network are zero that are not in its plan, carried out or not."""
    layers = dict(model.named_modules())
    for name, slices in plan.modules.items():
        layer = layers.get(name)
        if not isinstance(layer, FOLDING) or slices.zero or slices.constant:
            continue
        zero = (layer.weight.flatten(1) == 0).all(1)
        if layer.bias is not None:
            zero = zero & (layer.bias == 0)
        if len(zero) == slices.of[1]:
            zero = zero[list(slices.outputs if slices.writes is None else slices.writes)]
        if (more := int(zero.sum()) - slices.idle) > 0:
            warnings.warn(
                f"{where}: {more} filters of `{name}` became zero after the plan was made, and "
                "remain. Make the plan after pruning: plan = make_plan(net, x), then "
                "compact(net, plan).",
                stacklevel=3,
            )
            return


def check_saved(folder: object, model: object, plan: object) -> None:
    """Refuse arguments of ``save_compact`` in another order, or of other types.

    Raises:
        ValueError: saying what was given.
    """
    plans = [plan] if isinstance(plan, Plan) else plan
    given = isinstance(plans, Sequence) and all(isinstance(each, Plan) for each in plans)
    if not (folder and isinstance(folder, (str, Path)) and isinstance(model, nn.Module) and given):
        types = ", ".join(type(each).__name__ for each in (folder, model, plan))
        raise ValueError(
            f"save_compact: expected a folder, a network and its plan, got {types}. Call "
            "save_compact(folder, small, plan)."
        )
    if Path(folder).exists() and not Path(folder).is_dir():
        raise ValueError(f"save_compact: expected a folder, got the file {folder}. Give another.")


def check_storable(arguments: Mapping[str, Any]) -> None:
    """Refuse arguments of a backbone that JSON cannot hold.

    Raises:
        ValueError: naming the argument.
    """
    for name, value in arguments.items():
        try:
            json.dumps(value)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"save_compact: expected numbers, words, lists and mappings as arguments of the "
                f"backbone, got {type(value).__name__} as {shortened(name)}. Give plain values."
            ) from error
