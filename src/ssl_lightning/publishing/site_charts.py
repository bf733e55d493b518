"""Error over cost of all entries, for each data set."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ssl_lightning.publishing.pages import where
from ssl_lightning.publishing.site_table import MILLION, identity
from ssl_lightning.report.html import Figure
from ssl_lightning.report.html.plots import Point, front, points_plot
from ssl_lightning.report.table import milliseconds, percent, plural
from ssl_lightning.zoo.cards import Card
from ssl_lightning.zoo.records import CONTROLS, Latency, median_result

ERROR = "test error, %"
BATCH = 1


@dataclass(frozen=True)
class DataCharts:
    """The charts of one data set.

    Attributes:
        data: its name.
        figures: error over multiply-adds, and over latency for each machine.
    """

    data: str
    figures: list[Figure]


def charts(cards: Sequence[Card]) -> list[DataCharts]:
    """Draw error over multiply-adds and over latency for each data set."""
    names = sorted({card.data.name for card in cards})
    return [data_charts(name, [c for c in cards if c.data.name == name]) for name in names]


def data_charts(data: str, cards: Sequence[Card]) -> DataCharts:
    """Draw the charts of one data set."""
    points = macs_points(cards)
    figures = [chart(points, f"multiply-adds, millions; {data}", "multiply-adds")]
    for place, timed in by_place(cards).items():
        points = [
            Point(
                card.backbone,
                record.median_ms["compact"],
                card.test_error,
                f"{card.name}: {card.test_error:.2f} % error, "
                f"{milliseconds(record.median_ms['compact'])} ms, "
                f"{record.ratio['compact']:.2f} of the dense network's",
                identity(card),
                card.name,
            )
            for card, record in timed
        ]
        figures.append(chart(points, f"latency, ms, batch {BATCH}; {data}", f"latency on {place}"))
    missing = [c.name for c in cards if not any(r.batch_size == BATCH for r in c.latency)]
    if missing:
        reason = f"Latency at batch {BATCH} was not measured of {', '.join(missing)}."
        figures.append(Figure(reason=reason))
    return DataCharts(data, figures)


def macs_points(cards: Sequence[Card]) -> list[Point]:
    """Return entries, and then the median runs of their controls."""
    found = [
        Point(
            card.backbone,
            card.compact.macs / MILLION,
            card.test_error,
            f"{card.name}: {card.test_error:.2f} % error, {card.compact.macs:,} multiply-adds, "
            f"{percent(card.compact.macs, card.dense.macs)} % of the dense network's",
            identity(card),
            card.name,
        )
        for card in cards
    ]
    for kind, words in CONTROLS.items():
        for card in cards:
            for control in card.controls:
                if control.kind == kind:
                    median = median_result(control.seeds)
                    said = (
                        f"control of {card.name}, {words}: {median.test_error:.2f} % error, "
                        f"{median.macs:,} multiply-adds"
                    )
                    x, y = median.macs / MILLION, median.test_error
                    found.append(Point(f"control: {short(words)}", x, y, said, identity(card)))
    return found


def short(words: str) -> str:
    """Return what a control is, without how it was trained, so that it fits a legend.

    Example:
        >>> short("random groups + fine-tuning"), short("small dense network from scratch")
        ('random groups', 'small dense network')
    """
    return words.partition(" + ")[0].removesuffix(" from scratch")


def by_place(cards: Sequence[Card]) -> dict[str, list[tuple[Card, Latency]]]:
    """Return where latency was measured -> entries and their records; times of others differ."""
    found: dict[str, list[tuple[Card, Latency]]] = {}
    for card, record in records(cards):
        found.setdefault(where(record.machine, record.threads), []).append((card, record))
    return found


def records(cards: Sequence[Card]) -> Iterator[tuple[Card, Latency]]:
    """Return each entry with its latency of one image."""
    for card in cards:
        for record in card.latency:
            if record.batch_size == BATCH:
                yield card, record


def chart(points: Sequence[Point], x: str, cost: str) -> Figure:
    """Draw points; the words below name the front."""
    named = "; ".join(
        f"{p.label or p.words.partition(':')[0]} {p.y:.2f}\u00a0%" for p in front(points)
    )
    counts = plural(sum(1 for p in points if p.label), "network")
    controls = sum(1 for p in points if not p.label)
    also = f" and {plural(controls, 'control')}" if controls else ""
    words = (
        f"Test error over {cost}, {counts}{also}. The line is the smallest error that a cost buys; "
        f"on it, from the cheapest on: {named}."
    )
    return Figure(points_plot(points, x, ERROR, f"Chart. {words}"), words)
