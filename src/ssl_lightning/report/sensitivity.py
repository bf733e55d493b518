"""Which layers can be pruned: the table, and the picture of errors and savings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ssl_lightning.measure.sensitivity_record import Sensitivity, SensitivityRow
from ssl_lightning.report.charts import INK, PALE, new_figure, plain_axes, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NOTHING = "-"
WIDEST = 1000  # characters; a narrower terminal wraps the lines, but no figure is cut
CHARACTERS = 13  # of a small line, per inch
WORDS = {
    "coupled": "channels",
    "filter": "filters",
    "channel": "input channels",
    "head": "heads",
    "ffn": "hidden neurons",
}
"""Kind of the groups -> what they are called."""
Value = Callable[[SensitivityRow], float]


def print_sensitivity(found: Sensitivity, console: Console | None = None) -> None:
    """Show the table on standard output, or on a given console; no figure is cut.

    Args:
        found: what was measured.
        console: where to print.
    """
    table, console = sensitivity_table(found), console or Console()
    width = console.measure(table, options=console.options.update(width=WIDEST)).maximum
    console = console if console.width >= width else Console(width=width, file=console.file)
    console.print(table)


def sensitivity_table(found: Sensitivity) -> Table:
    """Lay out a line for each group set: the rise of the error and the savings, by share.

    Each cell has the rise in points and, behind it, the multiply-adds saved in percent.
    """
    table = Table(title=title(found), caption=caption(found), box=SIMPLE_HEAD)
    table.add_column("layer", no_wrap=True)
    table.add_column(word(found), justify="right", no_wrap=True)
    for share in found.shares():
        table.add_column(share_text(share), justify="right", no_wrap=True)
    for rows in found.by_set().values():
        first = next(iter(rows.values()))
        cells = [cell(found, rows.get(share)) for share in found.shares()]
        table.add_row(*map(Text, (label(found, first), str(first.num_groups), *cells)))
    return table


def cell(found: Sensitivity, row: SensitivityRow | None) -> str:
    """Write a cell of the table: the rise of the error, and the multiply-adds saved."""
    if row is None or not row.zeroed:
        return NOTHING
    return f"{rise_text(found.rise(row)):>5} {'(' + percent(row.macs_saved) + ' %)':>7}"


def title(found: Sensitivity) -> str:
    """Return the heading of table and picture."""
    return f"{found.title}: which layers can be pruned"


def caption(found: Sensitivity) -> str:
    """Say what the figures of the table are."""
    return f"Rise of the error in points (multiply-adds saved). {explained(found)}"


def explained(found: Sensitivity) -> str:
    """Say how it was measured."""
    measured = f" {found.conditions}" if found.conditions else ""
    sentences = [
        f"Error of the whole network: {found.error:.2f}{measured}.",
        f"One row is thinned at a time, {ORDERS.get(found.importance, found.importance)}.",
        "Nothing was trained, and batch norms keep their statistics: compare rows, and train what "
        "you prune.",
    ]
    if any(len(row.layers) > 1 for row in found.rows):
        sentences.append("(+n): and n more layers, which have the same channels.")
    return " ".join(sentences)


ORDERS = {
    "l2": "smallest 2-norm first",
    "l1": "smallest 1-norm first",
    "random": "in random order",
    "uniform": "in their order",
}
"""Importance -> which groups went first."""


def word(found: Sensitivity) -> str:
    """Return what the groups are called."""
    kinds = {row.group_set.rpartition(":")[2] for row in found.rows}
    return WORDS.get(kinds.pop(), "groups") if len(kinds) == 1 else "groups"


def label(found: Sensitivity, row: SensitivityRow) -> str:
    """Return the name of a group set: its first layer and how many more there are, or its kind."""
    layer, _, kind = row.group_set.rpartition(":")
    more = f" (+{len(row.layers) - 1})" if len(row.layers) > 1 else ""
    several = len({row.group_set.rpartition(":")[2] for row in found.rows}) > 1
    return f"{layer}{more}{f' {kind}' if several else ''}"


def rise_text(rise: float) -> str:
    """Write the rise of an error.

    Example:
        >>> [rise_text(rise) for rise in (0.0, 0.04, 3.04, -0.3, 71.6, 0.0021)]
        ['0', '+0.04', '+3.0', '-0.3', '+72', '+0.0021']
    """
    if abs(rise) < 0.995:
        return f"{rise:+.2g}" if rise else "0"
    return f"{rise:+.1f}" if abs(rise) < 9.95 else f"{rise:+.0f}"


def share_text(share: float) -> str:
    """Write a share of groups.

    Example:
        >>> share_text(0.125), share_text(1.0)
        ('12.5 %', '100 %')
    """
    return f"{100 * share:.3g} %"


def percent(value: float) -> str:
    """Write a share in percent.

    Example:
        >>> [percent(value) for value in (0.0, 0.04, 3.14, 9.96, 71.6)]
        ['0', '0.0', '3.1', '10', '72']
    """
    if not value:
        return "0"
    return f"{value:.1f}" if abs(value) < 9.95 else f"{value:.0f}"


def sensitivity_chart(found: Sensitivity, path: str | Path) -> None:
    """Draw the rise of the error and what is saved, for each group set and share, as a PNG.

    Args:
        found: what was measured.
        path: PNG file to write.
    """
    from matplotlib.colors import Normalize, PowerNorm

    rows, shares = found.by_set(), found.shares()
    panels: dict[str, tuple[Value, Callable[[float], str], str]] = {
        "Rise of the error, points": (found.rise, rise_text, "OrRd"),
        "Multiply-adds saved, %": (lambda row: row.macs_saved, percent, "Blues"),
        "Parameters saved, %": (lambda row: row.parameters_saved, percent, "Greens"),
    }
    longest = max(len(label(found, row)) for row in found.rows)
    width = 1.2 + 0.08 * longest + len(panels) * (0.3 + 0.56 * len(shares))
    figure = new_figure(max(width, 7.5), 1.9 + 0.23 * len(rows))
    all_axes = figure.subplots(1, len(panels), sharey=True)
    for axes, (what, (value, text, colours)) in zip(all_axes, panels.items(), strict=True):
        top = max([1.0, *map(value, found.rows)])
        scale = Normalize(0, 1.5 * top) if text is percent else PowerNorm(0.5, 0, 1.4 * top)
        draw_cells(axes, found, value, text, colours, scale)
        plain_axes(axes, what)
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        axes.set_xticks(range(len(shares)), [share_text(share) for share in shares])
        axes.set_xlabel(f"{word(found)} removed", fontsize=9, color=INK)
    name_rows(all_axes[0], found)
    figure.suptitle(title(found), fontsize=13, fontweight="bold", color=INK)
    lines = wrap(explained(found), round(CHARACTERS * figure.get_figwidth()))
    figure.supxlabel("\n".join(lines), fontsize=8.5, color=PALE)
    save_figure(figure, path)


def draw_cells(
    axes: Axes,
    found: Sensitivity,
    value: Value,
    text: Callable[[float], str],
    colours: str,
    scale: Callable[[float], float],
) -> None:
    """Draw a panel: one square for each set and share, with its figure in it."""
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle

    for y, rows in enumerate(found.by_set().values()):
        for x, share in enumerate(found.shares()):
            row, ink, written = rows.get(share), PALE, NOTHING
            if row is not None and row.zeroed:
                red, green, blue, _ = colormaps[colours](scale(max(value(row), 0.0)))
                square = Rectangle((x - 0.5, y - 0.5), 1, 1, color=(red, green, blue), linewidth=0)
                axes.add_patch(square)
                ink = INK if 0.3 * red + 0.6 * green + 0.1 * blue > 0.5 else "white"
                written = text(value(row))
            axes.text(x, y, written, ha="center", va="center", fontsize=8, color=ink)
    axes.set_xlim(-0.5, len(found.shares()) - 0.5)
    axes.set_ylim(len(found.by_set()) - 0.5, -0.5)


def name_rows(axes: Axes, found: Sensitivity) -> None:
    """Write layers and numbers of groups before the first panel, as columns of a table."""
    first = [next(iter(rows.values())) for rows in found.by_set().values()]
    axes.set_yticks(range(len(first)), [label(found, row) for row in first])
    axes.tick_params(axis="y", pad=30)
    place: dict[str, Any] = {
        "xytext": (-6, 0),
        "textcoords": "offset points",
        "va": "center_baseline",
        "ha": "right",
    }
    where = axes.get_yaxis_transform()
    for y, row in enumerate(first):
        axes.annotate(str(row.num_groups), (0, y), xycoords=where, fontsize=9, color=INK, **place)
    axes.annotate(
        f"layer, {word(found)}", (0, -0.85), xycoords=where, fontsize=9, color=PALE, **place
    )
