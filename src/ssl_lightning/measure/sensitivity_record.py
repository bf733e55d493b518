"""What it costs, and what it saves, to remove shares of each group set. Imports no torch."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from ssl_lightning.files import replacing
from ssl_lightning.measure.serial import Record

COLUMNS = (
    "group_set",
    "layers",
    "num_groups",
    "share",
    "zeroed",
    "error",
    "rise",
    "macs_saved",
    "parameters_saved",
)
"""Columns of the CSV file, in their order."""


@dataclass(frozen=True)
class SensitivityRow:
    """The network without a share of the groups of one set, all others whole.

    Attributes:
        group_set: name of the set, ``"layer:kind"``.
        layers: whose weights its groups are slices of.
        num_groups: how many groups the set has.
        share: of the groups, asked for.
        zeroed: how many groups that is; those that were zero before count.
        error: of the network without them, as the evaluation gives it.
        macs_saved: multiply-adds that compaction saves, in percent of the network's.
        parameters_saved: parameters that compaction saves, in percent of the network's.
    """

    group_set: str
    layers: tuple[str, ...]
    num_groups: int
    share: float
    zeroed: int
    error: float
    macs_saved: float
    parameters_saved: float


@dataclass(frozen=True)
class Curve:
    """By how much the error of a network rises without the least important groups of a set.

    Attributes:
        num_groups: how many groups the set has.
        zeroed: numbers of groups, ascending.
        rises: the error without so many, less that of the whole network; one for each number.
    """

    num_groups: int
    zeroed: tuple[int, ...]
    rises: tuple[float, ...]


@dataclass(frozen=True)
class Rises(Record):
    """A curve for each group set, by which sets are compared.

    Attributes:
        title: name of the network.
        conditions: what the error is, in words.
        importance: by which groups were ranked within their set.
        curves: name of a set -> curve.
    """

    title: str
    conditions: str
    importance: str
    curves: dict[str, Curve]

    what = "rises"


@dataclass(frozen=True)
class Sensitivity(Record):
    """Errors after removing shares of each group set, one set at a time, without training.

    Attributes:
        title: name of the network.
        conditions: what the error was measured on, in words.
        importance: by which groups were ranked within their set.
        error: of the network as it is, as the evaluation gives it.
        macs: multiply-adds of the network, once what is zero in it is removed.
        num_parameters: parameters of the same.
        retained: layer -> why outputs of it are in no group (of coupled channels).
        rows: by set, in the order of the network, and by share.

    Example:
        >>> row = SensitivityRow("conv1:coupled", ("conv1",), 20, 0.5, 10, 3.5, 40.0, 12.0)
        >>> found = Sensitivity("LeNet", "10 images", "l2", 1.0, 2_293_000, 431_080, {}, (row,))
        >>> found.shares(), found.rise(row), found.by_set()["conv1:coupled"][0.5].macs_saved
        ((0.5,), 2.5, 40.0)
    """

    title: str
    conditions: str
    importance: str
    error: float
    macs: int
    num_parameters: int
    retained: dict[str, str]
    rows: tuple[SensitivityRow, ...]

    what = "sensitivity"

    def shares(self) -> tuple[float, ...]:
        """Return the shares that any set has, ascending."""
        return tuple(sorted({row.share for row in self.rows}))

    def by_set(self) -> dict[str, dict[float, SensitivityRow]]:
        """Return name of a set -> share -> row, in the order of the network."""
        found: dict[str, dict[float, SensitivityRow]] = {}
        for row in self.rows:
            found.setdefault(row.group_set, {})[row.share] = row
        return found

    def rise(self, row: SensitivityRow) -> float:
        """Return by how much the error of a row is above the network's; below zero if it fell."""
        return row.error - self.error

    def rises(self) -> Rises:
        """Return the curves of the sets."""
        curves = {}
        for name, found in self.by_set().items():
            rows = {row.zeroed: row for row in found.values()}  # several shares of a small set
            rises = tuple(self.rise(row) for row in rows.values())
            curves[name] = Curve(next(iter(rows.values())).num_groups, tuple(rows), rises)
        return Rises(self.title, self.conditions, self.importance, curves)

    def save_csv(self, path: str | Path) -> None:
        """Write the rows as CSV, so that ``path`` is either the old or the whole new file.

        Layers are separated by spaces.
        """
        with (
            replacing(path) as temporary,
            temporary.open("w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(COLUMNS)
            for row in self.rows:
                values = {**vars(row), "layers": " ".join(row.layers), "rise": self.rise(row)}
                writer.writerow(values[column] for column in COLUMNS)
