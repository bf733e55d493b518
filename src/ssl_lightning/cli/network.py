"""The user's own network, which commands import because the user names it, never because a file."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import yaml
from jsonargparse import ArgumentParser
from torch import nn

from ssl_lightning.checkpoints import TrainedBackbone, load_backbone
from ssl_lightning.cli.examples import program
from ssl_lightning.cli.own_runs import is_own_run
from ssl_lightning.cli.tables import say
from ssl_lightning.compaction.store import RECIPE, OwnNetwork, OwnNetworkError, is_own_class
from ssl_lightning.zoo.loading import PREFIX

LAST = "checkpoints/last.ckpt"
Loaded = TypeVar("Loaded")


def load_trained(
    checkpoint: str | Path, model: str | None = None, config: str | None = None
) -> TrainedBackbone:
    """Return the trained backbone of a checkpoint.

    A network of the user's own has to be named, unless the checkpoint lies in the folder of a run
    in which this user trained it (see :mod:`ssl_lightning.cli.own_runs`).

    Args:
        checkpoint: file that ``fit`` wrote.
        model: import path of the network's class, or of a function that makes it.
        config: file whose ``model.backbone`` names the class and its arguments.

    Raises:
        FileNotFoundError, ValueError: as :func:`load_backbone`, and if a network is given for a
            checkpoint that has a backbone by name.
    """
    refuse_folder(Path(checkpoint), LAST, f"result/{LAST}")
    refuse_compact(str(checkpoint))
    own = own_network(model, config)
    trained = with_own_network(lambda given: load_backbone(checkpoint, given), checkpoint, own)
    if own is not None and trained.own is None:
        raise not_needed(f"{checkpoint} has the backbone {trained.name!r}", config)
    return trained


def not_needed(what: str, config: str | None) -> ValueError:
    """Return the error for a network that is given though the file's is made by its name."""
    flag = "--model" if config is None else "--config"
    return ValueError(f"{what}, which is made by its name. Leave {flag} out.")


def refuse_folder(path: Path, *inside: str) -> None:
    """Refuse the folder of a run, and say what in it may be given.

    Args:
        path: that was given.
        inside: what the command takes, as paths from the run's folder.

    Raises:
        ValueError: if one of them is there.
    """
    there = [str(path / one) for one in inside if (path / one).exists()]
    if there:
        raise ValueError(f"{path} is the folder of a run. Give {' or '.join(there)}.")


def refuse_compact(source: str) -> None:
    """Refuse what is compact already, where a checkpoint is wanted, and say what takes it.

    Raises:
        ValueError: if it is an entry of the zoo, or a folder that `compact` wrote.
    """
    if source.startswith(PREFIX) or (Path(source) / RECIPE).is_file():
        raise ValueError(
            f"Expected a checkpoint that `fit` wrote, got {source}, which is compact already. "
            f"`{program()} export {source}`, sensitivity, prune and evaluate take it."
        )


def with_own_network(
    load: Callable[[OwnNetwork | None], Loaded], path: str | Path, own: OwnNetwork | None
) -> Loaded:
    """Load a file with the network that the user names, or that they trained where it lies.

    Args:
        load: reads the file, given the network, its class or nothing.
        path: of the file.
        own: what the user names.
    """
    try:
        return load(own)
    except OwnNetworkError as error:
        if not is_own_run(Path(path), error.name):
            raise
        say(f"{path}: of {error.name}, which you trained in this folder.")
        return load(imported(error.name))


def own_network(model: str | None, config: str | None) -> OwnNetwork | None:
    """Return the network that the user names, its class or the function that makes it.

    Raises:
        ValueError: if both are given, or it cannot be imported or made.
    """
    if model is not None and config is not None:
        raise ValueError("Expected --model or --config, got both. Leave one out.")
    if config is not None:
        return network_of_config(Path(config))
    return None if model is None else imported(model)


def imported(path: str) -> OwnNetwork:
    """Return the class or function that an import path names.

    Example:
        >>> imported("torch.nn.Dropout").__name__
        'Dropout'

    Raises:
        ValueError: if there is none.
    """
    where = "--model: expected the import path of a network's class, such as my_package.MyNetwork"
    if not is_own_class(path):
        raise ValueError(f"{where}, got {path!r}.")
    module, _, name = path.rpartition(".")
    try:
        found: Any = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"{where}, got {path!r}: {error}. Where it is in a folder of its own, name that in "
            "PYTHONPATH."
        ) from error
    if not callable(found):
        raise ValueError(f"{where}, got {path!r}, which is a {type(found).__name__}.")
    return found  # type: ignore[no-any-return]


def network_of_config(path: Path) -> nn.Module:
    """Return the network that a config's ``model.backbone`` names, with fresh weights.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it names no class, or the class cannot be made.
    """
    if not path.is_file():
        raise FileNotFoundError(f"--config: no file {path}.")
    try:
        content = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"--config: {path} is no YAML: {error}") from error
    section = content.get("model") if isinstance(content, dict) else None
    given = section.get("backbone") if isinstance(section, dict) else None
    if not isinstance(given, dict) or "class_path" not in given:
        raise ValueError(
            f"--config: expected `model: {{backbone: {{class_path: ...}}}}` in {path}, got "
            f"{given!r}. A backbone by name needs no --config."
        )
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--backbone", type=nn.Module)
    try:
        parsed = parser.parse_object({"backbone": given})
        instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes
        network = instantiate(parsed).backbone
    except Exception as error:  # the parser's own kinds, and whatever the network's code raises
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"--config: cannot make {given['class_path']} as {path} says: {reason}"
        ) from error
    assert isinstance(network, nn.Module)
    return network
