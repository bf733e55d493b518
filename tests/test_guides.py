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


NETWORKS = {
    "ResNet-20, dense": ("resnet20", "dense"),
    "ResNet-20, 14 layers": ("resnet20", "compact"),
    "MobileNetV3-small, dense": ("mobilenetv3", "dense"),
    "MobileNetV3-small, half of the latency": ("mobilenetv3", "compact"),
}


def test_the_table_of_precisions_is_that_of_the_records():
    folder = ROOT / "docs" / "guides"
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in (folder / "int8.md").read_text().splitlines()
        if re.match(r"\| .*\| (float32|int8) \|", line)
    ]
    assert [row[0] for row in rows if row[0]] == list(NETWORKS)
    name = ""
    for title, precision, *cells in rows:
        name = title or name
        file, network = NETWORKS[name]
        record = PrecisionRecord.load(folder / "int8" / f"{file}.json")
        found = [record.row(network, engine, precision) for engine in ("openvino", "onnxruntime")]
        errors = " / ".join(dict.fromkeys(f"{row.error:.2f}" for row in found))
        base = (network, precision) == ("dense", "float32")
        speeds = [
            f"{row.timing.median_ms:.3f} ms" if base else f"{1 / row.timing.ratio:.2f}x"
            for row in found
        ]
        assert cells == [errors, *speeds]
