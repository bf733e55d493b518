"""What cards say of a run's config."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ssl_lightning.callbacks.peers import PEERS


def budget_of(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the arguments of a config's budget; of one of another library, with its class.

    Example:
        >>> peer = {"class_path": "my.PATBudget", "init_args": {"macs": 1}}
        >>> budget_of({"budget": peer})
        {'macs': 1, 'class': 'PATBudget'}
    """
    found = arguments_of(config, "Budget")
    for name in (kind.__name__ for kind in PEERS):
        if found is None and (given := arguments_of(config, name)) is not None:
            found = {**given, "class": name}
    return found


def arguments_of(config: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    """Return the arguments that a config gives a callback of the library, if it has it.

    Example:
        >>> arguments_of({"budget": {"class_path": "Budget", "init_args": {"macs": 0.5}}}, "Budget")
        {'macs': 0.5}
        >>> arguments_of({"budget": {"class_path": "my.OtherBudget"}}, "Budget") is None
        True
    """
    callbacks = [config.get("budget"), *(config.get("trainer", {}).get("callbacks") or [])]
    for callback in callbacks:
        path = callback.get("class_path") if isinstance(callback, Mapping) else None
        if str(path).rpartition(".")[2] == name:
            return {k: v for k, v in (callback.get("init_args") or {}).items() if v is not None}
    return None


def in_json(value: Any) -> Any:
    """Return plain values with numbers that JSON does not have as YAML writes them.

    Example:
        >>> in_json([{"end": float("inf"), "start": 0}])
        [{'end': '.inf', 'start': 0}]
    """
    if isinstance(value, Mapping):
        return {key: in_json(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [in_json(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return ".nan" if math.isnan(value) else ".inf" if value > 0 else "-.inf"
    return value
