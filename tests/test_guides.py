"""The code of the guides runs, in the order in which it stands."""

from __future__ import annotations

import re

import pytest

from conftest import ROOT

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
