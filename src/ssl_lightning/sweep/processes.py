"""Functions in processes of their own, which end when the process that began them ends."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from threading import Thread
from typing import Any

OUTPUT = "output.txt"
"""File in a run's folder to which its process writes."""


def in_processes(
    method: str,
    target: Callable[..., None],
    calls: Sequence[tuple[Any, ...]],
    at_once: int = 1,
    ended: Callable[[int, int], None] = lambda number, status: None,
) -> list[int]:
    """Call a function several times, each in a process of its own.

    Where this process is interrupted, those that run are killed.

    Args:
        method: how processes are started, as :func:`multiprocessing.get_context` takes it.
        target: the function; it must be importable.
        calls: the arguments of each call.
        at_once: how many processes run side by side.
        ended: called with the number of a call and its exit status as soon as it has ended.

    Returns:
        The exit statuses, in the order of the calls; negative for signals.
    """
    context: Any = multiprocessing.get_context(method)
    waiting, statuses = list(range(len(calls))), [0] * len(calls)
    running: dict[Any, tuple[int, Any]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                number = waiting.pop(0)
                process = context.Process(target=target, args=calls[number])
                process.start()
                running[process.sentinel] = number, process
            for sentinel in wait(list(running)):
                number, process = running[sentinel]
                process.join()
                del running[sentinel]
                statuses[number] = int(process.exitcode)
                ended(number, statuses[number])
    finally:
        for _, process in running.values():
            process.kill()
            process.join()
    return statuses


def follow_parent() -> None:
    """End this process when its parent ends, even if that is killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGKILL)

    Thread(target=watch, daemon=True).start()


def redirect_output(path: Path) -> None:
    """Append what this process writes to a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    with path.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def ended_with(status: int) -> str:
    """Say how a process ended that gave no reason.

    Example:
        >>> ended_with(-9), ended_with(2)
        ('ended by SIGKILL, as where memory runs out', 'exit status 2, see output.txt')
    """
    if status < 0:
        name = signal.Signals(-status).name
        return f"ended by {name}{', as where memory runs out' if name == 'SIGKILL' else ''}"
    return f"exit status {status}, see {OUTPUT}"
