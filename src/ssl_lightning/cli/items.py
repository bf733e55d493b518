"""Arguments that name an item of a list by its number, such as ``--model.penalties.0.strength``."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

import yaml

ITEM = re.compile(r"--((?:\w+\.)+\d+(?:\.\w+)*)(?:=(.*))?", re.DOTALL)


def split_items(arguments: Iterable[str]) -> tuple[dict[str, Any], list[str]]:
    """Return dotted path -> value of the arguments that name items of lists, and the others.

    The parser of arguments knows no numbers in paths.

    Raises:
        ValueError: if a value is missing.

    Example:
        >>> split_items(["--model.penalties.0.strength=1e-05", "--trainer.max_epochs", "3"])
        ({'model.penalties.0.strength': 1e-05}, ['--trainer.max_epochs', '3'])
        >>> split_items(["--trainer.callbacks.1.init_args.lock", "False"])
        ({'trainer.callbacks.1.init_args.lock': False}, [])
    """
    items: dict[str, Any] = {}
    others: list[str] = []
    remaining = iter(arguments)
    for argument in remaining:
        found = ITEM.fullmatch(argument)
        if found is None:
            others.append(argument)
            continue
        value = next(remaining, None) if found[2] is None else found[2]
        if value is None:
            raise ValueError(f"`{found[1]}`: expected a value, got none. Write it behind the name.")
        items[found[1]] = plain_value(value)
    return items, others


def plain_value(text: str) -> Any:
    """Return what a text stands for; unlike YAML's own rules, ``1e-05`` is a number.

    Example:
        >>> plain_value("1e-05"), plain_value("True"), plain_value("conv*"), plain_value("[1, 2]")
        (1e-05, True, 'conv*', [1, 2])
    """
    try:
        return json.loads(text)
    except ValueError:
        pass
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text
