"""How a network was trained, as charts and a table over epochs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ssl_lightning.report.curves import Curves, sparsity_curves
from ssl_lightning.report.html.page import Figure, Table
from ssl_lightning.report.html.plots import lines_plot
from ssl_lightning.report.html.run_tables import epochs_table
from ssl_lightning.report.training_log import LOG, read_curves

LOSSES = {"train/loss": "training loss", "val/loss": "validation loss"}
ERRORS = {"train/error": "training error", "val/error": "validation error"}
LOSS, ERROR, SPARSITY = "loss", "error, %", "zero groups, %"


@dataclass(frozen=True)
class Training:
    """How a run was trained.

    Attributes:
        figures: charts over epochs.
        table: the figures of all of them.
        reason: why there are none, or an empty text.
    """

    figures: list[Figure]
    table: Table | None
    reason: str


def training(folder: Path) -> Training:
    """Draw loss, error and sparsity over epochs from a run's logs."""
    curves = read_curves(folder)
    if not curves:
        reason = f"Not drawn: no {LOG} with figures lies in {folder} or below; CSVLogger writes it."
        return Training([], None, reason)
    names = {name: label for name, label in (LOSSES | ERRORS).items() if name in curves}
    if "macs/left" in curves:
        names["macs/left"] = "multiply-adds left, %"
    sparse = [name for name in curves if name.startswith("sparsity/")]
    shown = {name: name for name in sparse if any(value > 0 for value in curves[name])}
    return Training(training_figures(curves), epochs_table(curves, names | shown), "")


def training_figures(
    curves: Curves,
    kinds: Sequence[str] = (LOSS, ERROR, SPARSITY),
    name: str = "",
    source: str = "",
) -> list[Figure]:
    """Draw curves, or say that there are none of a kind.

    Args:
        curves: figure -> value per epoch, with names as the module and ``SparsityMonitor`` log
            them.
        kinds: which to draw.
        name: of the network, if there are others on the page.
        source: file of the figures, if the page has no table of them.
    """
    given: dict[str, Mapping[str, Sequence[float]]] = {
        LOSS: {label: curves[name] for name, label in LOSSES.items() if name in curves},
        ERROR: {label: curves[name] for name, label in ERRORS.items() if name in curves},
        SPARSITY: sparsity_curves(curves),
    }
    figures = []
    for kind in kinds:
        if lines := given[kind]:
            drawn = lines_plot(lines, kind, described(kind, lines, name))
            also = f"; every figure is in {source}" if source else ""
            figures.append(Figure(drawn, caption=f"{kind.capitalize()}, per epoch{also}."))
        else:
            reason = f"Not drawn: {kind}; the log holds no such figures, or only zeros."
            figures.append(Figure(reason=reason))
    return figures


def described(what: str, lines: Mapping[str, Sequence[float]], name: str = "") -> str:
    """Say in words what a chart over epochs shows."""
    parts = []
    for line, values in lines.items():
        known = [value for value in values if value == value]
        if known:
            parts.append(f"{line} from {known[0]:.3g} to {known[-1]:.3g}")
    count = max(len(values) for values in lines.values())
    of = f" of {name}" if name else ""
    return f"Chart of {what}{of} over {count} epochs: {'; '.join(parts) or 'no figure'}."
