"""Networks on other data: the table, and a picture of their errors."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table

from ssl_lightning.evaluation.transfer_record import TransferRecord
from ssl_lightning.report.charts import COLORS, finish_figure, new_figure, plain_axes
from ssl_lightning.report.generalisation import Cells, estimate_text, plain_table
from ssl_lightning.report.table import plural, short_count

METHODS = {"probe": "linear probe", "finetune": "fine-tuning"}
"""Method of a record -> what it is called."""
HEAD = ("network", "MACs", "features", "error %", "over seeds", "above dense", "by seed")


def transfer_rows(record: TransferRecord) -> list[Cells]:
    """Return the cells of a line for each network, as :data:`HEAD` names them."""
    return [
        (
            row.network,
            short_count(row.macs),
            str(row.features),
            estimate_text(row.error()),
            " ".join(f"{error:.2f}" for error in row.errors),
            estimate_text(record.loss(row), sign=True),
            "-"
            if record.loss(row) is None
            else " ".join(f"{loss:+.2f}" for loss in record.seed_losses(row)),
        )
        for row in record.rows
    ]


def explained(record: TransferRecord) -> str:
    """Say how it was measured."""
    method = METHODS[record.method].capitalize()
    return (
        f"{method} on {record.trained:,} training images of {record.data}, drawn "
        f"anew for each of {plural(len(record.seeds), 'seed')}; errors on {record.images:,} "
        f"{record.split} images. {settings_words(record)} ±: standard error, of other images."
    )


def settings_words(record: TransferRecord) -> str:
    """Write the settings of a method."""
    given = {name: listed(value) for name, value in record.settings.items()}
    if record.method == "probe":
        return f"Weight decay: of {given['weight_decays']}, chosen on {given['held_out']}."
    pairs = (f"{name.replace('_', ' ')} {value}" for name, value in given.items())
    return f"Settings: {', '.join(pairs)}."


def listed(value: object) -> str:
    """Write a value, or several."""
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def transfer_table(record: TransferRecord) -> Table:
    """Lay out a line for each network."""
    return plain_table(record.title, HEAD, transfer_rows(record), explained(record))


def transfer_chart(record: TransferRecord, path: str | Path) -> None:
    """Draw the error of each network with each seed, and the mean, as a PNG.

    Args:
        record: what to draw.
        path: PNG file to write.
    """
    figure = new_figure(7.5, 1.8 + 0.5 * len(record.rows))
    axes = figure.subplots()
    for number, row in enumerate(record.rows):
        color = COLORS[number % len(COLORS)]
        axes.scatter(row.errors, [number] * len(row.errors), s=16, color=color, alpha=0.6)
        axes.errorbar([row.mean()], [number], xerr=[row.error().se], fmt="D", color=color)
    plain_axes(axes, f"{METHODS[record.method]} on {record.data}: error, %", "x")
    axes.set_yticks(range(len(record.rows)), [row.network for row in record.rows])
    axes.set_ylim(len(record.rows) - 0.5, -0.5)
    axes.scatter([], [], s=16, color=COLORS[0], label="one seed")
    axes.scatter([], [], marker="D", color=COLORS[0], label="mean; bar: one standard error")
    conditions = (
        f"{record.trained:,} training images, {record.images:,} {record.split} images, "
        f"{plural(len(record.seeds), 'seed')}"
    )
    finish_figure(figure, record.title, conditions, path)
