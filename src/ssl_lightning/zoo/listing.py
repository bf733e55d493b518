"""The zoo's own page: one table over all entries, beside the paper's rows."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ssl_lightning.files import replacing
from ssl_lightning.report.run_report import GROUP_KINDS
from ssl_lightning.report.table import NOTHING
from ssl_lightning.zoo.cards import PAGE, Card
from ssl_lightning.zoo.entries import card, list_models
from ssl_lightning.zoo.wording import left_of, paper_groups, share, table


def table_page(cards: Iterable[Card]) -> str:
    """Return the text of the zoo's README: all entries in one table, beside the paper's rows."""
    rows = [
        (
            f"[{c.name}]({c.name}/{PAGE})",
            f"{c.test_error:.2f}",
            len(c.seeds),
            share(c.compact.macs, c.dense.macs),
            share(c.compact.num_parameters, c.dense.num_parameters),
            latency_cell(c),
            *paper_cells(c),
        )
        for c in cards
    ]
    head = (
        "entry",
        "test error, %",
        "seeds",
        "multiply-adds",
        "parameters",
        "latency, batch 1",
        "groups left",
        "the paper",
    )
    return (
        "# The zoo\n\nCompact networks and their figures; of several seeds the one with the median "
        "validation error. Latency is that of the compact network as a ratio to the dense one's, "
        "measured in turns. Groups left are told layer by layer where the paper does so, else "
        "summed over the layers that are left. This page is generated from the cards: "
        "`ssl-lightning zoo publish` writes it, `ssl-lightning zoo verify --all` measures it "
        "again.\n\n"
        f"{table(head, rows)}\n"
    )


def latency_cell(card: Card) -> str:
    """Write the compact network's latency ratio at batch 1."""
    found = [f"{r.ratio['compact']:.2f}" for r in card.latency if r.batch_size == 1]
    return found[0] if found else NOTHING


def paper_cells(card: Card) -> tuple[str, str]:
    """Write the retained groups here, and the paper's row with its error and groups.

    Either is ``-`` where there are none.
    """
    paper = card.paper or {}
    kinds = [kind for kind in GROUP_KINDS if kind in paper]
    here = "; ".join(f"{what} {text}" for what, text in left_of(card).items())
    error = [f"{paper['error']} %"] if "error" in paper else []
    there = ", ".join([*error, *(f"{kind} {paper_groups(paper, kind)}" for kind in kinds)])
    row = [str(paper["row"])] if "row" in paper else []
    return here or NOTHING, ": ".join(part for part in (*row, there) if part) or NOTHING


def write_table(root: str | Path) -> Path:
    """Write ``README.md`` of a folder of entries from their cards; return its path.

    Raises:
        ValueError: if a card is damaged.
    """
    path = Path(root) / PAGE
    text = table_page(card(name, root) for name in list_models(root))
    with replacing(path) as temporary:
        temporary.write_text(text)
    return path
