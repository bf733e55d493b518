"""A published network as a plain module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from ssl_lightning.compaction.plan import Plan
from ssl_lightning.compaction.store import RECIPE, WEIGHTS, Recipe, read_compact
from ssl_lightning.suggest import check_keys
from ssl_lightning.zoo.cards import CONFIG, Card
from ssl_lightning.zoo.entries import checked_entry

PREFIX = "zoo:"
"""Of a backbone's name that is an entry's."""


def load(name: str, root: str | Path | None = None, *, pretrained: bool = True) -> nn.Module:
    """Return a published network, in eval mode; it can be trained on.

    All files are checked against the card before they are parsed, and nothing is unpickled.

    Args:
        name: an entry of :func:`ssl_lightning.zoo.list_models`.
        root: folder of entries; see :func:`ssl_lightning.zoo.entries.zoo_root` for the default.
        pretrained: with the published weights; otherwise the same small layers with fresh ones,
            scaled for the number of inputs that each layer has now.

    Raises:
        FileNotFoundError: if there is no zoo, or a file of the entry is missing.
        ValueError: if the name is no plain name or unknown, or a file is not what was published.
    """
    return load_with_recipe(name, root, pretrained=pretrained)[0]


def load_with_recipe(
    name: str, root: str | Path | None = None, *, pretrained: bool = True
) -> tuple[nn.Module, Recipe]:
    """Return what :func:`load` does, and how its architecture is made again.

    Returns:
        The network and its recipe.

    Raises:
        FileNotFoundError, ValueError: as :func:`load`.
    """
    card, files = checked_entry(name, root)
    return build(files, card, pretrained), read_recipe(files)


def load_entry(backbone: str, arguments: Mapping[str, Any]) -> tuple[nn.Module, Recipe]:
    """Return the network of an entry that is named as a backbone, and how it is made again.

    Args:
        backbone: ``"zoo:<name>"``.
        arguments: ``pretrained`` and ``root`` of :func:`load`.

    Returns:
        The network, in eval mode, and its recipe.

    Raises:
        FileNotFoundError, ValueError: as :func:`load`, and if another argument is given.
    """
    check_keys(f"The backbone {backbone}", arguments, ("pretrained", "root"))
    return load_with_recipe(backbone.removeprefix(PREFIX), **arguments)


def load_with_digest(name: str) -> tuple[nn.Module, str]:
    """Return what :func:`load` does, and the sha256 of the file of its weights.

    Raises:
        FileNotFoundError, ValueError: as :func:`load`.
    """
    card, files = checked_entry(name)
    return build(files, card), card.files[WEIGHTS].sha256


def read_recipe(files: dict[str, bytes]) -> Recipe:
    """Return the recipe among checked files."""
    return Recipe.from_json(files[RECIPE], RECIPE)


def build(files: dict[str, bytes], card: Card, pretrained: bool = True) -> nn.Module:
    """Return the network that checked files describe: these very bytes, whatever is on disk now.

    Raises:
        FileNotFoundError: if weights are wanted that are not stored.
    """
    if not pretrained:
        recipe = read_recipe(files)
        return rescale_(recipe.create(), recipe.plans).eval()
    if card.weights.unstored is not None:
        raise FileNotFoundError(not_stored(card))
    return build_stored(files)


def build_stored(files: dict[str, bytes]) -> nn.Module:
    """Return the network of checked files with their weights, in float32 however stored."""
    with TemporaryDirectory() as folder:
        for file, content in files.items():
            Path(folder, file).write_bytes(content)
        return read_compact(Path(folder), "the entry").float()


def not_stored(card: Card) -> str:
    """Say that an entry has no weights, and how to get them."""
    assert card.weights.unstored is not None
    size = card.weights.unstored.num_bytes / 1e6
    return (
        f"The weights of {card.name!r} are not stored ({size:.1f} MB): the entry keeps config, "
        "curves, figures and hash. Train them with `ssl-lightning fit --config` and the "
        f"{CONFIG} of the entry, or load it with `pretrained=False`."
    )


@torch.no_grad()
def rescale_(small: nn.Module, plans: Sequence[Plan]) -> nn.Module:
    """Scale fresh weights, drawn for the dense layers' inputs, for the remaining inputs.

    The usual initialisations have a standard deviation of one over the root of the number of
    inputs: slices of the dense layers' would start a small network from too small weights.
    """
    modules = dict(small.named_modules())
    for name, slices in (item for plan in plans for item in plan.modules.items()):
        weight = getattr(modules.get(name), "weight", None)
        inputs = slices.inputs if slices.reads is None else slices.reads
        if isinstance(weight, nn.Parameter) and weight.dim() > 1 and inputs:
            weight.mul_((slices.of[0] / len(inputs)) ** 0.5)
    return small
