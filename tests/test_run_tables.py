"""The tables of comparisons in docs are those of the runs that are stored beside them."""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parent.parent / "docs"
TABLE = re.compile(r"<!-- (\w+) (\w+) ([\d.]+) -->\n(.*?)<!-- end -->", re.DOTALL)
PAGES = {"budgets.md": "budgets", "recipes.md": "recipes"}
RUNS = {
    page: [json.loads(x) for x in (DOCS / folder / "results.jsonl").read_text().splitlines()]
    for page, folder in PAGES.items()
}
PLACES = sorted(
    {(page, r["network"], r["length"], r["macs"]) for page, runs in RUNS.items() for r in runs}
)


def cell(values: list[float]) -> str:
    """Mean, and the spread over several seeds."""
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{sum(values) / len(values):.2f}{spread}"


@pytest.mark.parametrize("place", PLACES, ids=str)
def test_the_rows_are_the_means_of_the_runs_best_first(place: tuple[str, str, str, float]) -> None:
    page, *at = place
    text = (DOCS / page).read_text(encoding="utf-8")
    (table,) = [t for *key, t in TABLE.findall(text) if [*key[:2], float(key[2])] == at]
    lines = [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]
    ways: dict[str, list[dict[str, float]]] = {}
    for run in RUNS[page]:
        if [run["network"], run["length"], run["macs"]] == at:
            ways.setdefault(run["way"], []).append(run)
    expected = sorted(
        (str(len(runs)), cell([r["val"] for r in runs]), cell([r["test"] for r in runs]))
        for runs in ways.values()
    )
    assert sorted(tuple(line[1:]) for line in lines) == expected
    means = [float(line[2].split()[0]) for line in lines]
    assert means == sorted(means)


@pytest.mark.parametrize("page", PAGES)
def test_every_run_is_stored_once_and_cost_what_was_asked_for(page: str) -> None:
    keys = [(r["network"], r["length"], r["macs"], r["way"], r["seed"]) for r in RUNS[page]]
    assert len(set(keys)) == len(keys)
    assert all(r["macs_left"] <= 100 * r["macs"] for r in RUNS[page] if r["way"] != "dense")
