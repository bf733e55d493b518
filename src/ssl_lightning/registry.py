"""Tables of names that users add rows to, and the objects of their classes as plain values.

A class in such a table is a frozen dataclass whose arguments are plain values. An object of it is
stored as its name and arguments; one of a class in no table as ``class_path`` and ``init_args``.
Nothing here imports a class: a file must not decide which code runs.
"""

from __future__ import annotations

import dataclasses
from argparse import Namespace
from collections.abc import Mapping
from typing import Any, TypeVar

from ssl_lightning.suggest import check_keys, pick, shortened

T = TypeVar("T")
PLAIN = (str, int, float, bool, type(None))
ADMITTED: dict[str, type] = {}
"""Path -> class, of those that the user's config on the command line names."""


def register(call: str, table: dict[str, T], name: str, value: T) -> None:
    """Add a row to a table; the same row again, or a class defined anew, replaces itself.

    Raises:
        ValueError: if the name is no identifier, or belongs to something else.

    Example:
        >>> table = {"a": 1}
        >>> register("register_number", table, "b", 2)
        >>> table
        {'a': 1, 'b': 2}
    """
    if not isinstance(name, str) or not name.isidentifier():
        raise ValueError(f"{call}: expected a name such as 'my_name', got {name!r}. Correct it.")
    same = name in table and repr(table[name]) == repr(value)  # of a class: module and name
    if name in table and not same:
        raise ValueError(f"{call}: the name {name!r} already means {table[name]}. Take another.")
    table[name] = value


def path_of(value: Any) -> str:
    """Return the path of a class, or of the class of an object.

    Example:
        >>> path_of(1), path_of(Mapping)
        ('builtins.int', 'collections.abc.Mapping')
    """
    cls = value if isinstance(value, type) else type(value)
    return f"{cls.__module__}.{cls.__qualname__}"


def as_mapping(given: Any) -> Any:
    """Return what a parser of configs made of a mapping as a mapping; anything else as it is."""
    if isinstance(given, Namespace):
        return {key: as_mapping(value) for key, value in vars(given).items()}
    return given


def check_class(where: str, cls: Any, base: type) -> None:
    """Refuse a class whose objects could not be stored as plain values.

    Raises:
        ValueError: if it is no subclass of ``base``, or no frozen dataclass itself.
    """
    frozen = vars(cls).get("__dataclass_params__") if isinstance(cls, type) else None
    if not isinstance(cls, type) or not issubclass(cls, base) or not getattr(frozen, "frozen", 0):
        raise ValueError(
            f"{where}: expected a frozen dataclass derived from {base.__name__}, got "
            f"{path_of(cls)}. Derive it, and write @dataclass(frozen=True) above it."
        )


def arguments_of(value: Any) -> dict[str, Any]:
    """Return the arguments that make an object of a dataclass again, as plain values.

    Raises:
        ValueError: if one of them is no plain value.
    """
    fields = [field.name for field in dataclasses.fields(value) if field.init]
    return {name: as_plain(f"{path_of(value)}.{name}", getattr(value, name)) for name in fields}


def as_plain(where: str, value: Any) -> Any:
    """Return a number, string, list or mapping as it is stored: tuples become lists.

    Raises:
        ValueError: for anything else.
    """
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, (list, tuple)):
        return [as_plain(where, each) for each in value]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: as_plain(where, each) for key, each in value.items()}
    raise ValueError(
        f"{where}: expected numbers, strings, lists or mappings of them, which checkpoints can "
        f"hold, got {shortened(value)}. Give plain values."
    )


def name_of(table: Mapping[str, type], value: Any) -> str | None:
    """Return the name of an object's class in a table, if it is there."""
    return next((name for name, cls in table.items() if cls is type(value)), None)


def stored(value: Any) -> dict[str, Any]:
    """Return how an object of a class in no table is stored."""
    return {"class_path": path_of(value), "init_args": arguments_of(value)}


def make(
    what: str, table: Mapping[str, type[T]], name: object, arguments: Mapping[str, Any], call: str
) -> T:
    """Return the object that a name in a table and arguments describe.

    Args:
        what: kind of object, for messages.
        table: name -> class.
        name: of the class.
        arguments: of the class.
        call: what adds a row to the table, for messages.

    Raises:
        ValueError: for an unknown name or argument, or a missing one; and for a mapping with a
            ``class_path`` that no config of the user named, since nothing is imported here.
    """
    cls: Any = None
    if isinstance(name, Mapping) and "class_path" in name:
        path, arguments = str(name["class_path"]), name.get("init_args") or {}
        cls = ADMITTED.get(path)
        if cls is None:
            raise ValueError(
                f"The {what} {shortened(path)} is given by class, and no code is imported because "
                f"data names it. Give an object of it; or call `{call}` and give its name; or give "
                "the class in a config on the command line."
            )
        name = path
    cls = cls or pick(what, name, table)
    fields = [field for field in dataclasses.fields(cls) if field.init]
    check_keys(f"The {what} {name!r}", arguments, [field.name for field in fields])
    for field in fields:
        unset = field.default is field.default_factory is dataclasses.MISSING
        if unset and field.name not in arguments:
            raise ValueError(f"The {what} {name!r} needs the argument `{field.name}`. Give it.")
    made: T = cls(**arguments)
    return made
