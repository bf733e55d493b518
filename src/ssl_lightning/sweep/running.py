"""Trials one after the other, each in a process of its own."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

from ssl_lightning.callbacks.latest import RESUME
from ssl_lightning.files import FolderLock, replacing
from ssl_lightning.progress import steps
from ssl_lightning.suggest import first_line
from ssl_lightning.sweep.places import places
from ssl_lightning.sweep.processes import (
    OUTPUT,
    ended_with,
    follow_parent,
    in_processes,
    redirect_output,
)
from ssl_lightning.sweep.reporting import COSTS, Reporter, Reporting, curve_of
from ssl_lightning.sweep.space import Space, with_values
from ssl_lightning.sweep.study import Claimed, SharedStudy, open_storage, trial_of

CONFIG = "config.yaml"
PATIENCE = 60.0
"""Seconds that the process of a killed sweep has to end; it ends itself, at once if it can."""
MOST_FAILURES = 3
"""Trials that may fail before the first succeeds."""


@dataclass(frozen=True)
class Job:
    """What the process of a trial is told.

    Attributes:
        url: of the study's storage.
        study: its name.
        number: of the trial.
        folder: of the trial.
        reporting: what it reports.
    """

    url: str
    study: str
    number: int
    folder: Path
    reporting: Reporting

    @property
    def checkpoint(self) -> Path | None:
        """The checkpoint to continue from, if there is one."""
        path = self.folder / RESUME / "last.ckpt"
        return path if path.is_file() else None


Fit = Callable[[Path, Reporter, Path | None], None]
"""Trains as a config says with a callback more, from a checkpoint if given."""


@dataclass(frozen=True)
class Sweep:
    """What all trials have in common.

    Attributes:
        study: that they are of.
        config: resolved config, as plain values.
        space: what is searched.
        reporting: what trials report.
        resolve: makes plain values the text of a config, after checking them.
        fit: trains; it must be importable, for it is called in another process.
        seed: of the values that are drawn.
        start_method: of the processes, as :func:`multiprocessing.get_context` takes it.
    """

    study: SharedStudy
    config: dict[str, Any]
    space: Space
    reporting: Reporting
    resolve: Callable[[dict[str, Any]], str]
    fit: Fit
    seed: int
    start_method: str

    def run(self, total: int, say: Callable[[str], None]) -> None:
        """Run trials until the study has so many.

        Args:
            total: number of trials of the study, over all processes.
            say: takes a line about each trial.

        Raises:
            ValueError: if the first trials all fail.
        """
        failures = 0
        with steps("sweep", total) as part:
            while (claimed := self.study.next(total, self.seed)) is not None:
                start = time.monotonic()
                part.total = total - claimed.trial.number + part.done  # others work at it too
                try:
                    state, line = self.carry_out(claimed)
                finally:
                    claimed.lock.release()
                say(f"trial {claimed.trial.number}: {line}, {time.monotonic() - start:.0f} s")
                part.advance()
                failures = failures + 1 if state == TrialState.FAIL else -total
                if failures < MOST_FAILURES:
                    continue
                raise ValueError(
                    f"The first {failures} trials {line}. {claimed.folder}/{OUTPUT} says more. "
                    "Mend the cause, and give the command again; failed trials count in --trials."
                )

    def carry_out(self, claimed: Claimed) -> tuple[TrialState, str]:
        """Run a trial, and tell the study what came out; return the state and a line about it."""
        trial, folder = claimed.trial, claimed.folder
        ended = trial.user_attrs.keys() & {"result", "reason"}  # the study was not told any more
        status = 0 if ended else self.train(claimed)
        return self.tell(trial.number, folder, status)

    def train(self, claimed: Claimed) -> int:
        """Write the config of a trial and train as it says; return the exit status."""
        trial, folder = claimed.trial, claimed.folder
        config = with_values(self.config, self.space.suggest(trial))
        config = with_values(config, places(config, folder.as_posix()))
        try:
            text = self.resolve(config)
        except ValueError as error:
            trial.set_user_attr("reason", first_line(error))
            return 1
        with replacing(folder / CONFIG) as temporary:
            temporary.write_text(text)
        trial.set_user_attr("config", (folder / CONFIG).as_posix())
        if claimed.begun:
            wait_until_free(folder)
        job = Job(self.study.url, self.study.name, trial.number, folder, self.reporting)
        with self.study.alive(trial):
            return in_processes(self.start_method, work, [(job, self.fit)])[0]

    @property
    def left(self) -> str:
        """What the cost counts."""
        return COSTS[self.reporting.cost]

    def tell(self, number: int, folder: Path, status: int) -> tuple[TrialState, str]:
        """Tell the study what came out of a process; return the state and a line about it."""
        found = trial_of(self.study.study, number).user_attrs
        reason, values = "", None
        if status == 0 and "result" in found:
            error, cost = found["result"]
            line = f"{self.reporting.error} {error:.4g}, {cost:.1f} % of the {self.left} left"
            state = TrialState.PRUNED if found.get("stopped") else TrialState.COMPLETE
            if found.get("stopped"):
                line += f" when it was stopped after epoch {max(curve_of(found))}"
            else:
                values = (error, cost)
        else:
            reason = found.get("reason") or ended_with(status)
            state, line = TrialState.FAIL, f"failed: {reason}"
        if not self.study.tell(number, state, values, reason):
            line = "was given up meanwhile: the study had no sign of life from here"
        shutil.rmtree(folder / RESUME, ignore_errors=True)
        return state, line


def work(job: Job, fit: Fit) -> None:
    """Train, as the process of a trial; the last thing it does is to store result or reason."""
    follow_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    redirect_output(job.folder / OUTPUT)
    study = optuna.load_study(study_name=job.study, storage=open_storage(job.url))
    trial = trial_of(study, job.number)
    reporter = Reporter(trial, job.folder, job.reporting)
    try:
        fit(job.folder / CONFIG, reporter, job.checkpoint)
        result = reporter.result()
    except Exception as error:
        trial.set_user_attr("reason", first_line(error))
        raise
    trial.set_user_attr("stopped", reporter.stopped)
    trial.set_user_attr("result", result)


def wait_until_free(folder: Path) -> None:
    """Wait until the process of a killed sweep has ended.

    Raises:
        ValueError: if it, or another run, still works in the folder after a minute.
    """
    end = time.monotonic() + PATIENCE
    while True:
        try:
            FolderLock(folder).release()
        except ValueError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)
        else:
            return
