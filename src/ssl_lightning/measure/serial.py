"""Dataclasses to JSON and back, with errors that name the field. Imports no torch."""

import dataclasses
import json
import types
import typing
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

from ssl_lightning.files import replacing
from ssl_lightning.suggest import shortened

T = TypeVar("T")


def decode(cls: type[T], data: Any, where: str) -> T:
    """Build the dataclass ``cls`` from plain JSON values.

    Args:
        cls: dataclass whose fields are str, int, float, optional ones, dicts, tuples, lists,
            dataclasses again, or Any, which is taken as it is.
        data: what :func:`dataclasses.asdict` gave, before or after a trip through JSON.
        where: name of the record in error messages.

    Raises:
        ValueError: if a field is missing, unknown or of another type.

    Example:
        >>> import dataclasses
        >>> @dataclasses.dataclass
        ... class Point:
        ...     x: float
        >>> decode(Point, {"x": 1}, "point")
        Point(x=1.0)
        >>> decode(Point, {"y": 1}, "point")
        Traceback (most recent call last):
        ...
        ValueError: point: expected the fields x; missing: x; unknown: y...
    """
    value: T = _decode(cls, data, where)
    return value


def _decode(hint: Any, data: Any, where: str) -> Any:
    """Convert ``data`` to the type ``hint``, recursively."""
    if hint is Any:
        return data
    if dataclasses.is_dataclass(hint):
        return _decode_dataclass(hint, data, where)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        kind = next(kind for kind in arguments if kind is not type(None))
        return None if data is None else _decode(kind, data, where)
    if origin is dict:
        items = _expect(dict, data, where).items()
        return {str(k): _decode(arguments[1], v, f"{where}.{shortened(k)[1:-1]}") for k, v in items}
    if origin in (tuple, list):
        items = _expect((list, tuple), data, where)
        return origin(_decode(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(items))
    if hint is float:
        return float(_expect((int, float), data, where))
    return _expect(hint, data, where)


def _decode_dataclass(cls: Any, data: Any, where: str) -> Any:
    _expect(dict, data, where)
    fields = dataclasses.fields(cls)
    names = {field.name for field in fields}
    required = {f.name for f in fields if f.default is f.default_factory is dataclasses.MISSING}
    missing, unknown = sorted(required - set(data)), sorted(set(data) - names)
    if missing or unknown:
        problems = [("missing", missing), ("unknown", unknown)]
        problem = "; ".join(
            f"{what}: {', '.join(shortened(name)[1:-1] for name in found[:9])}"
            for what, found in problems
            if found
        )
        raise ValueError(
            f"{where}: expected the fields {', '.join(f.name for f in fields)}; {problem}. "
            "The file may come from another version; write it again."
        )
    hints = typing.get_type_hints(cls)
    return cls(**{name: _decode(hints[name], data[name], f"{where}.{name}") for name in data})


def _expect(kind: Any, data: Any, where: str) -> Any:
    if not isinstance(data, kind) or (isinstance(data, bool) and kind is not bool):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        raise ValueError(
            f"{where}: expected {' or '.join(k.__name__ for k in kinds)}, got {shortened(data)}. "
            "Correct the value or write the file again."
        )
    return data


class Record:
    """A dataclass that is stored as JSON."""

    what: ClassVar[str]
    """Name of the record in error messages."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        return dataclasses.asdict(self)  # type: ignore[call-overload,no-any-return]

    @classmethod
    def from_dict(cls, data: Any) -> Self:
        """Build a record from :meth:`to_dict`.

        Raises:
            ValueError: if a field is missing, unknown, of another type or impossible.
        """
        return decode(cls, data, cls.what)

    def save(self, path: str | Path) -> None:
        """Write JSON, so that ``path`` is either the old or the whole new file."""
        text = json.dumps(self.to_dict(), indent=2, allow_nan=False)
        with replacing(path) as temporary:
            temporary.write_text(f"{text}\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what :meth:`save` wrote.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the file is not JSON, or not such a record.
        """
        text = Path(path).read_text(encoding="utf-8")
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{path}: expected JSON, got an error: {error}. Write it again."
            ) from error
        try:
            return cls.from_dict(data)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


class VersionedRecord(Record):
    """A record with the version of its format: a dataclass with a field ``schema``.

    It must be checked in ``__post_init__``: ``self.check_schema(self.schema)``.
    """

    known_schema: ClassVar[int]
    """The version that this code reads and writes."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold, the schema first."""
        data = super().to_dict()
        return {"schema": data.pop("schema"), **data}

    @classmethod
    def from_dict(cls, data: Any) -> Self:
        """Build a record from :meth:`to_dict`.

        Raises:
            ValueError: if the schema is unknown, or a field is missing, unknown or of another type.
        """
        if not isinstance(data, dict) or "schema" not in data:
            raise ValueError(
                f"expected a {cls.what} of ssl_lightning, with the version of its format, "
                f"`schema`, got {shortened(data)}. Give the file that was written as one."
            )
        cls.check_schema(data["schema"])
        return super().from_dict(data)

    @classmethod
    def check_schema(cls, schema: Any) -> None:
        """Reject records of another version.

        Raises:
            ValueError: naming both versions.
        """
        if schema != cls.known_schema:
            raise ValueError(
                f"{cls.what}.schema: expected {cls.known_schema}, got {shortened(schema)}. "
                "Read it with the version of ssl_lightning that wrote it, or write it again."
            )
