"""The whole zoo as one HTML file, from the cards: it needs no server and no network."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from ssl_lightning.publishing.evaluations import checked_evaluated
from ssl_lightning.publishing.markdown import Part, parts
from ssl_lightning.publishing.pages import model_card, page_text
from ssl_lightning.publishing.site_charts import charts
from ssl_lightning.publishing.site_table import fields, identity, zoo_table
from ssl_lightning.report.html import EXTRA, PACKAGES, Figure, code, picture, write_page
from ssl_lightning.report.html.training import ERROR, SPARSITY, training_figures
from ssl_lightning.report.training_log import parse_curves
from ssl_lightning.suggest import require
from ssl_lightning.zoo.cards import CURVES, FILTERS_PICTURE, Card
from ssl_lightning.zoo.entries import card, checked_file, entry_folder, list_models
from ssl_lightning.zoo.listing import INTRODUCTION

HERE = Path(__file__).parent
SHOWN = ("Figures", "Not measured", "Use")
"""Parts of an entry that are open; the others are below a line that opens them."""


@dataclass(frozen=True)
class Entry:
    """What the page has of an entry.

    Attributes:
        name: of the entry.
        identity: of its section.
        lead: its first words, with the controls in them, and its remark.
        shown: parts that are open.
        more: parts that are below a line.
        figures: its pictures.
    """

    name: str
    identity: str
    lead: Markup
    shown: list[Part]
    more: list[Part]
    figures: list[Figure]


def write_site(output: str | Path = "zoo.html", root: str | Path | None = None) -> Path:
    """Write one HTML file for a whole zoo: table, fronts, and a section for each entry.

    Args:
        output: file to write.
        root: folder of entries; see :func:`ssl_lightning.zoo.entries.zoo_root` for the default.

    Returns:
        The path of the file.

    Raises:
        FileNotFoundError: if there is no zoo, or a picture of an entry is missing.
        ValueError: if the name of the file does not end in ``.html``, the extra ``html`` is not
            installed, the zoo has no entries, or a card or picture is damaged. Nothing is written
            then.

    Example:
        >>> write_site("zoo.txt")
        Traceback (most recent call last):
            ...
        ValueError: zoo site: expected a file that ends in .html, got zoo.txt. Name one.
    """
    if Path(output).suffix != ".html" or Path(output).is_dir():
        raise ValueError(f"zoo site: expected a file that ends in .html, got {output}. Name one.")
    require("`zoo site`", PACKAGES, EXTRA)
    names = list_models(root)
    if not names:
        raise ValueError("zoo site: the zoo has no entries. Give `root`, a folder that has some.")
    cards = [card(name, root) for name in names]
    table = zoo_table(cards)
    return write_page(
        output,
        "site.html.jinja",
        HERE,
        title="The zoo",
        source=code("ssl-lightning zoo site"),
        introduction=parts(INTRODUCTION, "the zoo")[0].text,
        table=table,
        fields=fields(cards, table),
        charts=charts(cards),
        entries=[entry(each, root) for each in cards],
    )


def entry(found: Card, root: str | Path | None = None) -> Entry:
    """Return what the page has of an entry."""
    records = checked_evaluated(found, entry_folder(found.name, root))
    first, *others = parts(page_text(model_card(found, records)), found.name)
    lead = first.text
    if not found.controls:
        said = Markup(" Controls: not measured ({}).").format(found.unmeasured["controls"])
        lead = Markup(str(lead).replace("</p>", f"{said}</p>", 1))
    return Entry(
        found.name,
        identity(found),
        lead,
        [part for part in others if part.title in SHOWN],
        [part for part in others if part.title not in SHOWN],
        pictures(found, entry_folder(found.name, root)),
    )


def pictures(found: Card, folder: Path) -> list[Figure]:
    """Return the curves of an entry, drawn anew, and the picture of its filters."""
    figures = []
    if CURVES in found.files:
        text = checked_file(folder / CURVES, found.files[CURVES])
        curves = curves_of(text, folder / CURVES)
        figures = training_figures(curves, (ERROR, SPARSITY), found.name, CURVES)
    if FILTERS_PICTURE in found.files:
        file = folder / FILTERS_PICTURE
        content = checked_file(file, found.files[FILTERS_PICTURE])
        drawn = picture(content, filters_words(found), str(file))
        figures.append(Figure(drawn, "First filters; those that are zero are black."))
    return figures


def curves_of(content: bytes, path: Path) -> dict[str, list[float]]:
    """Read the curves of an entry.

    Raises:
        ValueError: if the file holds something else.
    """
    try:
        return parse_curves(content.decode())
    except (ValueError, TypeError, csv.Error) as error:
        raise ValueError(
            f"{path} is damaged: expected a table of numbers, got {error}. Get the entry again."
        ) from error


def filters_words(found: Card) -> str:
    """Say what the picture of the filters shows."""
    for layer, kinds in found.groups.items():
        if "filters" in kinds:
            left, of = kinds["filters"]
            return f"Filters of {found.name}; of the first layer, {layer}, {left} of {of} are left."
    return f"Filters of {found.name}."
