"""Checkpoints that are whole, or not there; and that run no code when they are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.plugins.io.wrapper import _WrappingCheckpointIO
from lightning.pytorch.strategies import Strategy

from ssl_lightning.backbones import admit
from ssl_lightning.checkpoints import (
    checked,
    read_checkpoint,
    read_shape,
    read_start,
    unreadable,
)
from ssl_lightning.compaction.store import Recipe
from ssl_lightning.files import replacing
from ssl_lightning.suggest import shortened
from ssl_lightning.zoo.loading import PREFIX

IMPORTED = ("_instantiator", "_class_path", "optimizer", "lr_scheduler", "init_from")
"""Settings that Lightning or the module would import, call or open; none is in our checkpoints."""
KINDS: dict[str, tuple[type, ...]] = {
    "backbone": (str,),
    "backbone_args": (Mapping, type(None)),
    "penalties": (list, type(None)),
    "lr_interval": (str,),
    "parameter_groups": (list, type(None)),
    "input_shape": (list, type(None)),
    "num_classes": (int, type(None)),
    "label_smoothing": (int, float),
    "loss": (str, type(None)),
    "metrics": (Mapping, type(None)),
    "seed_batches": (bool,),
    "channels_last": (bool,),
    "compile": (bool,),
}
"""Setting of the module -> what it is in a checkpoint."""
CALLED = ("class_path", "init_args", "dict_kwargs")
"""Keys of what a parser of configs imports and calls; none is in our checkpoints."""
SETTINGS = ("hyper_parameters", "hparams", "module_arguments")
"""Parts of a checkpoint in which Lightning looks for the settings of a module, now or long ago."""


class WholeFiles(TorchCheckpointIO):
    """Write checkpoints beside their final name, on the same file system; read them safely.

    Lightning's own writer uses ``TMPDIR`` and copies from there, so that a killed run, or a
    full disk, leaves a truncated file where the checkpoint before was.
    """

    def load_checkpoint(
        self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint as :func:`read_checkpoint`, unless the caller says that it is trusted.

        Args:
            path: of the file.
            map_location: of its tensors.
            weights_only: ``False`` unpickles whatever the file holds, and so runs its code.

        Raises:
            FileNotFoundError, ValueError: as :func:`read_checkpoint`.
        """
        if weights_only is False:
            return super().load_checkpoint(path, map_location, weights_only)
        return read_anywhere(path, map_location)

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint; of remote paths Lightning takes care itself.

        Raises:
            DiskFullError: if there is no space; what was at ``path`` before is unchanged.
        """
        if is_remote(path) or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        with replacing(path) as temporary, temporary.open("wb") as file:
            torch.save(checkpoint, file)


def is_remote(path: Any) -> bool:
    """Whether a path is of another protocol than that of local files.

    Example:
        >>> is_remote("s3://bucket/last.ckpt"), is_remote("runs/last.ckpt")
        (True, False)
    """
    return "://" in str(path)


def read_anywhere(path: Any, map_location: Any = "cpu") -> dict[str, Any]:
    """Read a checkpoint as :func:`read_checkpoint`, remote ones as safely.

    Raises:
        FileNotFoundError, ValueError: as :func:`read_checkpoint`.
    """
    if not is_remote(path):
        return read_checkpoint(path, map_location)
    try:
        content = TorchCheckpointIO().load_checkpoint(path, map_location, True)
    except (FileNotFoundError, ValueError, ImportError):
        raise
    except Exception as error:
        raise unreadable(path) from error
    return checked(content, str(path))


def check_settings(content: Mapping[str, Any], given: Mapping[str, Any], where: str) -> None:
    """Make sure that the settings in a checkpoint name nothing to open, ask for or import.

    Args:
        content: of the checkpoint.
        given: settings that the caller gives, which replace those of the checkpoint.
        where: it was found, for messages.

    Raises:
        ValueError: naming the first setting that is refused.

    Example:
        >>> forged = {"hyper_parameters": {"_instantiator": "os.system"}}
        >>> check_settings(forged, {}, "a.ckpt")
        Traceback (most recent call last):
        ...
        ValueError: a.ckpt: the setting '_instantiator' is 'os.system', and no code is imported...
    """
    settings: dict[str, Any] = {}
    for part in SETTINGS:
        stored = content.get(part, {})
        if not isinstance(stored, Mapping):
            raise ValueError(f"{where} is damaged: its `{part}` are {shortened(stored)}.")
        settings.update(stored)
    for key in IMPORTED:
        if settings.get(key) is not None and key not in given:
            raise ValueError(
                f"{where}: the setting {shortened(key)} is {shortened(settings[key])}, and no code "
                "is imported, and no file opened, because a checkpoint names it. Give it yourself, "
                "or say `weights_only=False` if you trust the file as you would a program."
            )
    if content.get("hparams_name") not in (None, "kwargs"):
        raise ValueError(
            f"{where} is damaged: its `hparams_name` is {shortened(content['hparams_name'])}."
        )
    stored = {key: value for key, value in settings.items() if key not in given}
    check_kinds(stored, where)
    if settings.get("input_shape") is not None:
        read_shape(settings["input_shape"], where)
    check_backbone({**settings, **given}, "backbone_args" in given, where)


def check_kinds(settings: Mapping[str, Any], where: str) -> None:
    """Make sure that settings are of their types, and nothing that a parser would import or open.

    Args:
        settings: of a module, from a checkpoint.
        where: the checkpoint, for messages.

    Raises:
        ValueError: naming the first that is not.
    """
    for key, kinds in KINDS.items():
        if key in settings and not isinstance(settings[key], kinds):
            raise ValueError(
                f"{where} is damaged: its setting {key!r} is {shortened(settings[key])}."
            )
    for key in ("penalties", "parameter_groups"):
        for each in settings.get(key) or []:
            if not isinstance(each, Mapping):
                raise ValueError(
                    f"{where} is damaged: expected mappings in {key!r}, got {shortened(each)}."
                )
    for key, value in settings.items():
        if key != "backbone_init_args" and (found := named_call(value)) is not None:
            raise ValueError(
                f"{where}: the setting {shortened(key)} holds {shortened(found)}, and no code is "
                "imported because a checkpoint names it. Give the setting yourself."
            )


def named_call(value: Any) -> Any | None:
    """Return the first part of a value that a parser of configs would import and call, if any.

    Example:
        >>> named_call([{"kind": "filter"}, {"class_path": "subprocess.Popen"}])
        {'class_path': 'subprocess.Popen'}
        >>> named_call({"num_classes": 10}) is None
        True
    """
    if isinstance(value, str):
        return value if any(key in value for key in CALLED) else None
    if isinstance(value, Mapping):
        if any(str(key) in CALLED for key in value):
            return value
        value = [*value.keys(), *value.values()]
    if isinstance(value, (list, tuple, set, frozenset)):
        return next((found for each in value if (found := named_call(each)) is not None), None)
    return None


def check_backbone(settings: Mapping[str, Any], own: bool, where: str) -> None:
    """Make sure that the arguments of a backbone that come from a checkpoint are admitted.

    Args:
        settings: of the module.
        own: whether the caller gave the arguments.
        where: the checkpoint, for messages.

    Raises:
        ValueError: naming the first that is not.
    """
    name, arguments = settings.get("backbone"), settings.get("backbone_args") or {}
    if own or not isinstance(name, str):
        return
    if not name.startswith(PREFIX):
        admit(name, arguments, where)


def entry_start(content: Mapping[str, Any], given: Mapping[str, Any], where: str) -> Recipe | None:
    """Return how the network is made that training started from, if that was an entry of the zoo.

    The checkpoint says it itself, so that no entry is opened because a checkpoint names it.

    Args:
        content: of the checkpoint.
        given: settings that the caller gives.
        where: the checkpoint, for messages.

    Returns:
        None if the backbone is no entry, or the caller gives one.

    Raises:
        ValueError: if the checkpoint does not say it.
    """
    name = content.get("hyper_parameters", {}).get("backbone")
    if "backbone" in given or not isinstance(name, str) or not name.startswith(PREFIX):
        return None
    start = read_start(content, where)
    if start is None:
        raise ValueError(
            f"{where} is damaged: it is of the entry {shortened(name)}, but has no `started_from` "
            "that says how its network is made. Give `backbone` yourself."
        )
    return start


def save_whole_files_(strategy: Strategy) -> None:
    """Let a trainer write and read by :class:`WholeFiles`, unless it has a writer of its own."""
    writer: Any = strategy.checkpoint_io
    if type(writer) is TorchCheckpointIO:
        strategy.checkpoint_io = WholeFiles()
    while isinstance(writer, _WrappingCheckpointIO):
        if type(writer.checkpoint_io) is TorchCheckpointIO:
            writer._checkpoint_io = WholeFiles()  # its setter acts once, before anyone asks
        writer = writer.checkpoint_io


def load_safely(
    cls: type[Any], load: Callable[..., Any], places: tuple[Any, ...], given: Mapping[str, Any]
) -> Any:
    """Return the module of a checkpoint, made only of tensors, plain values and what is given.

    Args:
        cls: of the module.
        load: Lightning's own ``load_from_checkpoint`` of that class.
        places: its positional arguments: the checkpoint's path first.
        given: settings of the module that replace those in the checkpoint.

    Raises:
        FileNotFoundError, ValueError: as :meth:`SSLLightningModule.load_from_checkpoint`.
    """
    where, content = str(places[0]), read_anywhere(places[0])
    check_settings(content, given, where)
    start = entry_start(content, given, where)
    if start is not None:
        given = {**given, "backbone": start.create(), "backbone_args": None}
    try:
        module = load(*places, weights_only=True, **given)
    except (RuntimeError, ValueError, TypeError, AttributeError, LookupError) as error:
        raise ValueError(
            f"{where} does not fit {cls.__name__}: {shortened(str(error), 300)}"
        ) from error
    if start is not None:
        stored = content["hyper_parameters"]
        module.hparams.update({key: stored.get(key) for key in ("backbone", "backbone_args")})
        module.started_from = start
    return module
