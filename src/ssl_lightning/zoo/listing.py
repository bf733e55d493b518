"""The zoo's own page: one table over all entries, beside the paper's rows, and pictures of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from ssl_lightning.files import replacing
from ssl_lightning.report.run_report import GROUP_KINDS
from ssl_lightning.report.table import NOTHING
from ssl_lightning.zoo.cards import PAGE, Card
from ssl_lightning.zoo.entries import card, list_models
from ssl_lightning.zoo.records import CONTROLS, median_result
from ssl_lightning.zoo.wording import left_of, paper_groups, share, table

PICTURE, ENTRIES = "errors_", "entries"
TITLE = "# The zoo"
Network = tuple[str, float, float]
INTRODUCTION = (
    "Compact networks and their figures; of several seeds the one with the median validation "
    "error. Latency is that of the compact network as a ratio to the dense one's, measured in "
    "turns. Groups left are given layer by layer where the paper does so, else summed over the "
    "layers that are left. Multiply-adds are those of ordinary convolutions, which compute zero "
    "columns too. This page is generated from the cards: `ssl-lightning zoo publish` "
    "writes it, `ssl-lightning zoo verify --all` measures test errors, sizes, groups and "
    "times again."
)
"""What the zoo's pages say first."""


def table_page(cards: Sequence[Card]) -> str:
    """Return the text of the zoo's README: all entries in one table, beside the paper's rows.

    Below it are the pictures that :func:`write_pictures` draws.
    """
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
    pictures = "".join(map(picture_text, families(cards)))
    return f"{TITLE}\n\n{INTRODUCTION}\n\n{table(head, rows)}\n{pictures}"


def families(cards: Iterable[Card]) -> list[Family]:
    """Return the entries of one backbone on one data set together, where a picture shows more."""
    found: dict[tuple[str, str], list[Card]] = {}
    for c in cards:
        found.setdefault((c.backbone, c.data.name), []).append(c)
    return [Family(*key, members) for key, members in sorted(found.items()) if len(members) > 1]


@dataclass(frozen=True)
class Family:
    """The entries of one backbone on one data set."""

    backbone: str
    data: str
    cards: list[Card]

    @property
    def picture(self) -> str:
        """Name of the file of their picture."""
        return re.sub(r"[^\w.-]", "-", f"{PICTURE}{self.backbone}_{self.data}.png")

    def short_names(self) -> dict[str, str]:
        """Return the names of the entries, and each without the words that all begin with."""
        words = {card.name: card.name.split("_") for card in self.cards}
        columns = zip(*(parts[:-1] for parts in words.values()), strict=False)
        common = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))
        return {name: "_".join(parts[common:]) for name, parts in words.items()}

    def by_macs(self) -> dict[str, list[Network]]:
        """Return entries and controls: name, test error of the median seed, multiply-adds."""
        names = self.short_names()
        found = {ENTRIES: [(names[c.name], c.test_error, c.compact.macs / 1e6) for c in self.cards]}
        for kind, text in CONTROLS.items():
            medians = [
                median_result(control.seeds)
                for card in self.cards
                for control in card.controls
                if control.kind == kind
            ]
            networks = [("", result.test_error, result.macs / 1e6) for result in medians]
            found |= {text: networks} if networks else {}
        return found

    def by_latency(self) -> dict[str, list[Network]]:
        """Return entries: name, test error, latency at batch 1 as a ratio to the dense network."""
        names = self.short_names()
        timed = [
            (names[card.name], card.test_error, record.ratio["compact"])
            for card in self.cards
            for record in card.latency
            if record.batch_size == 1
        ]
        return {ENTRIES: timed} if timed else {}


def picture_text(family: Family) -> str:
    """Return the part of the page about a family."""
    title = f"{family.backbone} on {family.data}"
    words = f"Test error over cost of all entries of {title}, beside their controls"
    return f"\n## {title}\n\n![{words}]({family.picture})\n"


def check_page(root: str | Path) -> str:
    """Return the text of a folder's page, empty if there is none.

    Raises:
        FileExistsError: if it was not written here: it would be lost.
    """
    path = Path(root) / PAGE
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    if text.strip() and not text.startswith(TITLE):
        raise FileExistsError(
            f"{path} is not the page of a zoo (`{TITLE}`), and would be replaced by one. Give a "
            "folder of its own for the entries, such as zoo, or move the file."
        )
    return text


def write_pictures(cards: Iterable[Card], root: Path, before: str) -> None:
    """Draw error over cost for each family, and remove pictures of families that are no more.

    Args:
        cards: of all entries.
        root: folder of the entries.
        before: text of the page, whose pictures these are.
    """
    from ssl_lightning.report import networks_chart

    found = families(cards)
    for family in found:
        panels = {
            "multiply-adds, millions": family.by_macs(),
            "latency at batch 1, ratio to dense": family.by_latency(),
        }
        drawn = {cost: series for cost, series in panels.items() if series}
        networks_chart(drawn, root / family.picture, f"{family.backbone} on {family.data}")
    for old in root.glob(f"{PICTURE}*.png"):
        if old.name not in {family.picture for family in found} and f"]({old.name})" in before:
            old.unlink()


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
    """Write ``README.md`` of a folder of entries, and its pictures, from their cards.

    Returns:
        The path of the page.

    Raises:
        FileExistsError: if there is a page that was not written here.
        ValueError: if a card is damaged.
    """
    path, before = Path(root) / PAGE, check_page(root)
    cards = [card(name, root) for name in list_models(root)]
    text = table_page(cards)
    write_pictures(cards, Path(root), before)
    with replacing(path) as temporary:
        temporary.write_text(text)
    return path
