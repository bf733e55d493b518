"""docs/comparison.md: its tables are those of the records beside it, and all ways are in it."""

from __future__ import annotations

import re
from pathlib import Path

from ssl_lightning.cli.ways import ALTERNATIVES
from ssl_lightning.report.compared import Comparison, comparison_table

PAGE = Path(__file__).parents[1] / "docs/comparison.md"
RECORDS = sorted((PAGE.parent / "comparison").glob("*.json"))


def test_every_way_is_described() -> None:
    described = re.findall(r"^\| `(\w+)` \|", PAGE.read_text(), re.MULTILINE)
    assert described == list(ALTERNATIVES)


def test_tables_are_those_of_the_records_and_each_record_has_one() -> None:
    text = PAGE.read_text()
    marked = re.findall(r"^<!-- (\w+) -->$", text, re.MULTILINE)
    assert sorted(name for name in marked if name != "end") == [path.stem for path in RECORDS]
    for path in RECORDS:
        found = Comparison.load(path)
        table = text.split(f"<!-- {path.stem} -->\n", 1)[1].split("<!-- end -->", 1)[0]
        assert table == comparison_table(found.rows)
        assert set(found.refused) | {row.name for row in found.rows} <= set(ALTERNATIVES)
