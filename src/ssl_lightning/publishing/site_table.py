"""The table of all entries on the zoo's page, and the fields that filter it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from ssl_lightning.report.html import Table, Value
from ssl_lightning.report.html.page import Cell, breakable
from ssl_lightning.report.table import percent
from ssl_lightning.zoo.cards import MODEL, Card
from ssl_lightning.zoo.records import CONTROLS, Latency

TABLE = "zoo-table"
MILLION = 1e6
UNMEASURED = "not measured"  # why is said in the entry's section
ENTRY, NETWORK, DATA, ERROR, MACS, PARAMETERS, SIZE, CONTROL = (
    "entry", "network", "data set", "test error, %", "multiply-adds, millions",
    "parameters, millions", "weights, MB", "best control, error %",
)  # fmt: skip


@dataclass(frozen=True)
class Field:
    """A field that filters the table.

    Attributes:
        label: of the field.
        column: that it filters, from 0.
        test: ``"holds"``, ``"equals"``, ``"most"`` or ``"known"``.
        choices: to choose from: value -> words; none for a field that is typed in.
    """

    label: str
    column: int
    test: str
    choices: dict[str, str]


def identity(card: Card) -> str:
    """Return the identity of an entry's section."""
    return f"entry-{card.name}"


def zoo_table(cards: Sequence[Card]) -> Table:
    """Return one row for each entry; a column of latency for each batch size that any card has."""
    batches = sorted({record.batch_size for card in cards for record in card.latency})
    times = [f"ms in PyTorch, batch {batch} (ratio to dense)" for batch in batches]
    head = (ENTRY, NETWORK, DATA, ERROR, MACS, PARAMETERS, *times, SIZE, CONTROL)
    rows: list[list[Cell]] = [
        [
            Value(link(card), card.name),
            card.backbone,
            card.data.name,
            Value(f"{card.test_error:.2f}", card.test_error),
            share_cell(card.compact.macs, card.dense.macs),
            share_cell(card.compact.num_parameters, card.dense.num_parameters),
            *(time_cell(card, batch) for batch in batches),
            size_cell(card),
            control_cell(card),
        ]
        for card in cards
    ]
    caption = "All entries, the compact networks; in brackets the share of the dense network"
    return Table(caption, head, rows, TABLE, can_sort=True, numeric=range(3, len(head) - 1))


def link(card: Card) -> Markup:
    """Return a link to an entry's section."""
    return Markup('<a href="#{}">{}</a>').format(identity(card), breakable(card.name))


def share_cell(part: int, whole: int) -> Value:
    """Write a count in millions, and its share."""
    return Value(f"{short(part / MILLION)} ({percent(part, whole)} %)", part / MILLION)


def short(value: float) -> str:
    """Write a figure with three digits.

    Example:
        >>> short(0.12345), short(1321.7)
        ('0.123', '1,322')
    """
    return f"{value:.3g}" if value < 999.5 else f"{value:,.0f}"


def time_cell(card: Card, batch: int) -> Value:
    """Write the latency of the compact network, and its ratio to the dense one's."""
    record = latency_of(card, batch)
    if record is None:
        return Value(UNMEASURED, None)
    time = record.median_ms["compact"]
    return Value(f"{short(time)} ({record.ratio['compact']:.2f})", time)


def latency_of(card: Card, batch: int) -> Latency | None:
    """Return the record of a batch size."""
    return next((record for record in card.latency if record.batch_size == batch), None)


def size_cell(card: Card) -> Value:
    """Write the size of the file of the weights."""
    unstored = card.weights.unstored
    size = (unstored or card.files[MODEL]).num_bytes / MILLION
    return Value(short(size) + (" (not stored)" if unstored else ""), size)


def control_cell(card: Card) -> Value:
    """Write the lowest error of the controls, and which has it."""
    errors = {kind: error for kind, error in card.control_errors().items() if kind != "dense"}
    if not errors:
        return Value(UNMEASURED, None)
    best = min(errors, key=errors.__getitem__)
    beaten = "better" if errors[best] < card.test_error else "not better"
    return Value(f"{errors[best]:.2f} ({beaten}): {CONTROLS[best]}", errors[best])


def fields(cards: Sequence[Card], table: Table) -> list[Field]:
    """Return the fields: words, network, data set, an upper limit of each figure, controls."""
    places = {name: column for column, name in enumerate(table.head)}
    networks = sorted({card.backbone for card in cards})
    data = sorted({card.data.name for card in cards})
    limits = [name for name in table.head[3:] if name != CONTROL]
    return [
        Field("Name holds", places[ENTRY], "holds", {}),
        Field("Network", places[NETWORK], "equals", {name: name for name in networks}),
        Field("Data set", places[DATA], "equals", {name: name for name in data}),
        Field("Controls", places[CONTROL], "known", {"yes": "measured", "no": "not measured"}),
        *(
            Field(f"At most: {name.partition(' (')[0]}", places[name], "most", {})
            for name in limits
        ),
    ]
