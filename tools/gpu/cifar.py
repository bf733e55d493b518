"""Stage ``cifar``: a queue of CIFAR-10 runs, several at a time on one GPU, over several calls.

With ``--device cpu`` it trains the first seed of each row of the same queue, a run on each core.

First, batches made on the device are compared with those of the CPU. Each run is a process of its
own with the ordinary configs, module and data module; GPU time that one does not use is
another's. When the minutes are over, the processes are ended: each wrote a checkpoint after its
last whole epoch. The checkpoints of a row of the queue are stored in one archive, from which a
later call continues.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mps
import numpy as np
import yaml
from data_check import check_batches
from pack import join
from stages import MAX_FILES, Context, NoTimeError
from trained import (
    Row,
    Run,
    checkpoint_of,
    config_of,
    figures_of,
    kept_files,
    read_queue,
    shortened,
)

TITLE = "CIFAR-10 runs"
HERE = Path(__file__).resolve().parent
WORK = Path(".gpu", "work")
MODES = {"graphs": {"TORCHINDUCTOR_CUDAGRAPHS": "1"}, "compiled": {}, "plain": {}}
"""How a run is carried out -> environment; all but the last through torch.compile."""
LAST = "checkpoints/last.ckpt"
STOP_MINUTES = 0.2  # before the end: for the last archives
LEAST_MINUTES = 1.0  # with less time, no run is started
ARCHIVE_SECONDS = 60.0
TRIES = 5
IMAGES = 45_000  # of an epoch: 50,000 without those held out
DRY_IMAGES = 80
DRY_QUEUE = (("resnet20_cifar10_dense", (1, 1)), ("resnet20_cifar10_channel", (1, 1)))
Record = dict[str, Any]


def run(context: Context) -> None:
    """Train what the queue still holds, while there is time."""
    together, rows = read_queue(HERE / "queue.yaml", context.root / "configs")
    if not context.dry_run:
        data = join(context.root) or os.environ.get("SSL_DATA_DIR", "data")
        check_batches(context.device, Path(data), num_validation=5000, batch_size=128)
        together, rows = for_device(context.device, together, rows)
        train(context, rows, together, context.root / WORK, Path(data).resolve())
        return
    rows = tuple(dry(row, epochs) for name, epochs in DRY_QUEUE for row in rows if row.name == name)
    with tempfile.TemporaryDirectory() as folder:
        make_images(Path(folder))
        check_batches(context.device, Path(folder), num_validation=16, batch_size=16)
        train(context, rows, 2, Path(folder), Path(folder))


def for_device(device: str, together: int, rows: tuple[Row, ...]) -> tuple[int, tuple[Row, ...]]:
    """Return how many runs a device trains at a time, and which rows."""
    if device == "cuda":
        return together, rows
    return os.cpu_count() or 1, tuple(map(first_seed, rows))


def first_seed(row: Row) -> Row:
    """Return a row with its first seed alone."""
    return replace(row, seeds=row.seeds[:1])


def headline(result: Record | None) -> str:
    """Say in a line how far the queue is, and how fast it went."""
    if not result:
        return "nothing"
    records = result["runs"]
    done = sum(finished(record) for record in records)
    text = f"{done} of {len(records)} runs done, {sum(r['epochs'] for r in records)} epochs"
    if result["images_per_s"]:
        text += f"; {result['images_per_s']:,.0f} images/s together"
    wrong = [record["name"] for record in records if record["error"]]
    return text + (f"; not: {', '.join(wrong)}" if wrong else "")


def finished(record: Record) -> bool:
    """Whether a run is trained and tested."""
    return record["epochs"] == record["of"] and record["test_error"] is not None


@dataclass
class Process:
    """A run that is under way."""

    process: subprocess.Popen[str]
    mode: str
    log: Path
    first: tuple[float, int] | None = None  # when the first epoch ended here, and its number


class Training:
    """The runs of the queue, their records, and the processes that carry some of them out."""

    def __init__(self, context: Context, rows: tuple[Row, ...], work: Path, data: Path) -> None:
        self.context, self.rows, self.work, self.data = context, rows, work, data
        self.runs = {r.name: r for row in rows for r in (Run(row, s, work) for s in row.seeds)}
        self.active: dict[str, Process] = {}
        self.barred: set[str] = set()
        self.touched: set[str] = set()
        self.lost: list[str] = []
        self.shared = mps.start(work) if context.device == "cuda" else None
        self.trained_images, self.began = 0, time.monotonic()
        self.archived = self.began
        earlier = context.earlier("cifar") or {"runs": []}
        by_name = {record["name"]: record for record in earlier["runs"]}
        self.records = {name: by_name.get(name) or fresh(r) for name, r in self.runs.items()}
        for row in rows:
            self.fetch(row)

    # --- what there is already

    def fetch(self, row: Row) -> None:
        """Unpack what an earlier call stored of a row; note how far its runs are."""
        runs = [run for run in self.runs.values() if run.row is row]
        if not any(run.folder.exists() for run in runs):
            self.context.unpack(row.name, self.work / "runs")
        for run in runs:
            record = self.records[run.name]
            record |= {"error": None, "of": run.epochs}
            checkpoint, epochs = checkpoint_of(run.folder)
            if checkpoint is None and not finished(record):
                record["epochs"] = 0
            elif epochs is not None:
                record["epochs"] = epochs

    # --- starting

    def next_run(self) -> Run | None:
        """Return the first run of the queue that can be started, if there is one."""
        for name, run in self.runs.items():
            record = self.records[name]
            if name in self.active or finished(record) or record["error"]:
                continue
            if self.ready(run) and (run.row.name in self.touched or self.has_room()):
                return run
        return None

    def ready(self, run: Run) -> bool:
        """Whether what a run starts from is there."""
        for row in filter(None, (run.row.start, run.row.teacher)):
            if not finished(self.records[f"{row}-{run.seed}"]):
                return False
            if not (self.work / run.other(row) / LAST).exists():
                self.records[run.name]["error"] = f"no {LAST} of {row}: bring {row}.zip again"
                return False
        return True

    def has_room(self) -> bool:
        """Whether one more archive comes back."""
        out = self.context.out
        there = {p.name for p in out.iterdir() if p.suffix} if out.is_dir() else set()
        mine = {"cifar.json", *(f"{row}.zip" for row in self.touched)}
        return len(there | mine) < MAX_FILES

    def start(self, run: Run) -> None:
        """Start the process of a run."""
        mode = self.mode(run)
        config = config_of(run, self.rows, self.context.device, mode != "plain")
        config = shortened(config) if self.context.dry_run else config
        run.folder.mkdir(parents=True, exist_ok=True)
        given = self.work / f"{run.name}.yaml"
        given.write_text(yaml.safe_dump(config, sort_keys=False))
        last = run.folder / "checkpoints" / "last.ckpt"
        command = [sys.executable, "-W", "ignore", str(HERE / "fit_and_test.py"), str(given)]
        command.append(str(last))
        checkpoint, _ = checkpoint_of(run.folder)
        command += [] if checkpoint is None else [str(checkpoint)]
        log = self.work / f"{run.name}.log"
        with log.open("w") as file:
            process = subprocess.Popen(
                command, stdout=file, stderr=file, cwd=self.work, env=self.environment(mode)
            )
        self.active[run.name] = Process(process, mode, log)
        self.touched.add(run.row.name)
        self.records[run.name]["mode"] = mode

    def mode(self, run: Run) -> str:
        """Return a mode that was not tried yet, else the fastest on this row, or on the first."""
        if self.context.device == "cpu":
            plain = self.context.dry_run or "compiled" in self.barred
            return "plain" if plain else "compiled"
        modes = [mode for mode in MODES if mode not in self.barred]
        compiled = modes[:-1]
        if len(compiled) < 2:
            return modes[0]
        for row in (run.row, *self.rows):
            known = self.speeds(row, compiled)
            if len(known) == len(compiled):
                return max(known, key=known.__getitem__)
        tried = {process.mode for process in self.active.values()}
        tried |= {mode for row in self.rows for mode in self.speeds(row, compiled)}
        return next((mode for mode in compiled if mode not in tried), compiled[-1])

    def speeds(self, row: Row, modes: list[str]) -> dict[str, float]:
        """Return the median images per second of a row's runs in each mode that is known."""
        found: dict[str, list[float]] = {}
        for run in self.runs.values():
            record = self.records[run.name]
            if run.row is row and record["mode"] in modes and record["images_per_s"]:
                found.setdefault(record["mode"], []).append(record["images_per_s"])
        return {mode: statistics.median(values) for mode, values in found.items()}

    def environment(self, mode: str) -> dict[str, str]:
        """Return the environment of a run's process."""
        found = {**os.environ, **(self.shared or {}), **MODES[mode]}
        found["SSL_DATA_DIR"] = str(self.data)
        found["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        found |= {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "4"}
        return found

    # --- looking after them

    def look(self) -> None:
        """Note epochs and speeds; put down how processes ended."""
        for name, active in list(self.active.items()):
            status = active.process.poll()
            self.note(name, active)
            if status is None:
                continue
            del self.active[name]
            record = self.records[name]
            record |= figures_of(self.runs[name].folder)
            if status == 0 and finished(record):
                self.store()
                continue
            lines = active.log.read_text(errors="replace").strip().splitlines()
            record["error"] = f"{active.mode}: status {status}: {' '.join(lines[-3:])}"[-400:]
            if active.mode != "plain":  # once more, otherwise
                print(f"{name}: {record['error']}", flush=True)
                self.barred.add(active.mode)
                record["error"] = None

    def note(self, name: str, active: Process) -> None:
        """Note how many epochs a run has seen, and how fast it is after the first one here."""
        _, epochs = checkpoint_of(self.runs[name].folder)
        record, now = self.records[name], time.monotonic()
        if epochs is None or epochs == record["epochs"]:
            return
        images = self.images()
        self.trained_images += images * (epochs - record["epochs"])
        record["epochs"] = epochs
        if active.first is None:
            active.first = (now, epochs)
        elif epochs > active.first[1]:
            seconds = max(now - active.first[0], 1e-9)
            record["images_per_s"] = images * (epochs - active.first[1]) / seconds

    def progress(self) -> list[tuple[int, float | None]]:
        """Return the epochs and the test error of each run."""
        return [(record["epochs"], record["test_error"]) for record in self.records.values()]

    def images(self) -> int:
        """Return the training images of an epoch."""
        return DRY_IMAGES if self.context.dry_run else IMAGES

    def stop(self) -> None:
        """End all processes; what they did since the last whole epoch is lost."""
        for active in self.active.values():
            active.process.terminate()
        end = time.monotonic() + 4
        for name, active in self.active.items():
            try:
                active.process.wait(max(end - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                active.process.kill()
                active.process.wait()
            self.note(name, active)
            self.records[name] |= figures_of(self.runs[name].folder)
        self.active.clear()

    # --- storing

    def store(self) -> None:
        """Write the records, and an archive of each row that was trained in this call."""
        self.archived = time.monotonic()
        self.lost = []
        for row in sorted(self.touched):
            with tempfile.TemporaryDirectory() as folder:
                for run in self.runs.values():
                    if run.row.name == row:
                        self.copy(run, Path(folder) / run.name)
                if not any(Path(folder).iterdir()):
                    continue
                try:
                    self.context.archive(row, Path(folder))
                except ValueError as error:  # the other rows are stored all the same
                    self.lost.append(str(error))
        self.save()

    def copy(self, run: Run, target: Path) -> None:
        """Copy what is stored of a run, also while it writes."""
        for _ in range(TRIES):
            shutil.rmtree(target, ignore_errors=True)
            try:
                for path, name in kept_files(run):
                    (target / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(path, target / name)
            except FileNotFoundError:  # a newer checkpoint has just replaced it
                continue
            if (target / "checkpoints").is_dir() == (checkpoint_of(target)[0] is not None):
                return

    def save(self) -> None:
        """Write the records."""
        seconds = time.monotonic() - self.began
        speed = self.trained_images / seconds if self.trained_images else None
        result = {"runs": [*self.records.values()], "images_per_s": speed}
        self.context.save("cifar", {**result, "mps": bool(self.shared)})


def fresh(run: Run) -> Record:
    """Return the record of a run that has not begun."""
    empty = dict.fromkeys(("mode", "images_per_s", "val_error", "test_error", "error"))
    return {"name": run.name, "seed": run.seed, "epochs": 0, "of": run.epochs, **empty}


def train(context: Context, rows: tuple[Row, ...], together: int, work: Path, data: Path) -> None:
    """Have ``together`` runs under way until all are done or the minutes are over.

    Raises:
        RuntimeError: if a run failed, or was not stored.
        NoTimeError: if the minutes were over before any open run got further.
    """
    training = Training(context, rows, work, data)
    before = training.progress()
    least = 0.0 if context.dry_run else LEAST_MINUTES
    try:
        while context.minutes_left() > STOP_MINUTES:
            while len(training.active) < together and context.minutes_left() > least:
                following = training.next_run()
                if following is None:
                    break
                training.start(following)
            if not training.active:
                break
            time.sleep(0.2)
            training.look()
            if time.monotonic() - training.archived > ARCHIVE_SECONDS:
                training.store()
    finally:
        training.stop()
        training.store()
        mps.stop(training.shared)
    failed = [f"{r['name']}: {r['error']}" for r in training.records.values() if r["error"]]
    if failed + training.lost:
        raise RuntimeError("\n".join(failed + training.lost))
    late = context.minutes_left() <= max(least, STOP_MINUTES)
    if late and training.progress() == before and not all(map(finished, training.records.values())):
        raise NoTimeError("no run completed an epoch")


# Dry runs


def dry(row: Row, epochs: tuple[int, ...]) -> Row:
    """Return a row that is short: one seed, few epochs."""
    lr = (0.05,) * len(epochs)
    return replace(first_seed(row), epochs=epochs, lr=lr)


def make_images(folder: Path) -> None:
    """Write a set of made-up images in CIFAR-10's form."""
    import io

    from PIL import Image

    rng = np.random.default_rng(0)
    for name, number in (("train", DRY_IMAGES + 16), ("test", 32)):
        pieces = []
        for pixels in rng.integers(0, 256, (number, 32, 32, 3), np.uint8):
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "PNG")
            pieces.append(buffer.getvalue())
        np.savez(
            folder / f"cifar10-{name}.npz",
            blob=np.frombuffer(b"".join(pieces), np.uint8),
            offsets=np.cumsum([0, *map(len, pieces)]),
            labels=np.arange(number) % 10,
            classes=np.array([f"class {i}" for i in range(10)]),
        )
