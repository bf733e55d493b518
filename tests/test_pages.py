"""README and docs: tables and figures are those of records and cards, and none is typed."""

from __future__ import annotations

import re
import sys

import pytest

from conftest import ROOT

sys.path.append(str(ROOT / "tools"))

import pages
import prose

UNIT = r"%|points?|ms|s|[KMG]i?B|seconds?|minutes?|hours?|times|million|images/s|standard errors|x"
FIGURE = re.compile(rf"(?<![\w`.#/-])[-+]?\d[\d.,]*\s*(?:±\s*[\d.]+\s*)?(?:%|(?:{UNIT})\b)")
NO_SENTENCE = (
    r"```.*?```",
    r"<!-- [^>]+? -->\n.*?<!-- end -->",
    r"(?m)^(?: {4,}\S[^\n]*|\|[^\n]*|#[^\n]*)$",
    r"`[^`]*`",
    r"\d+ x \d+",
)
"""Code, tables, headings and sizes of images."""
SETTINGS = {
    "docs/budgets.md": ["more than 3 %, four times", "more than 3 % above the limit"],
    "docs/decisions.md": [
        "(128 KB) is packed",
        "must be 5 % faster",
        "multiple within 2 % of the best",
    ],
    "docs/generalisation.md": ["at most 5 % (Bonferroni)", "beyond 3.3 standard errors"],
    "docs/guides/publish.md": ["at most 2 MB"],
    "docs/guides/strengths.md": ["below 5 % of the largest", "smallest 60 % of each layer"],
    "docs/install.md": ["at most 2 MB", "less than 50 MB"],
    "docs/sensitivity.md": ["to 70 % of the", "at most 70 % of the"],
    "docs/sweep.md": ["for 15 minutes is given up"],
    "docs/tutorials/lightning.md": ["until 30 % were left"],
}
"""Page -> what is chosen, not measured: limits, settings of an example, levels of significance."""
DOCS = sorted(
    path.relative_to(ROOT).as_posix()
    for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    if "generated" not in path.parts
)


def sentences(page: str) -> str:
    """Return the text of a page without code, tables and the figures that are worked out."""
    text = prose.others((ROOT / page).read_text(encoding="utf-8"), prose.PROSE.get(page))
    for pattern in NO_SENTENCE:
        text = re.sub(pattern, " ", text, flags=re.DOTALL)
    return " ".join(text.split())


@pytest.mark.parametrize("page", pages.PAGES)
def test_a_page_is_what_the_records_give(page: str) -> None:
    assert pages.filled(page) == (ROOT / page).read_text(encoding="utf-8")


@pytest.mark.parametrize("page", DOCS)
def test_no_figure_in_a_sentence_is_typed(page: str) -> None:
    text = sentences(page)
    for setting in SETTINGS.get(page, []):
        assert setting in text, f"no longer in {page}: {setting}"
        text = text.replace(setting, " ")
    typed = [text[max(0, m.start() - 60) : m.end() + 20] for m in FIGURE.finditer(text)]
    assert not typed, "give these sentences a template in tools/prose.py, or put them in a table"


def test_a_typed_figure_is_found() -> None:
    for text in ("takes 5.7 ms", "by 0.3 ± 0.1 points", "is 97 % of", "in 3 minutes", "3,000 s"):
        assert FIGURE.search(text), text
    for text in ("ResNet-20 of 45,000 images", "conv1 and 20.5", "version 3.11", "2 xs"):
        assert not FIGURE.search(text), text


def test_a_sentence_gets_the_figures_of_its_record_however_it_is_broken() -> None:
    kept = prose.Prose(
        lambda: {"gain": "1.8", "share": "1,024"}, ("takes off {gain} points of {share}.",)
    )
    text = "It takes\n  off 0.25 points of 3.\nMore: 0.25 points."
    assert prose.filled(text, kept) == "It takes\n  off 1.8 points of 1,024.\nMore: 0.25 points."
    assert prose.others(text, kept) == "It  \nMore: 0.25 points."
    for other in ("It takes off points.", text + text):
        with pytest.raises(AssertionError, match=r"found \d times: takes off"):
            prose.filled(other, kept)


def rows_of(page: str, mark: str) -> dict[str, list[float]]:
    """Return the first numbers of the cells of a table, by the first cell."""
    text = (ROOT / page).read_text(encoding="utf-8").split(f"<!-- {mark} -->\n")[1]
    lines = [[c.strip(" *") for c in row.split("|")[1:-1]] for row in text.splitlines()[2:]]
    rows = lines[: next(i for i, line in enumerate(lines) if not line)]
    return {name.split("**")[0]: numbers_of(cells) for name, *cells in rows}


def numbers_of(cells: list[str]) -> list[float]:
    """Return the first number of each cell that has one."""
    found = (re.search(r"[-+]?\d[\d.]*", cell) for cell in cells)
    return [float(number[0]) for number in found if number]


def test_figures_of_budgets_are_the_differences_of_the_cells() -> None:
    said = prose.budget_figures()
    ours = "measured, at once"
    for network in ("resnet20", "mobilenetv3"):
        for length in ("short", "long"):
            rows = rows_of("docs/budgets.md", f"{network} {length} 0.5")
            for split, column in (("val", 1), ("test", 2)):
                gain = rows["l2 norms, at once"][column] - rows[ours][column]
                assert float(said[f"{network}_{length}_{split}"]) == pytest.approx(gain, abs=0.06)
    for macs in (0.1, 0.25, 0.5):
        rows = rows_of("docs/budgets.md", f"lenet short {macs}")
        best = min(row[1] for way, row in rows.items() if way.startswith("constant"))
        assert float(said[f"ours{100 * macs:.0f}"]) == rows[ours][1]
        assert float(said[f"best{100 * macs:.0f}"]) == best


def test_figures_of_generalisation_are_those_of_the_cells() -> None:
    said = {name: float(text.replace(",", "")) for name, text in
            prose.generalisation_figures().items()}  # fmt: skip
    page = "docs/generalisation.md"
    against = rows_of(page, "calibration_resnet20 against")
    assert said["depth14_lost"] == pytest.approx(against["resnet20_cifar10_depth14"][0], abs=0.051)
    assert said["ece_high"] == pytest.approx(max(row[2] for row in against.values()), abs=0.051)
    corruptions = rows_of(page, "corruption_resnet20 corruptions")
    fog = corruptions["fog"][-3:]
    assert (said["fog_low"], said["fog_high"]) == (min(fog), max(fog))
    assert said["jpeg"] == -corruptions["jpeg compression"][-1]
    probe = rows_of(page, "probe_mobilenetv3 transfer")
    assert said["features"] == probe["mobilenetv3_small_imagenette_half"][1]
    assert said["probe_loss"] == pytest.approx(9.44, abs=0.051)
