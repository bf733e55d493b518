"""Write the tables and figures of README and docs from records and cards.

``python tools/pages.py`` replaces what stands between ``<!-- name -->`` and ``<!-- end -->``, and
the figures of the sentences in ``prose.py``. A test says which page is not up to date.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(path) for path in (ROOT / "src", ROOT / "tools") if str(path) not in sys.path]

import compare_budgets  # noqa: E402
import compare_recipes  # noqa: E402
import comparison_page  # noqa: E402
import generalisation_page  # noqa: E402
import int8_page  # noqa: E402
import prose  # noqa: E402
import readme_tables  # noqa: E402
from comparing import stored, tables  # noqa: E402

MARKED = re.compile(r"(<!-- ([^>]+?) -->\n)(?:(?!<!-- ).)*?(<!-- end -->)", re.DOTALL)


def of_runs(folder: str, name_of: Callable[[str], str]) -> Callable[[str], str]:
    """Return what makes the tables of stored runs."""
    return lambda mark: tables(stored(ROOT / f"docs/{folder}/results.jsonl"), name_of)[mark]


TABLES: dict[str, Callable[[str], str]] = {
    "README.md": lambda mark: readme_tables.TABLES[mark](),
    "docs/budgets.md": of_runs("budgets", compare_budgets.name_of),
    "docs/comparison.md": comparison_page.made,
    "docs/generalisation.md": generalisation_page.made,
    "docs/guides/int8.md": int8_page.made,
    "docs/recipes.md": of_runs("recipes", compare_recipes.LABELS.__getitem__),
}
"""Page -> what makes the table of a mark."""
PAGES = tuple(sorted({*TABLES, *prose.PROSE}))


def filled(page: str) -> str:
    """Return a page as its records and cards have it."""
    text = (ROOT / page).read_text(encoding="utf-8")
    if page in TABLES:
        text = MARKED.sub(lambda found: f"{found[1]}{TABLES[page](found[2])}{found[3]}", text)
    return prose.filled(text, prose.PROSE[page]) if page in prose.PROSE else text


def main() -> int:
    """Rewrite the pages that differ."""
    for page in PAGES:
        text = filled(page)
        if text != (ROOT / page).read_text(encoding="utf-8"):
            (ROOT / page).write_text(text, encoding="utf-8")
            print(f"Wrote {page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
