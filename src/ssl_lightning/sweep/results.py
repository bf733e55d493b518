"""What came out of a study: tables of its trials and of the front, and a picture of both."""

from __future__ import annotations

import csv
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from ssl_lightning.files import replacing
from ssl_lightning.report import front_chart
from ssl_lightning.sweep.front import front
from ssl_lightning.sweep.study import SharedStudy

STATES = {
    TrialState.COMPLETE: "finished",
    TrialState.PRUNED: "stopped",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}
FINISHED, STOPPED = STATES[TrialState.COMPLETE], STATES[TrialState.PRUNED]
FRONT, TRIALS, PICTURE = "front.csv", "trials.csv", "front.png"


@dataclass(frozen=True)
class Outcome:
    """A trial and what came out.

    Attributes:
        number: of the trial.
        state: ``finished``, ``stopped`` (not worth finishing), ``failed`` or ``running``.
        error: validation error after the last epoch that was reported; None before the first.
        cost: what compaction would leave then, in percent.
        values: dotted path -> value, of what is searched.
        config: path of the trial's config, with the machine in front of it if that is another.
        reason: for which it failed.
    """

    number: int
    state: str
    error: float | None
    cost: float | None
    values: dict[str, Any]
    config: str
    reason: str = ""


def outcomes(study: SharedStudy) -> list[Outcome]:
    """Return the trials of a study, in the order of their numbers."""
    return [outcome(found) for found in study.trials()]


def outcome(found: FrozenTrial) -> Outcome:
    """Return what came out of a trial."""
    stored = found.user_attrs
    curve = {int(epoch): values for epoch, values in stored.get("curve", {}).items()}
    error, cost = found.values or (curve[max(curve)] if curve else (None, None))
    config = stored.get("config", "")
    if config and stored.get("host") != socket.gethostname():
        config = f"{stored.get('host')}:{config}"
    return Outcome(
        found.number,
        STATES[found.state],
        error,
        cost,
        dict(found.params),
        config,
        stored.get("reason", ""),
    )


def best(found: Sequence[Outcome]) -> list[Outcome]:
    """Return the finished trials that no other beats, from the cheapest to the most exact."""
    finished = [each for each in found if each.state == FINISHED]
    return [finished[i] for i in front(measured(finished))]


def measured(found: Sequence[Outcome]) -> list[tuple[float, float]]:
    """Return error and cost of those trials that have reported some."""
    pairs = [(each.error, each.cost) for each in found]
    return [(error, cost) for error, cost in pairs if error is not None and cost is not None]


def write_results(
    found: Sequence[Outcome], keys: Sequence[str], folder: Path, title: str, axes: tuple[str, str]
) -> list[Path]:
    """Write the tables of all trials and of the front, and the picture if a trial has finished.

    Args:
        found: all trials.
        keys: what is searched, in the order of the columns.
        folder: to write to.
        title: of the picture.
        axes: what error and cost are.

    Returns:
        The files.
    """
    shown = best(found)
    write_table(found, keys, folder / TRIALS)
    write_table(shown, keys, folder / FRONT)
    if not shown:
        return [folder / TRIALS, folder / FRONT]
    points = {s: measured([each for each in found if each.state == s]) for s in (FINISHED, STOPPED)}
    names = [f"trial {each.number}" for each in shown]
    front_chart(points, names, measured(shown), folder / PICTURE, title, axes)
    return [folder / TRIALS, folder / FRONT, folder / PICTURE]


def write_table(found: Sequence[Outcome], keys: Sequence[str], path: Path) -> None:
    """Write trials as CSV; a reader never sees half of it."""
    with replacing(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["trial", "state", "error", "cost", *keys, "config", "reason"])
        for each in found:
            values = [each.values.get(key, "") for key in keys]
            figures = ["" if value is None else value for value in (each.error, each.cost)]
            writer.writerow([each.number, each.state, *figures, *values, each.config, each.reason])
