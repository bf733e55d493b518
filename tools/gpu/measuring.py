"""The cases of the paper's Table 4: candidates checked against float64, then timed in turns."""

from __future__ import annotations

import dataclasses
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from candidates import Candidate, candidates, make_setting
from layers import Case, cases, chosen_tiles, device_of, operations
from stages import Context, NoTimeError
from timing import (
    TOLERANCE,
    Prepared,
    floor_ms,
    measure_ceilings,
    prepare,
    set_mode,
    time_in_turns,
)

from ssl_lightning.kernels import tiles
from ssl_lightning.measure.sparse import CONV_PART
from ssl_lightning.measure.turns import Turns, interquartile_range
from ssl_lightning.suggest import first_line

Row = dict[str, Any]
ROUNDS = 15
SECONDS = 0.005  # of one sample
FIRST_CASE = 30.0  # seconds that a case may take
PART_TOLERANCE = 3  # rounding of five layers, not one
PRODUCT = "product"  # without lowering: compared with the dense product only


def measure_cases(context: Context) -> None:
    """Measure all cases that fit into the minutes, after those of earlier calls.

    Raises:
        NoTimeError: if there are open cases, and none fits.
    """
    device = torch.device(context.device)
    result = context.earlier("table4") or {"ceilings": {}, "cases": []}
    use_tuned(context)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        name, _ = device_of(device)
        result["ceilings"][name] = measure_ceilings(device, context.dry_run)
        slowest = 0.0 if context.dry_run else FIRST_CASE
        still_open = open_cases(result["cases"], device, context.dry_run)
        for i, case in enumerate(still_open):
            if context.minutes_left() * 60 <= slowest:
                if i == 0:
                    context.save("table4", result)
                    raise NoTimeError(f"none of {len(still_open)} open cases was measured")
                break
            started = time.monotonic()
            measure(case, device, context, result)
            slowest = max(slowest, time.monotonic() - started)
    context.save("table4", result)


def use_tuned(context: Context) -> None:
    """Let the kernel read the tiles that the stage ``tune`` found, beside the shipped ones."""
    found = context.earlier("tune")
    if found:
        shipped = tiles.read_tiles(tiles.FILE) if tiles.FILE.is_file() else {}
        tiles.use(tiles.merge(shipped, tiles.from_json(found["tiles"])))


def open_cases(rows: list[Row], device: torch.device, dry_run: bool) -> list[Case]:
    """Return the cases not measured on this device, then those whose tiles have changed since."""
    name, _ = device_of(device)
    done = {key(row): row["tiles"] for row in rows if row["device"] == name}
    new, stale = [], []
    for case in cases(dry_run):
        if key(dataclasses.asdict(case)) not in done:
            new.append(case)
            continue
        set_mode(case.mode)
        if done[key(dataclasses.asdict(case))] != tiles_now(case, device, dry_run):
            stale.append(case)
    return new + stale


def key(row: Row) -> tuple[str, int, str]:
    """Return what names a case."""
    return row["layer"], row["batch"], row["mode"]


def tiles_now(case: Case, device: torch.device, tiny: bool) -> dict[str, Row]:
    """Return the chosen tiles as JSON holds them."""
    found = chosen_tiles(case, device, tiny)
    return {name: dataclasses.asdict(tile) for name, tile in found.items()}


def measure(case: Case, device: torch.device, context: Context, result: Row) -> None:
    """Check and time all candidates of a case; save what was found, also if the case fails."""
    set_mode(case.mode)
    name, _ = device_of(device)
    row: Row = {**dataclasses.asdict(case), "device": name, "tiles": {}, "candidates": []}
    row |= {"fastest": None, "failure": None, "tiles": tiles_now(case, device, context.dry_run)}
    former = [r for r in result["cases"] if (r["device"], key(r)) != (name, key(row))]
    try:
        measure_candidates(case, device, context.dry_run, row, result["ceilings"][name])
    except Exception as error:
        row["failure"] = short(error)
        wait(device)
    finally:
        result["cases"] = [*former, row]
        context.save("table4", result)


def measure_candidates(
    case: Case, device: torch.device, tiny: bool, row: Row, ceilings: Row
) -> None:
    """Fill in the candidates of a row: what failed first, so that it is there if the rest fails."""
    torch.compiler.reset()  # now that no graph holds what was compiled before
    setting = make_setting(case, device, tiny)
    row["sets"] = len(setting.inputs)
    ready: dict[str, Prepared] = {}
    rows: list[Row] = row["candidates"]
    for name, configuration, build in candidates(setting):
        label = f"{name} #{configuration}"
        rows.append({"name": name, "configuration": configuration, **_NOT_TIMED})
        try:
            candidate, ready[label] = checked(case, build)
        except Exception as error:
            rows[-1]["failure"] = short(error)
            wait(device)
            continue
        rows[-1] |= work_of(candidate, ready[label], case, ceilings)
        rows[-1]["limit"] = operations(case, tiny) / candidate.operations
    rounds, seconds = (1, 0.0) if tiny else (ROUNDS, SECONDS)
    add_times(row, time_in_turns(ready, rounds=rounds, seconds=seconds, device=device))


_NOT_TIMED: Row = {
    "ms": None,
    "ms_iqr": None,
    "speedup": None,
    "speedup_iqr": None,
    "floor_ms": None,
    "limit": None,
    "difference": None,
    "failure": None,
}


def checked(case: Case, build: Callable[[], Candidate]) -> tuple[Candidate, Prepared]:
    """Build a candidate and compare it with float64."""
    candidate = build()
    tolerance = TOLERANCE[case.mode] * (PART_TOLERANCE if case.layer == CONV_PART else 1)
    return candidate, prepare(candidate.compute, candidate.inputs, candidate.exact, tolerance)


def work_of(candidate: Candidate, ready: Prepared, case: Case, ceilings: Row) -> Row:
    """Return the floor and the difference from float64.

    Weights are in the cache from call to call, so only input and output count as moved.
    """
    moved = candidate.read * candidate.inputs[0].nbytes + ready.outputs[0].nbytes
    floor = floor_ms(ceilings, case.mode, candidate.operations, moved)
    return {"floor_ms": floor, "difference": ready.difference}


def add_times(row: Row, turns: Turns[str]) -> None:
    """Fill in medians, and ratios round by round to the fastest dense form (of products)."""
    medians = {name: statistics.median(samples) for name, samples in turns.samples.items()}
    whole = [n for n in medians if n.endswith(" #0") and not n.startswith(PRODUCT)]
    fastest = min(whole, key=medians.__getitem__, default=None)
    row["fastest"] = fastest and fastest.removesuffix(" #0")
    for one in row["candidates"]:
        label = f"{one['name']} #{one['configuration']}"
        if label not in medians:
            continue
        one |= {"ms": medians[label], "ms_iqr": interquartile_range(turns.samples[label])}
        base = f"{PRODUCT} #0" if one["name"] == PRODUCT else fastest
        if base in medians:
            ratios = turns.ratios(base, label)
            one["speedup"] = statistics.median(ratios)
            one["speedup_iqr"] = interquartile_range(ratios)


def wait(device: torch.device) -> None:
    """Raise if the device is lost: all that follows would fail too, and a later call continues."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def short(error: Exception) -> str:
    """Return the type and the first line of an error."""
    return f"{type(error).__name__}: {first_line(error, 300)}"
