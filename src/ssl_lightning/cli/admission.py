"""What a config, which the user gave, and a checkpoint, which is a file, may have imported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pkgutil import resolve_name
from typing import Any

from ssl_lightning.compaction.store import is_own_class
from ssl_lightning.module.saving import KINDS, check_settings
from ssl_lightning.penalties import PenaltyFunction
from ssl_lightning.registry import ADMITTED, as_mapping, check_class
from ssl_lightning.schedules import Schedule
from ssl_lightning.suggest import first_line
from ssl_lightning.suggest import shortened as on_one_line
from ssl_lightning.zoo.loading import PREFIX


def admit_classes(penalties: Sequence[Any]) -> None:
    """Import the classes that a user's config names for functions and schedules of penalties.

    Nothing else imports them: a checkpoint, or a file of the zoo, must not decide what is run.

    Raises:
        ValueError: if there is no such class, or it is of another kind.

    Example:
        >>> admit_classes([{"function": {"class_path": "ssl_lightning.MCP"}}])
        >>> admit_classes([{"function": {"class_path": "os.system"}}])
        Traceback (most recent call last):
        ...
        ValueError: penalties: cannot take os.system as function: function: expected a frozen...
    """
    for penalty in (each for each in penalties if isinstance(each, Mapping)):
        for part, base in (("function", PenaltyFunction), ("schedule", Schedule)):
            spec = as_mapping(penalty.get(part))
            if not isinstance(spec, Mapping) or "class_path" not in spec:
                continue
            path = str(spec["class_path"])
            try:
                cls = resolve_name(path)
                check_class(part, cls, base)
            except (ImportError, AttributeError, ValueError) as error:
                raise ValueError(
                    f"penalties: cannot take {path} as {part}: {first_line(error)}. Correct its "
                    "class_path."
                ) from error
            ADMITTED[path] = cls


def check_parsed(content: Mapping[str, Any], path: str) -> None:
    """Make sure that the parser may read a checkpoint's settings: it would import what they name.

    Raises:
        ValueError: if they name anything to import or open, or are not the module's.
    """
    settings = content.get("hyper_parameters", {})
    name = settings.get("backbone_class", settings.get("backbone"))
    if isinstance(name, str) and is_own_class(name):
        raise ValueError(
            f"{path} is of the network {on_one_line(name)}, and no code is imported because a "
            "file names it. Give the config that it was trained with: `--config`."
        )
    if settings.get("loss") is not None or settings.get("metrics"):
        raise ValueError(
            f"{path} was trained with a loss or metrics of its own, and no code is imported "
            "because a checkpoint names it. Give the config that it was trained with: `--config`."
        )
    if unknown := [key for key in settings if key not in KINDS]:
        raise ValueError(
            f"{path} is damaged: SSLLightningModule has no setting {on_one_line(unknown[0])}. Give "
            "the config that it was trained with: `--config`."
        )
    check_settings(content, {}, path)
    arguments = settings.get("backbone_args") or {}
    if str(name).startswith(PREFIX) and (named := [k for k in arguments if k != "pretrained"]):
        raise ValueError(
            f"{path}: the argument {on_one_line(named[0])} of {on_one_line(name)} says what to "
            "open, and no file is opened because a checkpoint names it. Give the config that it "
            "was trained with: `--config`."
        )
