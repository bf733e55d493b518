"""What a stage of the GPU script gets: where to write, on which device, and until when.

A stage is a file of this folder with ``run(context)`` and ``headline(result)``, and a row of
``STAGES`` in ``run.py``. It saves after every result and returns once the minutes are over, or
raises :class:`NoTimeError` if they were over before its first one; a later call finds what is there
already through :meth:`Context.earlier` and continues.
"""

from __future__ import annotations

import json
import os
import platform
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAX_FILES = 8
MAX_BYTES = 16_000_000  # of one file
RESULTS = Path("docs", "gpu")  # JSON of earlier calls, committed
CARRIED = Path(".gpu", "results")  # archives of earlier calls, ignored by git
NO_TIME = "no time"


class NoTimeError(RuntimeError):
    """The minutes of a stage were over before it had any of the results that it is for.

    Args:
        what: did not happen.
    """

    def __init__(self, what: str) -> None:
        super().__init__(f"{NO_TIME}: {what}. Give more --minutes.")


@dataclass(frozen=True)
class Context:
    """Surroundings of one stage.

    Attributes:
        out: folder of the results.
        device: ``"cuda"`` or ``"cpu"``.
        deadline: when the stage has to be over, on the clock of :func:`time.monotonic`.
        dry_run: whether to do everything with tiny sizes, for the sake of the code.
        root: of the repository.
    """

    out: Path
    device: str
    deadline: float
    dry_run: bool
    root: Path

    def minutes_left(self) -> float:
        """Return the minutes until the deadline; negative after it."""
        return (self.deadline - time.monotonic()) / 60

    def save(self, name: str, data: Any, error: str | None = None) -> Path:
        """Write a result as ``name.json``, at once or not at all; replaces the former one.

        Args:
            name: of the stage, or of a further file of it.
            data: what JSON can hold; not-a-number becomes null.
            error: why the stage ended early, if it did.

        Raises:
            ValueError: if there would be too many files, or one would be too large.
        """
        record = {**_machine(self.device), "dry_run": self.dry_run, "error": error, "result": data}
        text = json.dumps(_finite(record), indent=1, allow_nan=False) + "\n"
        return self._write(f"{name}.json", lambda path: path.write_text(text, encoding="utf-8"))

    def archive(self, name: str, folder: Path) -> Path:
        """Write the files of a folder as ``name.zip``, at once or not at all.

        Raises:
            ValueError: if there would be too many files, or the archive would be too large.
        """

        def write(path: Path) -> None:
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
                for file in sorted(p for p in folder.rglob("*") if p.is_file()):
                    archive.write(file, file.relative_to(folder).as_posix())

        return self._write(f"{name}.zip", write)

    def unpack(self, name: str, folder: Path) -> bool:
        """Put the files of an earlier call's archive into a folder; return whether there was one.

        Raises:
            ValueError: if the archive is damaged.
        """
        found = self._find(f"{name}.zip")
        if found is None:
            return False
        try:
            with zipfile.ZipFile(found) as archive:
                archive.extractall(folder)
        except (zipfile.BadZipFile, EOFError) as error:
            raise ValueError(f"Cannot read `{found}`: {error}. Copy it again.") from error
        return True

    def earlier(self, name: str) -> Any:
        """Return what ``name.json`` held last, in this call or an earlier one; None without one.

        Raises:
            ValueError: if the file is damaged.
        """
        found = self._find(f"{name}.json")
        return None if found is None else read_result(found)["result"]

    def _find(self, file: str) -> Path | None:
        """Return the newest place: this call's results, else carried ones, else committed ones."""
        places = [self.out]
        if not self.dry_run:
            places += [self.root / CARRIED, self.root / RESULTS]
        return next((place / file for place in places if (place / file).is_file()), None)

    def _write(self, file: str, write: Callable[[Path], object]) -> Path:
        self.out.mkdir(parents=True, exist_ok=True)
        there = {path.name for path in self.out.iterdir() if not path.name.startswith(".")}
        if len(there | {file}) > MAX_FILES:
            raise ValueError(
                f"Cannot write `{file}`: at most {MAX_FILES} files come back, and `{self.out}` "
                f"holds {', '.join(sorted(there))}. Put more into one file."
            )
        part = self.out / f".{file}.part"
        try:
            write(part)
            if part.stat().st_size > MAX_BYTES:
                raise ValueError(
                    f"Cannot write `{file}`: {part.stat().st_size} bytes, at most {MAX_BYTES} come "
                    "back. Save less."
                )
            part.replace(self.out / file)
        finally:
            part.unlink(missing_ok=True)
        return self.out / file


def read_result(path: Path) -> dict[str, Any]:
    """Return a saved file with what :meth:`Context.save` put around the result.

    Raises:
        ValueError: if it is none.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"Cannot read `{path}`: {error}. Copy it again, or delete it.") from error
    if not isinstance(record, dict) or not {"result", "device", "dry_run"} <= record.keys():
        raise ValueError(f"Cannot read `{path}`: expected what a stage saved. Delete it.")
    return record


def _machine(device: str) -> dict[str, Any]:
    """Describe the device and versions; torch is imported by the stages, not here."""
    import torch

    on_gpu = device == "cuda" and torch.cuda.is_available()  # else the stage says what is missing
    name = torch.cuda.get_device_name() if on_gpu else platform.machine()
    return {
        "device": name,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def _finite(value: Any) -> Any:
    """Return the data with null for what JSON has no number for."""
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not abs(value) < float("inf"):
        return None
    return value
