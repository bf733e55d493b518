"""Tile sizes of the GPU kernel: measured ones from a file, else a rule."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("tiles.json")
SIZES = (16, 32, 64, 128, 256)
ALLOWED: Mapping[str, tuple[Any, ...]] = {
    "rows": SIZES,
    "pixels": SIZES,
    "depth": (16, 32, 64, 128),
    "splits": (1, 2, 3, 4, 6, 8, 12, 16),
    "warps": (1, 2, 4, 8),
    "stages": (1, 2, 3, 4, 5, 6),
    "precision": ("ieee", "tf32x3"),
}


@dataclass(frozen=True)
class Tile:
    """How the kernel divides its work.

    Attributes:
        rows: filters of a tile.
        pixels: output pixels of a tile.
        depth: columns multiplied in one step.
        splits: parts of the columns that are summed apart, for more programs.
        warps: of one program.
        stages: loads in flight, in steps.
        precision: how float32 is multiplied where tf32 is not allowed: ``"ieee"``, or
            ``"tf32x3"``, three products in tf32 to about the same precision.
    """

    rows: int
    pixels: int
    depth: int = 32
    splits: int = 1
    warps: int = 4
    stages: int = 3
    precision: str = "ieee"


@dataclass(frozen=True)
class Problem:
    """What decides which tile is best.

    Attributes:
        dtype: ``"float32"``, ``"bfloat16"`` or ``"float16"``.
        tf32: whether float32 may be multiplied in tf32.
        pixels: output pixels of all images.
        rows: retained filters of a conv-group, at most.
        columns: retained columns of a conv-group, at most.
        groups: conv-groups.
    """

    dtype: str
    tf32: bool
    pixels: int
    rows: int
    columns: int
    groups: int


Table = dict[str, dict[Problem, Tile]]
_USED: list[Table] = []


def use(table: Table | None) -> None:
    """Take tiles from a table, device name -> problem -> tile, or again from the shipped file."""
    _USED[:] = [] if table is None else [table]
    choose.cache_clear()


@lru_cache(maxsize=4096)
def choose(problem: Problem, device: str, processors: int) -> Tile:
    """Return the tile measured for the most similar problem on this device, else that of a rule.

    Similar is the same type and conv-groups, with pixels, rows and columns within a factor of 2.

    Args:
        problem: sizes and type.
        device: name of the GPU.
        processors: its multiprocessors.

    Example:
        >>> choose(Problem("float32", True, 169, 228, 532, 1), "a GPU never measured", 132)
        Tile(rows=32, pixels=32, depth=32, splits=3, warps=4, stages=3, precision='ieee')
    """
    if not _USED:
        _USED.append(read_tiles(FILE) if FILE.is_file() else {})
    known = _USED[0].get(device, {})
    if known:
        distance, nearest = min(((_distance(problem, p), p) for p in known), key=lambda d: d[0])
        if distance <= 1:
            return known[nearest]
    return default_tile(problem, processors)


def default_tile(problem: Problem, processors: int) -> Tile:
    """Return a tile by rule: the largest that gives every multiprocessor work, then splits.

    Example:
        >>> default_tile(Problem("bfloat16", False, 128 * 729, 111, 442, 2), 132)
        Tile(rows=64, pixels=128, depth=32, splits=1, warps=4, stages=3, precision='ieee')
    """
    tile, programs = Tile(32, 32), 0
    for rows, pixels in ((64, 128), (64, 64), (32, 64), (32, 32)):
        rows = min(rows, 1 << max(4, (problem.rows - 1).bit_length()))
        tile = Tile(rows, pixels)
        programs = math.ceil(problem.rows / rows) * math.ceil(problem.pixels / pixels)
        programs *= problem.groups
        if programs >= processors:
            return tile
    most = max(problem.columns // (4 * tile.depth), 1)  # steps of each part
    wanted = min(math.ceil(processors / max(programs, 1)), most)
    return dataclasses.replace(tile, splits=max(s for s in ALLOWED["splits"] if s <= wanted))


def _distance(one: Problem, other: Problem) -> float:
    """Return the largest of the sizes' ratios, as a power of two; infinite if not comparable."""
    if (one.dtype, one.tf32, one.groups) != (other.dtype, other.tf32, other.groups):
        return math.inf
    sizes = zip(
        (one.pixels, one.rows, one.columns), (other.pixels, other.rows, other.columns), strict=True
    )
    return max(abs(math.log2(max(a, 1) / max(b, 1))) for a, b in sizes)


def merge(table: Table, newer: Table) -> Table:
    """Return the tiles of both tables; of a problem that both have, those of the newer one.

    Example:
        >>> table = {"a GPU": {Problem("float32", True, 1, 2, 3, 1): Tile(16, 16)}}
        >>> list(merge(table, {"another": {}}))
        ['a GPU', 'another']
    """
    return {d: {**table.get(d, {}), **newer.get(d, {})} for d in dict.fromkeys([*table, *newer])}


def write_tiles(table: Table, path: Path) -> None:
    """Write a table of measured tiles as :func:`read_tiles` reads it."""
    path.write_text(json.dumps(to_json(table), indent=1) + "\n", encoding="utf-8")


def to_json(table: Table) -> dict[str, list[dict[str, Any]]]:
    """Return a table as JSON holds it.

    Example:
        >>> table = {"a GPU": {Problem("float32", True, 1, 2, 3, 1): Tile(16, 16)}}
        >>> from_json(to_json(table)) == table
        True
    """
    return {
        device: [
            {"problem": dataclasses.asdict(problem), "tile": dataclasses.asdict(tile)}
            for problem, tile in tiles.items()
        ]
        for device, tiles in table.items()
    }


def read_tiles(path: Path) -> Table:
    """Read a table of measured tiles.

    Raises:
        ValueError: if the file is none, or holds a tile that the kernel cannot use.
    """
    try:
        return from_json(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise ValueError(
            f"Cannot read the tile sizes in `{path}`: {error}. Delete the file, or measure again."
        ) from error


def from_json(data: Any) -> Table:
    """Return the table that JSON holds.

    Raises:
        ValueError: naming what is not as expected.
    """
    if not isinstance(data, dict) or not all(isinstance(found, list) for found in data.values()):
        raise ValueError("expected a list of tiles per device")
    return {device: dict(map(_entry, entries)) for device, entries in data.items()}


def _entry(entry: Any) -> tuple[Problem, Tile]:
    try:
        problem, tile = Problem(**entry["problem"]), Tile(**entry["tile"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"expected a problem and a tile, got {entry!r}") from error
    for name, allowed in ALLOWED.items():
        value = getattr(tile, name)
        if value not in allowed or isinstance(value, (bool, float)):
            raise ValueError(f"expected `{name}` of a tile in {allowed}, got {value!r}")
    sizes = (problem.pixels, problem.rows, problem.columns, problem.groups)
    if not all(type(size) is int and size >= 0 for size in sizes):
        raise ValueError(f"expected sizes of a problem as numbers, got {problem}")
    return problem, tile
