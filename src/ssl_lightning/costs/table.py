"""Times of layers in one engine on this machine, measured once and kept on disk."""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn

from ssl_lightning.costs.shapes import LayerShape
from ssl_lightning.files import cache_folder
from ssl_lightning.measure import Machine
from ssl_lightning.measure.engine import Call
from ssl_lightning.measure.engines import engine_versions, find_engine, prepare_several
from ssl_lightning.measure.latency import DTYPES
from ssl_lightning.measure.machine import machine
from ssl_lightning.measure.serial import Record
from ssl_lightning.measure.turns import Turns, check_threads, num_threads, take_turns
from ssl_lightning.progress import track
from ssl_lightning.suggest import first_line, pick

TimeCalls: TypeAlias = Callable[[Mapping[Any, Call]], Turns[Any]]
"""Times calls in turns."""

in_turns: TimeCalls = partial(take_turns, repeats=15, warmup=1, min_run_time=0.0005)
"""How layers are timed: many, and each time is one of a sum."""

at_length: TimeCalls = partial(take_turns, repeats=15, warmup=2, min_run_time=0.03)
"""How whole networks are timed: with samples of one call, a network of a millisecond would be
measured within 12 % only."""

REFERENCE = LayerShape(
    "Conv2d", 1, 32, 32, (1, 28, 28), (("kernel_size", (3, 3)), ("padding", (1, 1)))
)
"""Timed together with all others, whose times are relative to it: a slow moment changes neither."""

AT_ONCE, WEIGHTS_AT_ONCE = 64, 1 << 26
"""Most layers, and elements of weights, that are prepared together."""


@dataclass
class StoredTable(Record):
    """What a table's file holds.

    Attributes:
        machine: on which it was measured.
        versions: package -> version of what the engine runs on.
        engine: its name.
        dtype: of the numbers.
        threads: intra-op threads.
        reference_ms: time of :data:`REFERENCE`, with the overhead of a call; 0 if not known yet.
        layers: shape -> milliseconds, without that overhead.

    Raises:
        ValueError: for times that are not positive.
    """

    machine: Machine
    versions: dict[str, str]
    engine: str
    dtype: str
    threads: int
    reference_ms: float = 0.0
    layers: dict[str, float] = field(default_factory=dict)

    what = "table of layer times"

    def __post_init__(self) -> None:
        known = [*self.layers.values(), *([self.reference_ms] if self.layers else [])]
        if not all(0 < time < math.inf for time in known):
            raise ValueError(f"{self.what}: expected positive times. Remove the file.")

    def is_of(self, other: StoredTable) -> bool:
        """Whether the times of both would be the same."""
        keys = ("machine", "versions", "engine", "dtype", "threads")
        return all(getattr(self, key) == getattr(other, key) for key in keys)


class LayerTimes:
    """Returns how long layers of any shape take, timing few and interpolating the others.

    Args:
        engine: in which; one of ``measure.ENGINES``.
        dtype: type of the numbers.
        threads: intra-op threads; None: torch's present number.
        device: of the inputs.
        cache: whether times are kept in the user's cache folder; or the folder to keep them in.
        time_calls: how calls are timed.

    Raises:
        ValueError: if the engine or type is unknown, or the engine's packages are not installed.
    """

    def __init__(
        self,
        engine: str = "eager",
        dtype: str = "float32",
        threads: int | None = None,
        *,
        device: torch.device | None = None,
        cache: bool | str | Path = True,
        time_calls: TimeCalls = in_turns,
    ) -> None:
        self.kind = pick("type", dtype, DTYPES)
        self.device = device or torch.device("cpu")
        self.time_calls = time_calls
        self.threads = torch.get_num_threads() if threads is None else threads
        check_threads(self.threads)
        versions = engine_versions([find_engine(engine)])
        self.stored = StoredTable(machine(self.device), versions, engine, dtype, self.threads)
        self.path = None if cache is False else path_of(self.stored, cache)
        if self.path is not None:
            self.stored = read(self.path, self.stored)

    @property
    def engine(self) -> str:
        """Name of the engine."""
        return self.stored.engine

    def times(
        self, shapes: Iterable[LayerShape], *, smooth: bool = False
    ) -> dict[LayerShape, float]:
        """Return the milliseconds that each layer takes, in the whole of a network.

        What is not in the table is timed, and the table kept.

        Args:
            shapes: of the layers.
            smooth: as if the time depended smoothly on the widths: interpolate between powers of
                two, whatever the width is.
        """
        corners = {shape: shape.corners(smooth) for shape in shapes}
        known = self.exact(corner for own in corners.values() for corner in own)
        return {
            shape: math.fsum(weight * known[corner] for corner, weight in own.items())
            for shape, own in corners.items()
        }

    def exact(self, shapes: Iterable[LayerShape]) -> dict[LayerShape, float]:
        """Return the milliseconds of layers that are timed as they are."""
        wanted = list(shapes)
        self.fill(wanted)
        return {shape: self.stored.layers[str(shape)] for shape in wanted}

    def fill(self, shapes: Iterable[LayerShape]) -> None:
        """Time the shapes that are not in the table, and keep the table."""
        missing = {str(s): s for s in shapes if str(s) not in self.stored.layers}
        for batch in track(batches(missing.values()), "timing layers"):
            self.time_layers(batch)
        if missing and self.path is not None:
            write(self.path, self.stored)

    def time_layers(self, shapes: list[LayerShape]) -> None:
        """Time layers in turns with the reference and with a call that computes nothing."""
        empty = (nn.ReLU(), torch.zeros(1, 1, dtype=self.kind, device=self.device))
        parts = {
            "reference": REFERENCE.build(self.kind, self.device),
            "empty": empty,
            **{str(shape): shape.build(self.kind, self.device) for shape in shapes},
        }
        with num_threads(self.threads), torch.inference_mode():
            calls = prepare_several(self.engine, list(parts.values()))
            turns = self.time_calls(dict(zip(parts, calls, strict=True)))
        overhead = self.in_table(turns, "empty")
        found = {str(s): max(self.in_table(turns, str(s)) - overhead, 1e-6) for s in shapes}
        self.stored.layers.update(found)

    def in_table(self, turns: Turns[Any], name: str) -> float:
        """Return the milliseconds of a call that was timed in turns with the reference.

        By the least of the samples: whatever else the machine does only adds to them.
        """
        least = min(turns.samples["reference"])
        if not self.stored.reference_ms:
            self.stored.reference_ms = least
        return min(turns.samples[name]) / least * self.stored.reference_ms


def batches(shapes: Iterable[LayerShape]) -> list[list[LayerShape]]:
    """Split shapes into those that are timed in turns: not too many, nor with too many weights."""
    found: list[list[LayerShape]] = []
    weights = 0
    for shape in shapes:
        weights += shape.num_weights
        if not found or len(found[-1]) == AT_ONCE or weights > WEIGHTS_AT_ONCE:
            found.append([])
            weights = shape.num_weights
        found[-1].append(shape)
    return found


def path_of(table: StoredTable, cache: bool | str | Path) -> Path:
    """Return the file of a table: one per machine, engine, type and number of threads."""
    machine = {k: v for k, v in vars(table.machine).items() if k not in ("python", "torch")}
    text = json.dumps([machine, table.engine, table.dtype, table.threads])
    name = f"{table.engine}-{table.dtype}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"
    folder = cache_folder() / "latency" if isinstance(cache, bool) else cache_folder(cache)
    return folder / name


def read(path: Path, wanted: StoredTable) -> StoredTable:
    """Return the table in a file, or an empty one if it is of other versions or damaged."""
    try:
        found = StoredTable.load(path)
    except FileNotFoundError:
        return wanted
    except (ValueError, OSError, RecursionError) as error:
        warnings.warn(
            f"The table of layer times {path} is damaged ({first_line(error)}); the times are "
            "measured anew.",
            stacklevel=2,
        )
        return wanted
    return found if found.is_of(wanted) else wanted


def write(path: Path, table: StoredTable) -> None:
    """Keep a table, if the folder can be written to."""
    try:
        table.save(path)
    except OSError as error:
        warnings.warn(
            f"Cannot keep the table of layer times {path} ({first_line(error)}); it would be "
            "measured again the next time.",
            stacklevel=2,
        )
