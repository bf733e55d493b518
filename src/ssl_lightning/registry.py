"""Tables of names that users add rows to, and the objects of their classes as plain values.

A class in such a table is a frozen dataclass whose arguments are plain values. An object of it is
stored as its name and arguments; one of a class in no table as ``class_path`` and ``init_args``.
Nothing here imports a class: a file must not decide which code runs.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from argparse import Namespace
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, TypeVar

from ssl_lightning.suggest import check_keys, pick, shortened

T = TypeVar("T")
PLAIN = (str, int, float, bool, type(None))
NAME = re.compile(r"[A-Za-z_][\w-]*")
ADMITTED: dict[str, type] = {}
"""Path -> class, of those that the user's config on the command line names."""


class Registration(ExitStack):
    """What was registered; it lasts as long as the process, or until :meth:`undo`.

    As a context manager it is undone at the end of the block.
    """

    def undo(self) -> None:
        """Restore what was there before; a second call does nothing."""
        self.close()


def register(
    call: str, name: str, *rows: tuple[dict[Any, Any], Any, Any], replace: bool
) -> Registration:
    """Set rows of tables, each a table, a key and a value, under a name.

    Args:
        call: the public function, for messages.
        name: for messages.
        rows: the first one says whether the name is taken; one that means the same, such as a
            class or function that a notebook's cell defines anew, replaces itself.
        replace: whether the name may be taken.

    Raises:
        ValueError: if the name means something else, unless ``replace``.

    Example:
        >>> table = {"a": 1}
        >>> with register("register_number", "b", (table, "b", 2), replace=False):
        ...     table
        {'a': 1, 'b': 2}
        >>> table
        {'a': 1}
    """
    table, key, value = rows[0]
    if key in table and not replace and meaning(table[key]) != meaning(value):
        raise ValueError(
            f"{call}: the name {name!r} already means {meaning(table[key])[:80]}. Take "
            "another, undo the earlier registration, or give `replace=True`."
        )
    registration = Registration()
    for table, key, value in rows:
        if key in table:
            registration.callback(table.__setitem__, key, table[key])
        else:
            registration.callback(table.pop, key, None)
        table[key] = value
    return registration


def check_name(call: str, name: object, pattern: re.Pattern[str] = NAME) -> None:
    """Refuse what cannot stand for something in configs and files.

    Raises:
        ValueError: if it is no string that the pattern matches.
    """
    if not isinstance(name, str) or not pattern.fullmatch(name):
        raise ValueError(
            f"{call}: expected a name of letters, digits, `_` and `-` such as 'my_name', got "
            f"{shortened(name)}. Correct it."
        )


def meaning(value: Any) -> str:
    """Return what tells two values apart: of a class or function, the module and name."""
    value = inspect.unwrap(value) if callable(value) else value
    text = repr(value)
    if "<lambda>" in text:  # a name that many have
        return text
    return path_of(value) if hasattr(value, "__qualname__") else re.sub(r" at 0x\w+", "", text)


def path_of(value: Any) -> str:
    """Return the path of a class or function, or of the class of another object.

    Example:
        >>> path_of(1), path_of(Mapping)
        ('builtins.int', 'collections.abc.Mapping')
    """
    cls = value if hasattr(value, "__qualname__") else type(value)
    return f"{cls.__module__}.{cls.__qualname__}"


def as_mapping(given: Any) -> Any:
    """Return what a parser of configs made of a mapping as a mapping; anything else as it is."""
    if isinstance(given, Namespace):
        return {key: as_mapping(value) for key, value in vars(given).items()}
    return given


def check_object(where: str, value: Any, base: type) -> None:
    """Refuse what is no object of a class that :func:`check_class` accepts.

    Raises:
        ValueError: as that, and for a class in place of an object.
    """
    if isinstance(value, type):
        raise ValueError(
            f"{where}: expected an object, got the class {value.__name__}. Call it with its "
            "arguments."
        )
    check_class(where, type(value), base)


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
            ``class_path`` that is of no class in the table, and that no config of the user named,
            since nothing is imported here.
    """
    cls: Any = None
    if isinstance(name, Mapping) and "class_path" in name:
        path, arguments = str(name["class_path"]), name.get("init_args") or {}
        cls = ADMITTED.get(path) or next((c for c in table.values() if path_of(c) == path), None)
        if cls is None:
            raise ValueError(
                f"The {what} {shortened(path)} is given by class, and no code is imported because "
                f"data names it. Give an object of it; or call `{call}` and give its name; or give "
                "the class in a config on the command line."
            )
        name = path
    cls = cls or pick(what, name, table, call)
    fields = [field for field in dataclasses.fields(cls) if field.init]
    check_keys(f"The {what} {name!r}", arguments, [field.name for field in fields])
    for field in fields:
        unset = field.default is field.default_factory is dataclasses.MISSING
        if unset and field.name not in arguments:
            raise ValueError(f"The {what} {name!r} needs the argument `{field.name}`. Give it.")
    made: T = cls(**arguments)
    return made
