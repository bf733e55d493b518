"""The search for tiles: compiled ahead by several processes, timed in turns with the best so far.

For each problem it moves from the fastest tile found to its neighbours, which differ in one
number. The next problems are those with the most time above their floor, divided by how often
in a row nothing better was found.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import multiprocessing
import os
import random
import statistics
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from multiprocessing.pool import Pool
from typing import Any

import torch
from candidates import columns, make_setting, on_triton
from layers import BATCHES, CONFIGURATIONS, Case, device_of, input_shape, problem_of, sparse_layers
from measuring import checked, short, wait, work_of
from stages import Context, NoTimeError
from timing import (
    MODES,
    Prepared,
    measure_ceilings,
    set_mode,
    time_in_turns,
)

from ssl_lightning.kernels import gpu, tiles
from ssl_lightning.kernels.tiles import ALLOWED, Problem, Tile
from ssl_lightning.measure.table4 import LAYERS

Row = dict[str, Any]
SEEDS = (
    Tile(32, 32, 64, splits=4),
    Tile(64, 32, 64, splits=2, stages=4),
    Tile(64, 64, 64),
    Tile(128, 64, 32, stages=4),
    Tile(64, 128, 64, warps=8),
    Tile(128, 128, 32, warps=8),
)
TILES = 6  # of a problem in one step
PROBLEMS = 12  # in one step
ROUNDS = 5
SECONDS = 0.001  # of one sample
FIRST_STEP = 45.0  # seconds that a step may take
COMPILE_SECONDS = 60.0  # for all tiles of a step
SUMS = 128  # of one thread: more would not fit into its registers
SHARED_BYTES = 227 * 1024  # of a multiprocessor, for the loads in flight
BETTER = 0.98  # of the best time: less is not distinguishable from noise


@dataclass(frozen=True)
class Task:
    """A layer at the sparsity of a row of the table, at one batch size in one mode."""

    case: Case
    configuration: int

    def __str__(self) -> str:
        return f"{self.case}, #{self.configuration}"

    def problem(self, tiny: bool) -> Problem:
        """Return what the kernel chooses a tile by."""
        set_mode(self.case.mode)
        layer = sparse_layers(self.case.layer, self.configuration, tiny)[self.case.layer]
        return problem_of(self.case, layer, tiny)


def tasks(dry_run: bool) -> list[Task]:
    """Return all tasks, the most wanted first."""
    if dry_run:
        return [Task(Case("conv2", 1, mode), 2) for mode in ("float32", "bfloat16")]
    order = product(BATCHES, CONFIGURATIONS, MODES, LAYERS)
    return [Task(Case(layer, batch, mode), number) for batch, number, mode, layer in order]


def tune(context: Context) -> None:
    """Search until the minutes are over, or no problem has an untried neighbour; save each step.

    Raises:
        NoTimeError: if there are untried tiles, and none was tried.
    """
    device = torch.device(context.device)
    result = context.earlier("tune") or {"tiles": {}, "tasks": {}}
    if not gpu.is_available():
        context.save("tune", result | {"skipped": "Triton is not installed"})
        return
    known = result["tasks"].setdefault(device_of(device)[0], {})
    steps, before = 2 if context.dry_run else math.inf, num_tried(known)
    with warnings.catch_warnings(), torch.no_grad(), Ahead(context) as ahead:
        warnings.simplefilter("ignore")
        ceilings = measure_ceilings(device, context.dry_run)
        slowest = 0.0 if context.dry_run else FIRST_STEP
        while steps > 0 and context.minutes_left() * 60 > slowest:
            started, steps = time.monotonic(), steps - 1
            chosen = next_tiles(known, device, context.dry_run)
            if not chosen:
                break
            compiled = ahead.compile(chosen)
            try:
                try_all(compiled, known, ceilings, context)
            finally:
                save(context, result)
            slowest = max(slowest, time.monotonic() - started)
    save(context, result)
    if num_tried(known) == before and next_tiles(known, device, context.dry_run):
        raise NoTimeError("no tile was tried")


def num_tried(known: dict[str, Row]) -> int:
    """Return how many tiles were tried for some problems, all together."""
    return sum(len(row["tried"]) for row in known.values())


def save(context: Context, result: Row) -> None:
    """Save what was tried, and the table that the kernel reads."""
    table = {
        name: {
            Problem(**one["problem"]): Tile(**one["tile"]) for one in known.values() if one["tile"]
        }
        for name, known in result["tasks"].items()
    }
    result["tiles"] = tiles.to_json(table)
    context.save("tune", result)


# Which tiles


def next_tiles(known: dict[str, Row], device: torch.device, tiny: bool) -> dict[Task, list[Tile]]:
    """Return the tiles to try next, for the problems with the most to gain."""
    chosen: dict[Task, list[Tile]] = {}
    for task in sorted(tasks(tiny), key=lambda task: -to_gain(known.get(str(task)))):
        found = propose(task, known, device, tiny)
        if found:
            chosen[task] = found[: 2 if tiny else TILES]
        if len(chosen) == PROBLEMS:
            break
    return chosen


def to_gain(row: Row | None) -> float:
    """Return how much a problem may gain: infinite before its first try."""
    if row is None:
        return math.inf
    if row["ms"] is None:
        return 1.0
    return math.log(max(row["ms"] / row["floor_ms"], 1.0)) / (1 + row["idle"])


def propose(task: Task, known: dict[str, Row], device: torch.device, tiny: bool) -> list[Tile]:
    """Return tiles not tried yet: first those of the rule and of a list, then neighbours."""
    problem, row = task.problem(tiny), known.get(str(task))
    rule = tiles.default_tile(problem, device_of(device)[1])
    found: list[Tile] = [rule, *(fitted(seed, problem) for seed in SEEDS)]
    if row is not None:
        others = [known.get(str(other)) for other in tasks(tiny) if beside(task, other)]
        best = [Tile(**one["tile"]) for one in others if one and one["tile"]]
        near = list(neighbours(Tile(**row["tile"]))) if row["tile"] else []
        random.Random(len(row["tried"])).shuffle(near)
        found += [fitted(tile, problem) for tile in best] + near
    tried = row["tried"] if row else {}
    fine = [tile for tile in found if tile == rule or is_sensible(tile, problem)]
    return [tile for tile in dict.fromkeys(fine) if name_of(tile) not in tried]


def beside(task: Task, other: Task) -> bool:
    """Whether both are the same layer at the same batch size."""
    same = (task.case.layer, task.case.batch) == (other.case.layer, other.case.batch)
    return same and task != other


def neighbours(tile: Tile) -> Iterator[Tile]:
    """Return the tiles that differ by one step in one number.

    Example:
        >>> Tile(32, 64) in set(neighbours(Tile(32, 32)))
        True
    """
    for name, allowed in ALLOWED.items():
        at = allowed.index(getattr(tile, name))
        for i in (at - 1, at + 1):
            if 0 <= i < len(allowed):
                yield dataclasses.replace(tile, **{name: allowed[i]})


def fitted(tile: Tile, problem: Problem) -> Tile:
    """Return a tile no larger than the problem, with a precision that makes a difference."""
    rows = min(tile.rows, 1 << max(4, (problem.rows - 1).bit_length()))
    precision = tile.precision if has_precision(problem) else "ieee"
    return dataclasses.replace(tile, rows=rows, precision=precision)


def has_precision(problem: Problem) -> bool:
    """Whether the kernel reads the precision of a tile."""
    return problem.dtype == "float32" and not problem.tf32


def is_sensible(tile: Tile, problem: Problem) -> bool:
    """Whether a tile is worth compiling: it fits the problem, the registers and the memory."""
    size = 4 if problem.dtype == "float32" else 2
    sums = tile.rows * tile.pixels / (32 * tile.warps)
    steps = math.ceil(problem.columns / tile.depth)
    return (
        tile == fitted(tile, problem)
        and 1 <= sums <= SUMS
        and tile.splits <= max(steps, 1)
        and tile.stages * tile.depth * (tile.rows + tile.pixels) * size <= SHARED_BYTES
        and tile.pixels <= max(2 * problem.pixels, ALLOWED["pixels"][0])
    )


# Compiling


class Ahead:
    """Processes that compile kernels into Triton's cache on the disk, for this one to load."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.pool: Pool | None = None

    def __enter__(self) -> Ahead:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End the processes, whatever they do."""
        if self.pool is not None:
            self.pool.terminate()
            self.pool.join()
            self.pool = None

    def compile(self, chosen: dict[Task, list[Tile]]) -> dict[Task, dict[Tile, str | None]]:
        """Compile each and run it once; return for each why it failed, or None."""
        if self.pool is None:
            workers = 1 if self.context.dry_run else max((os.cpu_count() or 4) - 3, 1)
            self.pool = multiprocessing.get_context("spawn").Pool(workers)
        where = (self.context.device, self.context.dry_run)
        waiting = {
            (task, tile): self.pool.apply_async(compile_one, (task, tile, *where))
            for task, found in chosen.items()
            for tile in found
        }
        seconds = min(COMPILE_SECONDS, max(self.context.minutes_left() * 60, 0.0))
        end = time.monotonic() + seconds
        found: dict[Task, dict[Tile, str | None]] = {task: {} for task in chosen}
        late = False
        for (task, tile), answer in waiting.items():
            try:
                found[task][tile] = answer.get(max(end - time.monotonic(), 0.0))
            except multiprocessing.TimeoutError:
                late, found[task][tile] = True, f"not compiled within {seconds:.0f} s"
        if late:
            self.stop()
        return found


def compile_one(task: Task, tile: Tile, device: str, tiny: bool) -> str | None:
    """Compile a kernel by running it once; return why it failed, if it did."""
    try:
        case = task.case
        set_mode(case.mode)
        layer = sparse_layers(case.layer, task.configuration, tiny)[case.layer]
        dtype = MODES[case.mode][0]
        x = torch.zeros(case.batch, *input_shape(case.layer, tiny), device=device, dtype=dtype)
        on_triton(copy.deepcopy(layer).to(device, dtype), tile)(x)
        if x.is_cuda:
            torch.cuda.synchronize()
    except Exception as error:
        return short(error)
    return None


# Timing


def try_all(
    compiled: dict[Task, dict[Tile, str | None]],
    known: dict[str, Row],
    ceilings: Row,
    context: Context,
) -> None:
    """Try the tiles of several problems, as long as there is time; one that fails is omitted."""
    for task, proposed in compiled.items():
        if context.minutes_left() <= 0:
            return
        row = known.setdefault(str(task), new_row(task.problem(context.dry_run)))
        try:
            try_tiles(task, proposed, row, ceilings, context)
        except Exception as error:
            row["tried"] |= {name_of(tile): short(error) for tile in proposed}
            wait(torch.device(context.device))


def try_tiles(
    task: Task, proposed: dict[Tile, str | None], row: Row, ceilings: Row, context: Context
) -> None:
    """Check the tiles and time them beside the best so far; write down what was found.

    Args:
        task: the problem.
        proposed: tile -> why it could not be compiled, or None.
        row: of the problem; is changed.
        ceilings: from :func:`timing.measure_ceilings`.
        context: of the stage.
    """
    device, case = torch.device(context.device), task.case
    set_mode(case.mode)
    setting = make_setting(case, device, context.dry_run)
    best = Tile(**row["tile"]) if row["tile"] else None
    ready: dict[Tile, Prepared] = {}
    for tile in (*([best] if best else []), *proposed):
        try:
            if proposed.get(tile):
                raise RuntimeError(proposed[tile])
            build = partial(columns, setting, task.configuration, tile)
            candidate, ready[tile] = checked(case, build)
            row["floor_ms"] = work_of(candidate, ready[tile], case, ceilings)["floor_ms"]
        except Exception as error:
            row["tried"][name_of(tile)] = short(error)
            wait(device)
    rounds, seconds = (1, 0.0) if context.dry_run else (ROUNDS, SECONDS)
    turns = time_in_turns(ready, rounds=rounds, seconds=seconds, device=device)
    times = {tile: statistics.median(samples) for tile, samples in turns.samples.items()}
    row["tried"] |= {name_of(tile): times[tile] for tile in proposed if tile in times}
    update(row, best, times)


def new_row(problem: Problem) -> Row:
    """Return what is known of a problem before the first try.

    ``tried`` holds for each tile its milliseconds, or why it failed; that of the rule comes first.
    """
    row: Row = {"problem": dataclasses.asdict(problem), "tile": None, "tried": {}, "idle": 0}
    return row | {"ms": None, "floor_ms": None}


def name_of(tile: Tile) -> str:
    """Return the numbers of a tile in a line.

    Example:
        >>> name_of(Tile(32, 64))
        '32 64 32 1 4 3 ieee'
    """
    return " ".join(map(str, dataclasses.astuple(tile)))


def update(row: Row, best: Tile | None, times: dict[Tile, float]) -> None:
    """Take the fastest tile, if it is clearly faster than the best so far."""
    if not times:
        row["idle"] += 1
        return
    fastest = min(times, key=times.__getitem__)
    if best in times and times[fastest] > BETTER * times[best]:
        fastest = best
    row["idle"] = row["idle"] + 1 if fastest == best else 0
    row["tile"], row["ms"] = dataclasses.asdict(fastest), times[fastest]
