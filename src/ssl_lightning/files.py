"""Writing files and folders so that none is ever left half-written."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary name beside ``path``; rename it to ``path`` once the block succeeded.

    If the block raises, the temporary file is removed and what was at ``path`` before is untouched.
    Missing parent folders are created.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     with replacing(Path(folder, "a.txt")) as temporary:
        ...         _ = temporary.write_text("complete")
        ...     print(Path(folder, "a.txt").read_text(), len(list(Path(folder).iterdir())))
        complete 1
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.stem}.{os.getpid()}.tmp{target.suffix}")
    try:
        yield temporary
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_together(path: str | os.PathLike[str]) -> Iterator[Path]:
    """As :func:`replacing`, for writers that put further files beside the one they are given.

    The temporary file has the name of ``path``, in a temporary folder; all files written there are
    moved beside ``path``, the one of that name last.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     with replacing_together(Path(folder, "a.xml")) as temporary:
        ...         _ = temporary.with_suffix(".bin").write_text("weights")
        ...         _ = temporary.write_text("graph")
        ...     print(sorted(path.name for path in Path(folder).iterdir()))
        ['a.bin', 'a.xml']
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    folder.mkdir()
    try:
        yield folder / target.name
        for file in sorted(folder.iterdir(), key=lambda file: file.name == target.name):
            file.replace(target.with_name(file.name))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def appearing(target: Path, replace: bool = False) -> Iterator[Path]:
    """Give a temporary folder beside ``target``; rename it to ``target`` if the block succeeds.

    Args:
        target: folder to make.
        replace: whether it exists and gives way; it is put back if the new one cannot be.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as place:
        ...     with appearing(Path(place, "entry")) as folder:
        ...         _ = Path(folder, "a.txt").write_text("complete")
        ...         print(Path(place, "entry").exists())
        ...     print(Path(place, "entry", "a.txt").read_text())
        False
        complete
    """
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True)
    old = temporary.with_suffix(".old")
    try:
        yield temporary
        if replace:
            target.rename(old)
        temporary.rename(target)
    finally:
        if old.exists() and not target.exists():
            old.rename(target)
        for folder in (temporary, old):
            shutil.rmtree(folder, ignore_errors=True)
