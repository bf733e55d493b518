"""Pages and settings for those who install the library or work on it agree with the project."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from conftest import ROOT

PAGES = ["CONTRIBUTING.md", "SECURITY.md", "docs/install.md"]


def extras() -> dict[str, list[str]]:
    """Return extra -> names of the packages, without versions."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return {
        extra: sorted(re.split(r"[\[><=~!; ]", line)[0] for line in lines)
        for extra, lines in project["optional-dependencies"].items()
    }


def test_the_table_of_extras_is_that_of_pyproject() -> None:
    text = (ROOT / "docs" / "install.md").read_text()
    (table,) = re.findall(r"\| extra \|.*?(?=\n\n)", text, re.DOTALL)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    assert {name.strip("`"): sorted(packages.split(", ")) for name, _, packages, _ in rows} == (
        extras()
    )
    assert all(purpose and size in ("small", "medium", "large") for _, purpose, _, size in rows)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files(page: str) -> None:
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", (ROOT / page).read_text())
    assert links
    for link in links:
        if "://" not in link:
            assert ((ROOT / page).parent / link).exists(), link


def test_the_places_that_contributing_names_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    places = set(re.findall(r"`([\w/]+(?:/|\.py))`", text))
    assert len(places) > 8
    roots = (ROOT, ROOT / "src" / "ssl_lightning")
    missing = {place for place in places if not any((root / place).exists() for root in roots)}
    assert not missing


def test_help_lists_every_target() -> None:
    text = (ROOT / "Makefile").read_text()
    targets = set(" ".join(re.findall(r"^\.PHONY: (.*)$", text, re.MULTILINE)).split())
    assert targets >= set(re.findall(r"^([a-z][a-z-]*):", text, re.MULTILINE))
    shown = set(re.findall(r"make ([a-z-]+)", "".join(re.findall(r"@echo .*", text))))
    assert shown == targets - {"help"}


def hooks() -> list[dict[str, Any]]:
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repository["repo"] == "local"  # nothing is fetched
    return repository["hooks"]


def test_hooks_are_the_checks_of_the_makefile() -> None:
    found = {hook["entry"].removeprefix(".venv/bin/python ") for hook in hooks()}
    makefile = (ROOT / "Makefile").read_text()
    recipes = re.findall(r"^\t\$\(RUN\) (-m (?:ruff|mypy).*)$", makefile, re.MULTILINE)
    checks = {recipe.removesuffix(" .") for recipe in recipes}
    assert {entry.removesuffix(" --force-exclude") for entry in found} == {
        *checks,
        "tools/large_files.py",
    }
    assert {hook["language"] for hook in hooks()} == {"system"}


@pytest.fixture
def large_files() -> Any:
    path = ROOT / "tools" / "large_files.py"
    spec = importlib.util.spec_from_file_location("large_files", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_no_file_is_too_large(large_files: Any) -> None:
    try:
        names = large_files.tracked()
    except subprocess.CalledProcessError:
        pytest.skip("not a git checkout")
    assert large_files.too_large(names) == []


def test_large_files_are_named(large_files: Any, tmp_path: Path) -> None:
    sizes = {
        "zoo/a/model.safetensors": 12_000_000,
        "zoo/b/model.safetensors": 12_000_001,
        "zoo/a/plan.json": 2_500_001,
        "docs/deep/er/picture.png": 2_500_001,
        "code.py": 2_500_000,
    }
    for name, size in sizes.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        with (tmp_path / name).open("wb") as file:
            file.truncate(size)
    found = large_files.too_large([*sizes, "removed.py"], tmp_path)
    assert [sentence.split()[0] for sentence in found] == [
        "zoo/b/model.safetensors",
        "zoo/a/plan.json",
        "docs/deep/er/picture.png",
    ]
    assert "has 12000001 bytes, at most 12000000 are kept" in found[0]


def test_the_citation_names_the_paper_and_no_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    required = {"cff-version", "message", "title", "authors"}
    assert required <= set(citation)
    assert "version" not in citation  # it stands in one place
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert citation["license"] == project["license"]
    (paper,) = citation["references"]
    assert [author["family-names"] for author in paper["authors"]] == "Wen Wu Wang Chen Li".split()
    assert (paper["year"], paper["type"]) == (2016, "conference-paper")
