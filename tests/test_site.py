"""The documentation: its pages are built without a warning, and say what the code says."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import warnings

import pytest

import ssl_lightning
from conftest import ROOT

sys.path.append(str(ROOT / "tools"))

import site_pages
import tutorials

DOCS = ROOT / "docs"
TUTORIALS = sorted(p for p in (DOCS / "tutorials").glob("*.md") if p.stem != "index")
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
    *sorted(p for p in DOCS.rglob("*.md") if not {"generated", "_build"} & set(p.parts)),
]
MOST_BYTES, README_LINES = 15_000_000, 110


def page_id(path):
    return str(path.relative_to(ROOT))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site as `make docs` builds it."""
    folder = tmp_path_factory.mktemp("site")
    command = re.search(
        r"^docs:.*\n\t\$\(RUN\) (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE
    )
    arguments = command[1].replace("docs/_build", str(folder)).split()
    ran = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return folder / "html"


def test_the_site_is_built_without_a_warning_and_is_small(site):
    assert (site / "index.html").is_file()
    assert sum(p.stat().st_size for p in site.rglob("*") if p.is_file()) < MOST_BYTES


def test_no_page_loads_anything_from_elsewhere(site):
    loads = re.compile(r'<(?:script|link|img|iframe)[^>]*(?:src|href)="(https?:)?//[^"]*"')
    for page in site.rglob("*.html"):
        found = loads.search(page.read_text())
        assert not found, f"{page.name}: {found[0]}"


def test_every_picture_has_a_description(site):
    for page in site.rglob("*.html"):
        for picture in re.findall(r"<img[^>]*>", page.read_text()):
            assert re.search(r'alt="[^"]+"', picture), f"{page.name}: {picture}"


def test_every_public_name_is_in_the_reference(site):
    names = [name for *_, names in site_pages.REFERENCE.values() for name in names.split()]
    assert sorted(names) == sorted(ssl_lightning.__all__)
    for page, (*_, listed) in site_pages.REFERENCE.items():
        text = (site / "generated/reference" / f"{page}.html").read_text()
        for name in set(listed.split()) - {"zoo", "publishing"}:
            assert f'id="ssl_lightning.{name}"' in text, name


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_a_tutorial_prints_what_its_page_shows(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ran = tutorials.run(path)
    assert len(ran) >= 4
    for block in ran:
        assert tutorials.masked(block.shown) == tutorials.masked(block.printed), block.code


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_a_notebook_has_the_code_of_its_tutorial(path):
    made = json.loads(site_pages.notebook(path))
    cells = ["".join(c["source"]) for c in made["cells"] if c["cell_type"] == "code"]
    code = [match["code"].strip() for match in tutorials.BLOCK.finditer(path.read_text())]
    assert [ast.dump(ast.parse(cell)) for cell in cells] == [ast.dump(ast.parse(c)) for c in code]
    assert "download" not in json.dumps(made["cells"][:2])


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_links_lead_to_files(path):
    for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", path.read_text()):
        place = (path.parent / link).resolve()
        if "://" not in link and "generated" not in link:
            assert place.exists(), link


def test_readme_is_short_and_shows_what_was_measured():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= README_LINES
