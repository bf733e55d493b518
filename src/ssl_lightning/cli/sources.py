"""Which network a command means: a checkpoint, a folder, an entry of the zoo, or a backbone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from ssl_lightning.backbones import BACKBONES, create_backbone, storable
from ssl_lightning.checkpoints import TrainedBackbone
from ssl_lightning.cli.network import (
    LAST,
    load_trained,
    not_needed,
    own_network,
    refuse_folder,
    with_own_network,
)
from ssl_lightning.compaction import load_compact, plan_and_compact
from ssl_lightning.compaction.store import Recipe, read_recipe
from ssl_lightning.measure import count_macs, num_parameters
from ssl_lightning.suggest import nearest
from ssl_lightning.zoo.cards import CARD
from ssl_lightning.zoo.entries import list_models, zoo_root
from ssl_lightning.zoo.loading import PREFIX, load_entry

WEIGHTS = ("pretrained", "weights", "checkpoint_path")
"""Arguments with which a backbone gets trained weights."""
MODULES = ("timm:", "torchvision:")
"""How names of other libraries' backbones begin."""


@dataclass(frozen=True)
class NamedNetwork:
    """A network that the user named on the command line.

    Attributes:
        model: the network, in eval mode, with the zeros that it has.
        recipe: how its architecture is made again.
        name: of the network in words, for titles.
        trained: what its checkpoint holds, if it is from one.
        path: file or folder that it is from; None if it is from a name.
        home: folder that may hold the ``config.yaml`` it was trained with.
        fresh: whether its weights are as they were drawn, since it was given by name.
    """

    model: nn.Module
    recipe: Recipe
    name: str
    trained: TrainedBackbone | None = None
    path: Path | None = None
    home: Path | None = None
    fresh: bool = False

    def example(self) -> Tensor:
        """Return zeros in the shape of one input, ``(1, ...)``.

        Raises:
            ValueError: if the network does not tell its shape.
        """
        shape = getattr(self.model, "input_shape", None)
        if shape is None:
            raise ValueError(
                f"Cannot tell what {self.name} takes: expected a network with an attribute "
                "`input_shape`, such as (3, 224, 224). Give it one, or call the library in Python."
            )
        return torch.zeros(1, *shape)

    def masked(self) -> nn.Module:
        """Return the network with the sizes that training started with, if that is known."""
        return self.model if self.trained is None else self.trained.masked()

    def beside(self, of_run: str, ending: str) -> Path:
        """Return where to write what a command makes of the network.

        Args:
            of_run: name in the folder above a checkpoint's.
            ending: of the name beside a folder, or, of what is given by name, in the working
                folder.

        Example:
            >>> net = NamedNetwork(nn.Identity(), Recipe("timm:resnet18", {}), "timm:resnet18")
            >>> net.beside("model.onnx", ".onnx").as_posix()
            'timm-resnet18.onnx'
        """
        if self.path is None:
            return Path(f"{plain(self.name)}{ending}")
        if self.trained is None:
            return self.path.parent / f"{self.path.resolve().name}{ending}"
        return self.path.parent.parent / of_run


def plain(name: str) -> str:
    """Return a name that a file can have.

    Example:
        >>> plain("zoo:lenet_mnist_dense"), plain("timm:vit_tiny.augreg")
        ('lenet_mnist_dense', 'timm-vit_tiny.augreg')
    """
    return re.sub(r"[^\w.-]", "-", name.removeprefix(PREFIX))


def named_network(
    source: str,
    model: str | None = None,
    config: str | None = None,
    backbone_args: Mapping[str, Any] | None = None,
) -> NamedNetwork:
    """Return the network that the user means. What exists as a path is taken as one.

    Args:
        source: checkpoint that ``fit`` wrote, folder that ``compact`` wrote, folder of a zoo entry,
            ``zoo:<name>``, or name of a backbone, such as ``timm:mobilenetv3_small_100``.
        model: import path of the class of a checkpoint's or folder's network, if it is the
            user's own.
        config: file whose ``model.backbone`` names the class and its arguments.
        backbone_args: arguments of an entry or backbone that is given by name.

    Raises:
        FileNotFoundError: if there is no such checkpoint, or a file of a folder is missing.
        ValueError: if nothing of that name is known, a file is damaged, or an argument is given
            that the source does not need.
    """
    path = Path(source)
    by_name = not path.exists() and is_name(source)
    if by_name or (path / CARD).is_file():
        if model is not None or config is not None:
            what = "a backbone's name" if by_name else "an entry of the zoo"
            raise not_needed(f"{source} is {what}", config)
        return from_name(source, backbone_args or {}) if by_name else from_entry(path)
    if backbone_args:
        raise ValueError(
            f"{source} holds the arguments of its backbone. Leave --backbone_args out; they are "
            "for backbones and entries given by name."
        )
    refuse_unknown(source)
    refuse_folder(path, LAST, "compact", "result/compact")
    if path.is_dir():
        own = own_network(model, config)
        small = with_own_network(lambda given: load_compact(path, given), path, own)
        recipe = read_recipe(path, str(path))
        return NamedNetwork(small, recipe, recipe.backbone, path=path, home=path.parent)
    trained = load_trained(path, model, config)
    home = path.parent.parent
    return NamedNetwork(trained.model, trained.recipe(), trained.name, trained, path, home)


def is_name(source: str) -> bool:
    """Whether a text is the name of a backbone or entry, known or not.

    Example:
        >>> [is_name(text) for text in ("lenet", "zoo:x", "timm:vit_tiny", "a.ckpt")]
        [True, True, True, False]
    """
    return source in BACKBONES or source.startswith((PREFIX, *MODULES))


def from_name(source: str, arguments: Mapping[str, Any]) -> NamedNetwork:
    """Return an entry's or a backbone's network.

    Raises:
        FileNotFoundError: if there is no zoo, or the entry's weights are not stored.
        ValueError: if the name or an argument is unknown.
    """
    if source.startswith(PREFIX):
        network, recipe = load_entry(source, arguments)
        name = source.removeprefix(PREFIX)
        home = zoo_root(arguments.get("root")) / name
        fresh = arguments.get("pretrained") is False
        return NamedNetwork(network, recipe, name, home=home, fresh=fresh)
    network = create_backbone(source, **arguments).eval()
    recipe = Recipe(source, storable(source, arguments))
    return NamedNetwork(network, recipe, source, fresh=not any(map(arguments.get, WEIGHTS)))


def from_entry(path: Path) -> NamedNetwork:
    """Return the network of a zoo entry's folder."""
    folder = path.resolve()
    network, recipe = load_entry(f"{PREFIX}{folder.name}", {"root": folder.parent})
    return NamedNetwork(network, recipe, folder.name, path=path, home=folder)


def refuse_unknown(source: str) -> None:
    """Refuse what is neither there nor looks like a file, and say what may be given.

    Raises:
        ValueError: if so.
    """
    path = Path(source)
    if path.exists() or path.name != source or path.suffix:
        return
    with suppress(FileNotFoundError):  # there is no zoo
        if source in list_models():
            folder = zoo_root() / path
            raise ValueError(
                f"No file or folder {path}. The zoo's entry of this name is {folder}. Give "
                f"{PREFIX}{source} or that folder."
            )
    raise ValueError(
        f"No file or folder {path}, and no backbone of that name. {nearest(source, BACKBONES)} "
        "Give a checkpoint, a folder that `compact` wrote, zoo:<name>, timm:<name>, "
        "torchvision:<name> or the name of a backbone."
    )


def in_form(named: NamedNetwork, *, masked: bool) -> nn.Module:
    """Return a network as it is written: a checkpoint's is compacted, unless its zeros stay in."""
    if masked or named.trained is None:
        return named.masked()
    return plan_and_compact(named.model, named.example())[1]


def warn_of_fresh(console: Console, named: NamedNetwork) -> None:
    """Say that fresh weights do not show what a network needs, if it has such."""
    if named.fresh:
        console.print(
            f"note: {named.name} has fresh weights, which say nothing of what it needs. Give a "
            "checkpoint, or for a backbone of timm `--backbone_args '{pretrained: true}'`.",
            highlight=False,
        )


def sizes_of(model: nn.Module, example: Tensor) -> dict[str, int]:
    """Return what a network holds and computes.

    Example:
        >>> sizes_of(nn.Linear(4, 2), torch.zeros(1, 4))
        {'parameters': 10, 'MACs': 8}
    """
    return {"parameters": num_parameters(model), "MACs": count_macs(model, example)}


def print_change(console: Console, before: Mapping[str, int], after: Mapping[str, int]) -> None:
    """Print a line for each figure of two networks."""
    for what, count in before.items():
        share = 100 * after[what] / max(count, 1)
        console.print(f"{what}: {count:,} -> {after[what]:,} ({share:.1f} %)")
