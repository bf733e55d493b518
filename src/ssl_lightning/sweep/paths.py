"""Places in a config as dotted paths, with whole numbers for items of lists."""

from __future__ import annotations

from typing import Any

from ssl_lightning.suggest import nearest


def get_at(content: Any, path: str) -> Any:
    """Return what is at a dotted path of plain values.

    Raises:
        ValueError: naming the first part that is not there, and the nearest that is.

    Example:
        >>> config = {"model": {"penalties": [{"kind": "filter", "strength": 0.1}]}}
        >>> get_at(config, "model.penalties.0.strength")
        0.1
        >>> get_at(config, "model.penalty")
        Traceback (most recent call last):
        ...
        ValueError: There is no `model.penalty` in the config. Did you mean model.penalties?
        >>> get_at(config, "model.penalties.1.strength")
        Traceback (most recent call last):
        ...
        ValueError: There is no `model.penalties.1` in the config. `model.penalties` has the item 0.
    """
    whole, done = content, ""
    for part in path.split("."):
        content = item_of(content, part, done, whole)
        done = f"{done}.{part}".lstrip(".")
    return content


def item_of(content: Any, part: str, where: str, whole: Any) -> Any:
    """Return an entry of a mapping or list that was found at ``where`` of ``whole``."""
    if isinstance(content, dict) and part in content:
        return content[part]
    if isinstance(content, list) and part.isdecimal() and int(part) < len(content):
        return content[int(part)]
    name = f"{where}.{part}".lstrip(".")
    raise ValueError(f"There is no `{name}` in the config. {hint(content, name, where, whole)}")


def hint(content: Any, name: str, where: str, whole: Any) -> str:
    """Say what there is in place of an entry that is not."""
    if isinstance(content, list):
        last = len(content) - 1
        if last < 0:
            return f"`{where}` is an empty list."
        return f"`{where}` has the item{'s 0 to' if last else ''} {last}."
    if isinstance(content, dict):
        return nearest(name, [f"{where}.{key}".lstrip(".") for key in content])
    return f"`{where}` is {content!r}." if where else f"It holds {whole!r}."


def set_at(content: Any, path: str, value: Any) -> None:
    """Set the value at a dotted path; what it is in must be there.

    Raises:
        ValueError: as :func:`get_at`.

    Example:
        >>> config = {"trainer": {"callbacks": [{"start": 1}]}}
        >>> set_at(config, "trainer.callbacks.0.start", 2)
        >>> config
        {'trainer': {'callbacks': [{'start': 2}]}}
    """
    where, _, last = path.rpartition(".")
    inside = get_at(content, where) if where else content
    if isinstance(inside, dict):
        inside[last] = value
    else:
        item_of(inside, last, where, content)
        inside[int(last)] = value
