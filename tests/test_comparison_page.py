"""docs/comparison.md: its tables are those of the records beside it, and all ways are in it."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from ssl_lightning import zoo
from ssl_lightning.cli.ways import ALTERNATIVES
from ssl_lightning.report.compared import Comparison, comparison_table
from ssl_lightning.report.run_report import RunReport

sys.path.append(str(Path(__file__).parents[1] / "tools"))

import comparison_page

PAGE = Path(__file__).parents[1] / "docs/comparison.md"
RECORDS = sorted((PAGE.parent / "comparison").glob("*.json"))


def test_every_way_is_described() -> None:
    described = re.findall(r"^\| `(\w+)` \|", PAGE.read_text(), re.MULTILINE)
    assert described == list(ALTERNATIVES)


def test_tables_are_those_of_the_records_and_each_record_has_one() -> None:
    text = PAGE.read_text()
    marked = set(re.findall(r"^<!-- (\w+) -->$", text, re.MULTILINE)) - {"end"}
    assert marked == {*comparison_page.MODERN} | {path.stem for path in RECORDS}
    for path in RECORDS:
        if path.stem not in ("cost", "engines"):
            found = Comparison.load(path)
            assert comparison_table(found.rows) in text
            assert set(found.refused) | {row.name for row in found.rows} <= set(ALTERNATIVES)


@pytest.mark.parametrize(
    ("mark", "controls"),
    [("modern", {"magnitude", "random", "dense"}), ("efficientnet", set())],
)
def test_modern_networks_stand_beside_all_of_their_controls(mark: str, controls: set[str]) -> None:
    table = PAGE.read_text().split(f"<!-- {mark} -->\n", 1)[1].split("<!-- end -->", 1)[0]
    entry = zoo.card(comparison_page.MODERN[mark])
    assert {control.kind for control in entry.controls} == controls
    for result in (*entry.seeds, *(seed for control in entry.controls for seed in control.seeds)):
        assert (
            f"| {result.validation_error:.2f} | {result.test_error:.2f} | {result.macs:,} " in table
        )


def test_engines_are_those_of_the_record() -> None:
    table = PAGE.read_text().split("<!-- engines -->\n", 1)[1].split("<!-- end -->", 1)[0]
    (run,) = RunReport.load(PAGE.parent / "comparison/engines.json").benchmark.runs
    assert len(table.splitlines()) == len(run.engines) + 2
    for engine, times in run.engines.items():
        ratio = times["compact"].median_ms / times["dense"].median_ms
        assert re.search(rf"\| {engine} \| .* \| {ratio:.2f} \|", table)


def test_the_cost_of_penalties_is_that_of_the_record() -> None:
    table = PAGE.read_text().split("<!-- cost -->\n", 1)[1].split("<!-- end -->", 1)[0]
    rows = json.loads((PAGE.parent / "comparison/cost.json").read_text())["rows"]
    assert len(table.splitlines()) == len(rows) + 2
    for row in rows:
        assert f"| {row['step_ms']:.1f} | {row['ratio']:.3f} (" in table
