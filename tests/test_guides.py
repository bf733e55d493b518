"""The code of the guides runs, in the order in which it stands."""

from __future__ import annotations

import re

import pytest

from conftest import ROOT
from ssl_lightning.measure.precision_record import PrecisionRecord

DOCS = ROOT / "docs"
PAGES = sorted((*DOCS.glob("*.md"), *DOCS.glob("guides/*.md"), *DOCS.glob("explanations/*.md")))
GUIDES = [page for page in PAGES if "```python\n" in page.read_text()]


def test_there_are_guides():
    assert GUIDES


@pytest.mark.parametrize("path", GUIDES, ids=lambda path: path.stem)
def test_its_python_blocks_run(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT / "tests")
    blocks = re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL)
    assert blocks
    code = "\n".join(blocks)
    exec(compile(code, str(path), "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("name", ["resnet20", "mobilenetv3"])
def test_the_table_of_precisions_is_that_of_the_records(name):
    folder = DOCS / "guides"
    table = (folder / "int8.md").read_text().split(f"<!-- {name} -->\n")[1].split("<!-- end -->")[0]
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    rows = {tuple(cells[:3]): cells[3:] for cells in lines[2:]}
    record = PrecisionRecord.load(folder / "int8" / f"{name}.json")
    assert len(rows) == len(record.rows) == 8
    for (engine, network, precision), (error, megabytes, milliseconds, speed) in rows.items():
        row = record.row(network, engine, precision)
        assert error == f"{row.error:.2f}"
        assert megabytes == f"{row.num_bytes / 1e6:.2f}"
        assert milliseconds == f"{row.timing.median_ms:.3f}"
        assert speed == f"{1 / row.timing.ratio:.2f}"
        assert record.row("dense", engine, "float32").timing.ratio == 1
