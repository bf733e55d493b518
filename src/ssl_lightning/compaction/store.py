"""Compact networks on disk: a plan, the backbone's name and arguments, and tensors. No pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, load_model, save_model
from torch import nn

from ssl_lightning.backbones import create_backbone
from ssl_lightning.compaction.plan import Plan
from ssl_lightning.compaction.planning import apply_plan
from ssl_lightning.files import replacing

WEIGHTS = "model.safetensors"
RECIPE = "plan.json"
OTHER_WEIGHTS = ("pretrained", "checkpoint_path")
"""Arguments of a backbone that load weights, which the stored ones would replace."""


@dataclass(frozen=True)
class Recipe:
    """How the architecture of a compact network is made again.

    Attributes:
        backbone: name of the backbone it was made from.
        arguments: of that backbone.
        plans: what is kept of it, one after the other; usually one.

    Example:
        >>> recipe = Recipe("mlp", {"widths": [4]}, (Plan({}, (), ()),))
        >>> recipe.create().fc2.in_features, Recipe.from_json(recipe.to_json()) == recipe
        (4, True)
    """

    backbone: str
    arguments: dict[str, Any]
    plans: tuple[Plan, ...] = ()

    def create(self) -> nn.Module:
        """Return the architecture, with fresh weights.

        Raises:
            ValueError: if the plan does not fit the backbone.
        """
        model = self.create_dense()
        for plan in self.plans:
            apply_plan(model, plan)
        return model

    def create_dense(self) -> nn.Module:
        """Return the backbone that it was made from, with fresh weights."""
        return create_backbone(self.backbone, **self._without_weights())

    def _without_weights(self) -> dict[str, Any]:
        return {k: v for k, v in self.arguments.items() if k not in OTHER_WEIGHTS}

    def then(self, *plans: Plan) -> Recipe:
        """Return the recipe of what further plans leave of this network."""
        return Recipe(self.backbone, self.arguments, (*self.plans, *plans))

    def to_json(self) -> str:
        """Return the content of ``plan.json``."""
        recipe = {
            "backbone": self.backbone,
            "arguments": self.arguments,
            "plan": plans_to_data(self.plans),
        }
        return json.dumps(recipe, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, where: str = "Recipe") -> Recipe:
        """Read what :meth:`to_json` wrote.

        Args:
            text: the JSON.
            where: it was found, for messages.

        Raises:
            ValueError: if it is damaged.
        """
        try:
            recipe = json.loads(text)
            plans = plans_from_data(recipe["plan"])
            return cls(str(recipe["backbone"]), dict(recipe["arguments"]), plans)
        except (
            json.JSONDecodeError,
            KeyError,
            TypeError,
            AttributeError,
            UnicodeDecodeError,
        ) as error:
            raise ValueError(f"{where} is damaged: {type(error).__name__}: {error}.") from error


def save_compact(
    folder: str | Path,
    model: nn.Module,
    plan: Plan | Sequence[Plan],
    backbone: str,
    arguments: Mapping[str, Any],
) -> Path:
    """Write a compact network to ``folder``; :func:`load_compact` reads it.

    Args:
        folder: made if missing. It gets ``model.safetensors`` and ``plan.json``, each replaced
            only once it is complete.
        model: the compact network.
        plan: the plan it was made with, or several in the order in which they were carried out on
            the backbone.
        backbone: name of the backbone it was made from.
        arguments: arguments of that backbone.

    Returns:
        The folder.
    """
    folder = Path(folder)
    recipe = Recipe(backbone, dict(arguments), (plan,) if isinstance(plan, Plan) else tuple(plan))
    with replacing(folder / WEIGHTS) as weights, replacing(folder / RECIPE) as text:
        save_model(model, str(weights))
        text.write_text(recipe.to_json())
    return folder


def load_compact(folder: str | Path) -> nn.Module:
    """Return the compact network that :func:`save_compact` wrote, in eval mode.

    The backbone is created, shrunk by the plan, and then gets the stored tensors: the weights it
    was compacted from are not needed, and nothing is unpickled.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if a file is damaged, or tensors and plan do not fit each other.
    """
    folder = Path(folder)
    model = create_small(folder)
    try:
        stored = load_file(folder / WEIGHTS).values()
        types = {tensor.dtype for tensor in stored if tensor.is_floating_point()}
        if len(types) == 1:
            model.to(types.pop())
        load_model(model, folder / WEIGHTS)
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(
            f"{folder / WEIGHTS} is damaged or does not belong to {RECIPE}: {error}"
        ) from error
    return model.eval()


def plans_to_data(plans: Sequence[Plan]) -> Any:
    """Return plans as plain values: one alone as a mapping, several as a list of them."""
    data = [json.loads(plan.to_json()) for plan in plans]
    return data[0] if len(data) == 1 else data


def plans_from_data(data: Any) -> tuple[Plan, ...]:
    """Return the plans that :func:`plans_to_data` turned into plain values.

    Raises:
        ValueError: if one of them is damaged.

    Example:
        >>> plan = Plan({}, ((1, 3),), ("float32",))
        >>> plans_from_data(plans_to_data([plan, plan])) == (plan, plan)
        True
    """
    given = data if isinstance(data, list) else [data]
    return tuple(Plan.from_json(json.dumps(each)) for each in given)


def create_small(folder: str | Path) -> nn.Module:
    """Return the architecture that :func:`save_compact` stored, with fresh weights.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if the plan is damaged, or does not fit the backbone.
    """
    folder = Path(folder)
    for name in (WEIGHTS, RECIPE):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"No {name} in {folder}: a compact network is a folder with {WEIGHTS} and "
                f"{RECIPE}. Write one with `ssl-lightning compact CHECKPOINT`."
            )
    return Recipe.from_json((folder / RECIPE).read_bytes(), str(folder / RECIPE)).create()
