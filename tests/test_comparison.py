"""The tables of docs/budgets.md are those of the runs that are stored beside them."""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parent.parent / "docs"
TABLE = re.compile(r"<!-- (\w+) (\w+) ([\d.]+) -->\n(.*?)<!-- end -->", re.DOTALL)
RUNS = [json.loads(line) for line in (DOCS / "budgets" / "results.jsonl").read_text().splitlines()]
PLACES = sorted({(run["network"], run["length"], run["macs"]) for run in RUNS})


def cell(values: list[float]) -> str:
    """Mean, and the spread over several seeds."""
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{sum(values) / len(values):.2f}{spread}"


@pytest.mark.parametrize("place", PLACES, ids=str)
def test_the_rows_are_the_means_of_the_runs_best_first(place: tuple[str, str, float]) -> None:
    text = (DOCS / "budgets.md").read_text(encoding="utf-8")
    (table,) = [t for *key, t in TABLE.findall(text) if (*key[:2], float(key[2])) == place]
    lines = [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]
    ways: dict[str, list[dict[str, float]]] = {}
    for run in RUNS:
        if (run["network"], run["length"], run["macs"]) == place:
            ways.setdefault(run["way"], []).append(run)
    expected = sorted(
        (str(len(runs)), cell([r["val"] for r in runs]), cell([r["test"] for r in runs]))
        for runs in ways.values()
    )
    assert sorted(tuple(line[1:]) for line in lines) == expected
    means = [float(line[2].split()[0]) for line in lines]
    assert means == sorted(means)


def test_every_run_is_stored_once_and_cost_what_was_asked_for() -> None:
    keys = [(r["network"], r["length"], r["macs"], r["way"], r["seed"]) for r in RUNS]
    assert len(set(keys)) == len(keys)
    assert all(r["macs_left"] <= 100 * r["macs"] for r in RUNS if r["way"] != "dense")
