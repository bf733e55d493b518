"""The study that processes share: who runs which trial, and what came out.

A trial belongs to the output folder that it was begun in, whose identity is stored with it. The
process that runs it holds a lock on the trial's folder, which the kernel ends with the process. So
a process of the same folder knows at once that a trial was left behind, and continues it; another
folder, such as one of another machine, knows it by the heartbeat that Optuna stores.
"""

from __future__ import annotations

import json
import random
import socket
import uuid
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import Any

import optuna
from optuna.samplers import TPESampler
from optuna.storages import RDBStorage, fail_stale_trials
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial
from sqlalchemy.engine import URL, make_url

from ssl_lightning.files import FolderLock, in_turn, replacing
from ssl_lightning.parsing import parse_json
from ssl_lightning.publishing.agreeing import unequal
from ssl_lightning.suggest import first_line, nearest

HEARTBEAT, GRACE = 60, 900
"""Seconds between signs of life, and after which a trial without one is given up."""

MARK = ".sweep.json"
CLAIM = ".claim"
SETTINGS = "settings"


@dataclass(frozen=True)
class Claimed:
    """A trial that this process runs, and nobody else while the lock is held."""

    trial: Trial
    folder: Path
    lock: FolderLock
    begun: bool


class SharedStudy:
    """An Optuna study of two objectives, error and cost, that several processes work on.

    Args:
        url: of the storage, as SQLAlchemy takes it.
        name: of the study.
        output: folder of this process's trials; other processes may use it too, on this machine
            or where the file system locks across machines.
        create: whether to make a study that is not there.

    Raises:
        ValueError: if the storage cannot be opened, there is no such study, or the folder holds
            trials of another.
    """

    def __init__(self, url: str, name: str, output: Path, create: bool = True) -> None:
        self.url, self.name, self.output = url, name, output
        file, shown = self._checked(url, create)
        self.turn = file.parent if file else output
        with in_turn(self.turn):
            self.storage = open_storage(url, file)
            self.study = self._study(create, shown)
            self.owner = self._identity() if create else ""

    def _checked(self, url: str, create: bool) -> tuple[Path | None, str]:
        """Return the file that the storage is, if it is one, and the URL to show."""
        try:
            parsed = make_url(url)
        except Exception as error:
            raise ValueError(
                f"--storage: expected a URL such as sqlite:///runs/sweep/study.db, got {url!r}: "
                f"{first_line(error)}."
            ) from error
        return self._file_of(parsed, create), parsed.render_as_string(hide_password=True)

    def _file_of(self, url: URL, create: bool) -> Path | None:
        if url.get_backend_name() != "sqlite":
            return None
        if not url.database or url.database == ":memory:":
            raise ValueError(
                f"--storage: expected a file, as in sqlite:///runs/sweep/study.db, got {url}: a "
                "study in memory is lost with the process."
            )
        file = Path(url.database)
        if not create and not file.is_file():
            raise FileNotFoundError(
                f"No study at {file}. `ssl-lightning sweep` with --config, --space and --trials "
                "makes one."
            )
        return file

    def _study(self, create: bool, shown: str) -> optuna.Study:
        """Return the study of that name, made if missing and ``create``."""
        known = [found.study_name for found in optuna.get_all_study_summaries(self.storage)]
        if not create and self.name not in known:
            raise ValueError(
                f"--study: there is no study {self.name!r} in {shown}. "
                f"{nearest(self.name, known) if known else 'It holds none.'}"
            )
        study = optuna.create_study(
            storage=self.storage,
            study_name=self.name,
            directions=["minimize", "minimize"],
            load_if_exists=True,
        )
        if len(study.directions) != 2 or (study.trials and SETTINGS not in study.user_attrs):
            raise ValueError(
                f"--study: {self.name!r} in {shown} was not begun by `ssl-lightning sweep`. Give "
                "another name."
            )
        return study

    def _identity(self) -> str:
        """Return the identity of the output folder, which is given one where it has none."""
        mark = self.output / MARK
        self.output.mkdir(parents=True, exist_ok=True)
        if not mark.is_file():
            with replacing(mark) as temporary:
                temporary.write_text(json.dumps({"id": uuid.uuid4().hex, "study": self.name}))
        found = parse_json(mark.read_text(), str(mark))
        if found["study"] != self.name:
            raise ValueError(
                f"--output: {self.output} holds the trials of the study {found['study']!r}, and "
                f"this is {self.name!r}. Give each study a folder of its own."
            )
        self._check_folders(found["id"])
        return str(found["id"])

    def _check_folders(self, owner: str) -> None:
        """Refuse folders of trials that the study does not know: their checkpoints are others'."""
        trials = self.study.get_trials(deepcopy=False)
        known = {found.number for found in trials if found.user_attrs.get("owner") == owner}
        for folder in sorted(self.output.glob("trial-[0-9]*")):
            number = folder.name.partition("-")[2]
            if number.isdecimal() and int(number) not in known:
                raise ValueError(
                    f"--output: the study {self.name!r} knows of no run in {folder}. Move it away, "
                    "give the --storage that the trials were kept in, or another --output."
                )

    def trials(self) -> list[FrozenTrial]:
        """Return all trials that count, in the order of their numbers."""
        return [t for t in self.study.get_trials(deepcopy=False) if not is_given_up(t)]

    def agree(self, settings: Mapping[str, Any]) -> None:
        """Store what is searched and how; refuse it if trials are of something else.

        Raises:
            ValueError: naming what differs, with both values.
        """
        given = json.loads(json.dumps(settings))
        with in_turn(self.turn):
            known = self.study.user_attrs.get(SETTINGS)
            nothing = all(found.state == TrialState.FAIL for found in self.trials())
            if known is None or nothing:
                self.study.set_user_attr(SETTINGS, given)
                return
        if found := unequal(known, given, "")[:3]:
            there = ", ".join(found).replace("`.", "`")
            raise ValueError(
                f"--study: {self.name!r} was begun with other settings: {there}. Give what it was "
                "begun with, or another --study and --output."
            )

    def settings(self) -> dict[str, Any]:
        """Return what :meth:`agree` stored."""
        return dict(self.study.user_attrs.get(SETTINGS) or {})

    def next(self, total: int, seed: int) -> Claimed | None:
        """Return a trial to run: one that was left behind, else a new one; None if there is none.

        Args:
            total: number of trials of the study.
            seed: of the values that are searched; those of a trial follow from it, the trial's
                number and the trials that were finished before.
        """
        with in_turn(self.turn), warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            for mine in self._running_here():  # the locks tell who runs them, better than beats
                self.storage.record_heartbeat(mine._trial_id)
            return self._left_behind(seed) or self._new(total, seed)

    def _running_here(self) -> list[FrozenTrial]:
        """Return the unfinished trials of this folder."""
        running = [t for t in self.trials() if t.state == TrialState.RUNNING]
        return [t for t in running if t.user_attrs.get("owner") == self.owner]

    def _left_behind(self, seed: int) -> Claimed | None:
        """Return a trial of this folder that no process runs any more."""
        for found in self._running_here():
            lock = claim(self.folder(found.number))
            if lock is not None:
                return self._claimed(found, lock, seed, begun=True)
        return None

    def _new(self, total: int, seed: int) -> Claimed | None:
        fail_stale_trials(self.study)
        if len(self.trials()) >= total:
            return None
        token = uuid.uuid4().hex  # the owner is stored with the trial, not after it
        attributes = {"owner": self.owner, "token": token, "host": socket.gethostname()}
        self.study.add_trial(create_trial(state=TrialState.RUNNING, user_attrs=attributes))
        trials = self.trials()
        (found,) = [t for t in trials if t.user_attrs.get("token") == token]
        lock = claim(self.folder(found.number))
        assert lock is not None
        claimed = self._claimed(found, lock, seed, begun=False)
        if trials.index(found) < total:
            return claimed
        self.study.tell(found.number, state=TrialState.FAIL)  # another machine was faster
        lock.release()
        return None

    def _claimed(self, found: FrozenTrial, lock: FolderLock, seed: int, begun: bool) -> Claimed:
        draws = random.Random(f"{seed}-{found.number}").getrandbits(32)
        self.study.sampler = TPESampler(seed=draws)
        trial = Trial(self.study, found._trial_id)
        self.storage.record_heartbeat(found._trial_id)
        return Claimed(trial, self.folder(found.number), lock, begun)

    def folder(self, number: int) -> Path:
        """Return the folder of one of this process's trials."""
        return self.output / f"trial-{number:04d}"

    @contextmanager
    def alive(self, trial: Trial) -> Iterator[None]:
        """Give signs of life for a trial while the block runs."""
        stop = Event()

        def beat() -> None:
            while not stop.wait(HEARTBEAT):
                try:
                    self.storage.record_heartbeat(trial._trial_id)
                except optuna.exceptions.StorageInternalError as error:  # it may come back
                    warnings.warn(f"No heartbeat: {first_line(error)}", stacklevel=1)

        thread = Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def tell(
        self, number: int, state: TrialState, values: tuple[float, float] | None, reason: str = ""
    ) -> bool:
        """Finish a trial; return False if it was given up before, for lack of signs of life.

        Args:
            number: of the trial.
            state: how it ended.
            values: error and cost of a complete trial.
            reason: why it failed.
        """
        try:
            if reason:
                trial_of(self.study, number).set_user_attr("reason", reason)
            told = self.study.tell(number, values, state, skip_if_finished=True)
        except optuna.exceptions.UpdateFinishedTrialError:
            return False
        return told.state == state


def trial_of(study: optuna.Study, number: int) -> Trial:
    """Return a trial, to store what becomes of it."""
    (found,) = [t for t in study.get_trials(deepcopy=False) if t.number == number]
    return Trial(study, found._trial_id)


def open_storage(url: str, file: Path | None = None) -> RDBStorage:
    """Open a storage, made if missing.

    Args:
        url: of the storage.
        file: that the storage is. It is made under another name: Optuna would take a file that a
            kill left without the index that keeps names unique, and begin a study twice.

    Raises:
        ValueError: if that fails.
    """
    if file is not None and not file.exists():
        with replacing(file) as temporary:
            made = make_url(url).set(database=str(temporary))
            open_storage(made.render_as_string(hide_password=False)).engine.dispose()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sqlite = make_url(url).get_backend_name() == "sqlite"
    waiting: dict[str, Any] = {"connect_args": {"timeout": 60}} if sqlite else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        try:
            return RDBStorage(url, waiting, heartbeat_interval=HEARTBEAT, grace_period=GRACE)
        except Exception as error:  # of SQLAlchemy and of the drivers of its databases
            shown = make_url(url).render_as_string(hide_password=True)
            raise ValueError(
                f"--storage: cannot open {shown}: {first_line(error)}. Check the address and that "
                "the driver of this database is installed."
            ) from error


def is_given_up(trial: FrozenTrial) -> bool:
    """Whether a trial ended without a reason of its own: for lack of signs of life."""
    return trial.state == TrialState.FAIL and "reason" not in trial.user_attrs


def claim(folder: Path) -> FolderLock | None:
    """Return the lock on a trial, or None if a living process holds it."""
    try:
        return FolderLock(folder, CLAIM)
    except ValueError:
        return None
