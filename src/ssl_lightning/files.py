"""Writing files and folders so that none is ever half-written."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from weakref import WeakSet
from zlib import crc32

from safetensors import SafetensorError

from ssl_lightning.suggest import shortened

NUMBERS = count()
"""Of temporary folders: threads may write one target."""
FOR, OLD = "-for-", ".old"
"""Parts of names of temporary folders: before the target's; at the end, of what gives way."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class DiskFullError(OSError):
    """There was no space for a file; what was there before is still there."""


def cache_folder(folder: str | os.PathLike[str] | None = None) -> Path:
    """Return the folder of what can be made again: the given one, else the user's.

    That is below ``$XDG_CACHE_HOME`` or ``~/.cache``.
    """
    if folder:
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "ssl_lightning"


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary name beside ``path``; rename it to ``path`` once the block succeeded.

    It is on the disk before the name changes, so that even a crash leaves the old file or the whole
    new one. If the block raises, it is removed and what was at ``path`` before is untouched; those
    of killed processes are removed by the next that writes there. Missing folders are created.

    Raises:
        DiskFullError: if there is no space for the file.

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
    sweep(target.parent)
    temporary = target.with_name(
        f"{mark(os.getpid())}-{crc32(target.name.encode())}{target.suffix}"
    )
    try:
        with naming_full_disks(target):
            temporary.touch()
            mode = temporary.stat().st_mode
            temporary.unlink()
            yield temporary
            temporary.chmod(mode)  # safetensors lets nobody else read its files
            flush(temporary)
            temporary.replace(target)
            flush(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def mark(process: int | str) -> str:
    """Return how the names of a process's temporary files begin.

    Containers may share a host's name and number their processes anew: the space of these numbers
    is part of it.
    """
    try:
        space = Path("/proc/self/ns/pid").readlink().name.strip("pid:[]")
    except OSError:  # not on Linux
        space = "0"
    return f".tmp-{socket.gethostname()}-{space}-{process}"


def sweep(folder: Path) -> None:
    """Remove temporary files and folders of killed processes of this machine in a folder.

    What :func:`appearing` moved away is retained, see :func:`restore`.
    """
    for path in of_dead_processes(folder):
        if path.is_dir() and not path.name.endswith(OLD):
            shutil.rmtree(path, ignore_errors=True)
        elif not path.is_dir():
            path.unlink(missing_ok=True)


def restore(folder: Path) -> None:
    """Give back their names to folders that a process moved away that was killed then."""
    for path in of_dead_processes(folder):
        name = path.name.removesuffix(OLD).partition(FOR)[2]
        if path.name.endswith(OLD) and not (folder / name).exists():
            path.rename(folder / name)


def of_dead_processes(folder: Path) -> list[Path]:
    """Return the temporary files and folders of killed processes of this machine."""
    pattern = re.compile(re.escape(mark("")) + r"(\d+)-\d+")
    found = [(path, pattern.match(path.name)) for path in folder.iterdir()]
    return [path for path, by in found if by and not is_alive(int(by[1]))]


def temporary_folder(target: Path) -> Path:
    """Make a folder of a name of its own beside a target, and remove those of killed processes."""
    target.parent.mkdir(parents=True, exist_ok=True)
    sweep(target.parent)
    folder = target.with_name(f"{mark(os.getpid())}-{next(NUMBERS)}{FOR}{target.name}")
    folder.mkdir()
    return folder


def is_alive(process: int) -> bool:
    """Whether a process of this machine is running."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def flush(path: Path) -> None:
    """Write what the system holds of a file, or of the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def let_read(folder: Path) -> None:
    """Let those who may look into a folder read its files: safetensors lets nobody else."""
    for file in filter(Path.is_file, folder.iterdir()):
        file.chmod(folder.stat().st_mode & 0o666)


@contextmanager
def naming_full_disks(target: Path) -> Iterator[None]:
    """Turn what writers raise when there is no space into one sentence.

    Raises:
        DiskFullError: instead.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        free = shutil.disk_usage(target.parent).free
        full = getattr(error, "errno", None) in FULL or is_full(error) or free < SMALL
        if not full or isinstance(error, DiskFullError):
            raise
        raise DiskFullError(
            f"Cannot write {target}: no space ({free / 1e6:.1f} MB are free there, or a quota or "
            "limit is reached). What was there before is unchanged. Free some space, or write "
            "elsewhere, and resume from the last checkpoint."
        ) from error


SMALL = 2**16
"""Bytes that are free on a disk which a failed write has filled."""


def is_full(error: BaseException | None) -> bool:
    """Whether a full disk is behind an error, as writers in other languages tell it."""
    while error is not None:
        if getattr(error, "errno", None) in FULL or "No space left" in str(error):
            return True
        error = error.__context__
    return False


@contextmanager
def in_turn(folder: Path) -> Iterator[None]:
    """Wait until no other process is in such a block for the same folder, made if missing.

    The kernel ends the lock with the process, even if it is killed. On network file systems that
    do not lock across machines, only processes of one machine wait for each other.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


HELD: WeakSet[FolderLock] = WeakSet()
"""Locks of this process; its children do not have them."""


def forget_locks() -> None:
    """Close a child's copies of the locks of the process that it was forked from."""
    for lock in list(HELD):
        lock.release()


os.register_at_fork(after_in_child=forget_locks)


class FolderLock:
    """That one process works in a folder; the second is refused.

    As :func:`in_turn`, the lock ends with the process, though processes that it forked, such as
    workers of a data loader, live on.

    Args:
        folder: made if missing; it gets a file that names the process.
        name: of that file. Locks of different names do not exclude each other.
        option: of the command line that names another folder.

    Raises:
        ValueError: if another process works in it.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     lock = FolderLock(Path(folder))
        ...     try:
        ...         FolderLock(Path(folder))
        ...     except ValueError as error:
        ...         print(str(error).partition(": ")[2][:8])
        ...     lock.release()
        ...     FolderLock(Path(folder)).release()
        process
    """

    def __init__(
        self, folder: Path, name: str = ".lock", option: str = "--trainer.default_root_dir"
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / name
        self.handle: int | None = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self.handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = shortened(os.read(self.handle, 200).decode(errors="replace").strip(), 100)
            self.release()
            raise ValueError(
                f"Cannot use the folder {folder}: process {holder.strip(chr(39))} works in it. Two "
                "runs in one folder would mix their files. Give this run a folder of its own "
                f"({option}), or wait for the other."
            ) from error
        HELD.add(self)
        os.ftruncate(self.handle, 0)
        os.write(self.handle, f"{os.getpid()} on {socket.gethostname()}\n".encode())

    def release(self) -> None:
        """Let others work in the folder."""
        if self.handle is not None:
            os.close(self.handle)
            self.handle = None


class Traces:
    """What a run makes before it trains, so that a refused one can remove it again.

    Args:
        folders: that the run may make; those that exist are not touched, and of the others only
            what is empty then is removed, since another run may work below.
        files: that it may write; they become what they are now.
        logs: folders as ``folders``, of which new files are removed too.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as place:
        ...     run, old = Path(place, "runs", "a"), Path(place, "old.txt")
        ...     _ = old.write_text("before")
        ...     traces = Traces([run], [run / "config.yaml", old])
        ...     run.mkdir(parents=True)
        ...     _ = (run / "config.yaml").write_text("x"), old.write_text("after")
        ...     traces.remove()
        ...     print([path.name for path in Path(place).iterdir()], old.read_text())
        ['old.txt'] before
    """

    def __init__(
        self, folders: Iterable[Path], files: Iterable[Path], logs: Iterable[Path] = ()
    ) -> None:
        self.logs = [folder for folder in logs if not folder.exists()]
        paths = {part for folder in (*folders, *self.logs) for part in (folder, *folder.parents)}
        self.new = sorted((path for path in paths if not path.exists()), reverse=True)
        self.files = {file: file.read_bytes() if file.is_file() else None for file in files}

    def remove(self) -> None:
        """Remove the folders, if nothing is in them, and put the files back."""
        for file, content in self.files.items():
            if content is None:
                file.unlink(missing_ok=True)
            elif not file.is_file() or file.read_bytes() != content:
                with replacing(file) as temporary:
                    temporary.write_bytes(content)
        for log in (file for folder in self.logs for file in folder.glob("*") if file.is_file()):
            log.unlink(missing_ok=True)
        for folder in self.new:  # those below first
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()


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
    folder = temporary_folder(target)
    try:
        with naming_full_disks(target):
            yield folder / target.name
            let_read(folder)
            for file in sorted(folder.iterdir(), key=lambda file: file.name == target.name):
                flush(file)
                file.replace(target.with_name(file.name))
            flush(target.parent)
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
    temporary = temporary_folder(target)
    old = temporary.with_name(f"{temporary.name}{OLD}")
    try:
        with naming_full_disks(target):
            yield temporary
            let_read(temporary)
            for file in [*temporary.iterdir(), temporary]:
                flush(file)
            if replace:
                target.rename(old)
            temporary.rename(target)
            flush(target.parent)
    finally:
        if old.exists() and not target.exists():
            old.rename(target)
        for folder in (temporary, old):
            shutil.rmtree(folder, ignore_errors=True)
