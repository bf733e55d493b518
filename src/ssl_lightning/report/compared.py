"""Ways to a budget beside each other: what each reached, as a table in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ssl_lightning.measure.serial import Record
from ssl_lightning.report.ways import Way

HEAD = ("way", "seeds", "val %", "test %", "MACs %", "params %", "latency %", "train s", "lines")


@dataclass(frozen=True)
class Compared:
    """What a way came to, over all its seeds.

    Attributes:
        name: of the way.
        label: what it is.
        seeds: number of runs.
        validation: mean error of the compact networks on the images held out, percent.
        validation_spread: standard deviation over seeds, percentage points; 0 for one seed.
        test: the same on the test split.
        test_spread: the same.
        macs_left: multiply-adds of the median run without zero columns, percent of the dense
            network's.
        parameters_left: of the median run, percent of the dense network's.
        latency_left: of the median run in eager mode, one input, percent of the dense network's,
            timed in turns.
        latency_spread: half the interquartile range of that, percentage points.
        seconds: wall time of the median run's training; None if it was not measured.
        lines: of YAML by which its config differs from that of the dense run.
    """

    name: str
    label: str
    seeds: int
    validation: float
    validation_spread: float
    test: float
    test_spread: float
    macs_left: float
    parameters_left: float
    latency_left: float
    latency_spread: float
    seconds: float | None
    lines: int

    def way(self) -> Way:
        """Return what the picture shows."""
        return Way(
            name=self.name,
            label=self.label,
            metric="validation error",
            value=self.validation,
            macs=0,
            macs_left=self.macs_left,
            parameters=0,
            latency_ms=0.0,
            latency_left=self.latency_left,
            latency_spread=self.latency_spread,
        )


@dataclass(frozen=True)
class Comparison(Record):
    """All ways of one comparison.

    Attributes:
        title: network and data.
        epochs: of each run.
        command: that made it.
        rows: the ways, the smallest validation error first.
        refused: way -> why it could not run.
    """

    title: str
    epochs: int
    command: str
    rows: tuple[Compared, ...]
    refused: dict[str, str]

    what = "comparison"


def cells_of(row: Compared) -> tuple[str, ...]:
    """Return the cells of a way.

    Example:
        >>> numbers = 3, 0.934, 0.08, 0.9, 0.03, 9.97, 12.3, 51.2, 1.4, 61.3, 4
        >>> cells = cells_of(Compared("magnitude", "smallest norms", *numbers))
        >>> cells[0]
        'smallest norms (magnitude)'
        >>> cells[2:]
        ('0.93 ± 0.08', '0.90 ± 0.03', '10.0', '12.3', '51 ± 1', '61', '4')
    """
    several = row.seeds > 1
    return (
        f"{row.label} ({row.name})",
        str(row.seeds),
        f"{row.validation:.2f}" + (f" ± {row.validation_spread:.2f}" if several else ""),
        f"{row.test:.2f}" + (f" ± {row.test_spread:.2f}" if several else ""),
        f"{row.macs_left:.1f}",
        f"{row.parameters_left:.1f}",
        f"{row.latency_left:.0f} ± {row.latency_spread:.0f}",
        "-" if row.seconds is None else f"{row.seconds:.0f}",
        str(row.lines),
    )


def comparison_table(rows: Sequence[Compared]) -> str:
    """Return the table as Markdown.

    Args:
        rows: the ways.
    """
    lines = [HEAD, ("---",) * len(HEAD), *map(cells_of, rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"
