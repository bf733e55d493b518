"""The card of a zoo entry: everything published about it, as plain data. Imports no torch."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssl_lightning.benchmark.serial import decode
from ssl_lightning.report.run_report import check_counts

SCHEMA = 1
CARD = "card.json"
CONFIG = "config.yaml"
GOLDEN = "golden.safetensors"
FILES = ("model.safetensors", "plan.json", CONFIG, GOLDEN)
"""What an entry consists of, apart from its card."""


@dataclass(frozen=True)
class DataSet:
    """What an entry was trained and measured on.

    Attributes:
        name: of the data module, as in ``ssl_lightning.data.DATA_MODULES``.
        normalize: whether the network expects pixels normalised by mean and standard deviation.
        num_train: images trained on.
        num_validation: training images held out.
        num_test: images of the official test split.
    """

    name: str
    normalize: bool
    num_train: int
    num_validation: int
    num_test: int


@dataclass(frozen=True)
class Size:
    """What a network costs.

    Attributes:
        macs: multiply-adds of one image.
        num_parameters: elements of all parameters.
    """

    macs: int
    num_parameters: int


@dataclass(frozen=True)
class StoredFile:
    """A file of the entry.

    Attributes:
        sha256: of its bytes, in hexadecimal.
        num_bytes: its size.
    """

    sha256: str
    num_bytes: int

    @classmethod
    def of(cls, data: bytes) -> StoredFile:
        """Describe a file's content.

        Example:
            >>> StoredFile.of(b"abc").num_bytes
            3
        """
        return cls(hashlib.sha256(data).hexdigest(), len(data))


@dataclass(frozen=True)
class Card:
    """All that is published about one compact network.

    Attributes:
        name: of the entry, which is also its folder's.
        backbone: name of the backbone it was compacted from.
        arguments: of that backbone.
        data: what it was trained and measured on.
        validation_error: percent, of the compact network on the held-out training images.
        test_error: percent, of the compact network on the official test split.
        seed: of the run.
        epochs: trained, all stages together.
        penalties: those of the run's config, with their strengths.
        groups: layer -> ``"filters"``, ``"channels"``, ``"columns"`` -> [left in the compact
            network, of the dense one].
        dense: size of the backbone.
        compact: size of the published network.
        licence: of the weights, as an SPDX identifier.
        paper: the published row it is compared with, or None.
        files: all other files of the entry.
        schema: version of this format.

    Raises:
        ValueError: if the schema is unknown or a value is impossible.
    """

    name: str
    backbone: str
    arguments: dict[str, Any]
    data: DataSet
    validation_error: float
    test_error: float
    seed: int
    epochs: int
    penalties: tuple[dict[str, Any], ...]
    groups: dict[str, dict[str, list[int]]]
    dense: Size
    compact: Size
    licence: str
    paper: dict[str, Any] | None
    files: dict[str, StoredFile]
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        check_schema(self.schema)
        check_name(self.name)
        for what in ("validation_error", "test_error"):
            if not 0 <= getattr(self, what) <= 100:
                raise ValueError(
                    f"card.{what}: expected percent from 0 to 100, got {getattr(self, what)}. "
                    "Publish the run again."
                )
        for layer, kinds in self.groups.items():
            for kind, counts in kinds.items():
                check_counts(f"card.groups.{layer}", kind, counts)
        if set(self.files) != set(FILES):
            raise ValueError(
                f"card.files: expected {', '.join(FILES)}, got {', '.join(self.files) or 'none'}. "
                "Publish the run again."
            )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold: schema first, a digest of all others last."""
        data = dataclasses.asdict(self)
        data = {"schema": data.pop("schema"), **data}
        return {**data, "digest": digest(data)}

    def to_bytes(self) -> bytes:
        """Return the content of ``card.json``."""
        return serial(self.to_dict())

    @classmethod
    def from_dict(cls, data: Any) -> Card:
        """Build a card from :meth:`to_dict`.

        Raises:
            ValueError: if the schema is unknown; a field is missing, unknown, of another type or
                impossible; or the digest is not that of the other fields.
        """
        check_schema(data.get("schema") if isinstance(data, dict) else None)
        fields = {key: value for key, value in data.items() if key != "digest"}
        card = decode(cls, fields, "card")
        if data.get("digest") != digest(fields):
            raise ValueError(
                "card.digest: does not belong to the other fields, so the card was edited or "
                "damaged. Get the entry again; figures come from `zoo publish` only."
            )
        return card

    @classmethod
    def read(cls, path: str | Path) -> Card:
        """Read ``card.json``, every byte of which must be as :meth:`to_bytes` gave it.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: as :meth:`from_dict`, or if it is not JSON.
        """
        content = Path(path).read_bytes()
        try:
            card = cls.from_dict(json.loads(content))
            if card.to_bytes() != content:
                raise ValueError("it was edited, though no value changed.")
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{path} is damaged or was edited: {error} Get the entry again."
            ) from error
        return card


def serial(data: Any) -> bytes:
    """Return the one JSON text of plain values that cards are stored as."""
    return (json.dumps(data, indent=2, allow_nan=False) + "\n").encode()


def digest(fields: dict[str, Any]) -> str:
    """Return the sha256 of a card's fields, in hexadecimal."""
    return hashlib.sha256(serial(fields)).hexdigest()


def check_schema(schema: Any) -> None:
    """Reject cards of another version.

    Raises:
        ValueError: naming both versions.
    """
    if schema != SCHEMA or isinstance(schema, bool):
        raise ValueError(
            f"card.schema: expected {SCHEMA}, got {schema!r}. Read it with the version of "
            "ssl_lightning that wrote it."
        )


def check_name(name: str) -> str:
    """Return the name of an entry if it can be the name of its folder.

    Raises:
        ValueError: if it is a path, or has other characters.

    Example:
        >>> check_name("lenet_mnist_shape")
        'lenet_mnist_shape'
        >>> check_name("../secret")
        Traceback (most recent call last):
        ...
        ValueError: Cannot be the name of a zoo entry: '../secret'...
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise ValueError(
            f"Cannot be the name of a zoo entry: {name!r}. Expected letters, digits, `_`, `-` and "
            "`.`, no path; `root` says where entries are."
        )
    return name
