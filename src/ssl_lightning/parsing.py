"""Values in the text of files, with errors that name the file."""

from __future__ import annotations

import json
from typing import Any

from ssl_lightning.suggest import shortened


def parse_json(text: str | bytes, where: str) -> Any:
    """Return the values of a JSON text from a file.

    Raises:
        ValueError: if it is no JSON, nested too deeply, or holds NaN or endless numbers.

    Example:
        >>> parse_json("[1]", "card.json")
        [1]
        >>> parse_json("[" * 100_000, "card.json")
        Traceback (most recent call last):
        ...
        ValueError: card.json is damaged: expected JSON, ...
    """

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is no number")

    try:
        return json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{where} is damaged: expected JSON, {shortened(str(error), 120)}."
        ) from error


def parse_yaml(text: str | bytes, where: str) -> dict[str, Any]:
    """Return the mapping that a YAML text from a file holds; tags of Python are refused.

    Raises:
        ValueError: if it is no YAML of plain values, or no mapping.

    Example:
        >>> parse_yaml("a: 1", "config.yaml")
        {'a': 1}
        >>> parse_yaml("!!python/name:os.system", "config.yaml")
        Traceback (most recent call last):
        ...
        ValueError: config.yaml is damaged: expected YAML of plain values, ...
    """
    import yaml

    try:
        data = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        found = shortened(str(error), 120)
        raise ValueError(f"{where} is damaged: expected YAML of plain values, {found}.") from error
    if not isinstance(data, dict):
        raise ValueError(f"{where} is damaged: expected a mapping, got {shortened(data)}.")
    return data
