"""How far long work has come: said in one place, as a bar on a terminal, as lines in a log.

What takes long says so by :func:`track` or :func:`steps`, whether anybody looks or not. Nothing is
shown unless :func:`shown` says so, as the command line does. There is no thread, since it would
disturb what is timed: something is written between two pieces of work only, and seldom.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from operator import length_hint
from typing import Any, TextIO, TypeVar

T = TypeVar("T")
UNKNOWN = float("inf")
"""Number of pieces that is to become known."""
SILENT = 5.0
"""Seconds before anything is shown: what is done by then needs no progress."""
LEAST_SHARE = 0.05
"""Share of the work before which nothing is said of the time left: first pieces are the longest."""
LINES_APART = 15.0
"""Seconds between two lines, at least."""
DRAWN_APART = 0.5
"""Seconds between two drawings of a bar, at least."""


@dataclass(eq=False)
class Part:
    """Work in pieces, inside the piece of another part that is done now, or on its own.

    Attributes:
        what: in words; may be empty.
        total: number of pieces.
        display: shows it.
        done: pieces that are done.
    """

    what: str
    total: float
    display: Display
    done: float = 0

    def advance(self, pieces: float = 1) -> None:
        """Say that pieces more are done."""
        self.reach(self.done + pieces, self.total)

    def reach(self, done: float, total: float) -> None:
        """Say how many pieces are done, of how many."""
        self.done, self.total = min(done, total), total
        self.display.update()


class Display:
    """Shows how far the outermost part has come, once that has taken some seconds.

    Args:
        stream: to write to.
        bars: whether a bar may be drawn, which is done on a terminal only.
        clock: seconds.
    """

    def __init__(
        self, stream: TextIO, bars: bool = True, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.stream, self.clock = stream, clock
        self.bars = bars and stream.isatty() and os.environ.get("TERM") != "dumb"
        self.parts: list[Part] = []
        self.started = self.written = 0.0
        self.bar: Any = None

    def open(self, part: Part) -> None:
        """Show a part, inside those that are open."""
        if not self.parts:
            self.started, self.written = self.clock(), float("-inf")
        self.parts.append(part)

    def close(self, part: Part) -> None:
        """Show a part no more, nor what is open inside of it."""
        if part in self.parts:
            del self.parts[self.parts.index(part) :]
        if not self.parts:
            self.clear()

    def clear(self) -> None:
        """Remove the bar."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def share(self) -> float:
        """Return the share of the work that is done."""
        found, one = 0.0, 1.0
        for part in self.parts:
            one /= max(part.total, 1)
            found += one * part.done
        return min(found, 1.0)

    def update(self) -> None:
        """Write how far the work has come, unless it has no name or that is too early."""
        now, what = self.clock(), self.label()
        apart = DRAWN_APART if self.bars else LINES_APART
        if not what or now - self.started < SILENT or now - self.written < apart:
            return
        self.written = now
        share = self.share()
        times = times_text(now - self.started, share)
        if self.bars:
            self.draw(what, share, times)
        else:
            self.stream.write(f"{what}: {100 * share:.0f} %, {times}\n")
            self.stream.flush()

    def label(self) -> str:
        """Return in words what is done now."""
        return ", ".join(dict.fromkeys(part.what for part in self.parts if part.what))

    def draw(self, what: str, share: float, times: str) -> None:
        """Draw the bar."""
        if self.bar is None:
            self.bar = new_bar(self.stream)
            self.bar.add_task(what, total=1.0, completed=share, times=times)
            self.bar.start()
        task = self.bar.tasks[0]
        self.bar.update(task.id, description=what, completed=share, times=times, refresh=True)


def new_bar(stream: TextIO) -> Any:
    """Return a bar that is drawn only when it is told to."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    columns = TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn()
    times = TextColumn("{task.fields[times]}", markup=False)
    console = Console(file=None if stream is sys.stdout else stream)  # prints go above the bar
    return Progress(*columns, times, console=console, auto_refresh=False, transient=True)


def times_text(seconds: float, share: float) -> str:
    """Say how long something took, and about how long the rest takes.

    Example:
        >>> times_text(20, 0.25), times_text(7, 0.0)
        ('20 s so far, about 1 min left', '7 s so far')
    """
    if share < LEAST_SHARE:
        return f"{in_words(seconds)} so far"
    left = seconds * (1 - share) / share
    return f"{in_words(seconds)} so far, about {in_words(left)} left"


def in_words(seconds: float) -> str:
    """Return a duration as people say it.

    Example:
        >>> in_words(5.2), in_words(80), in_words(3599.9), in_words(9000), in_words(180000)
        ('5 s', '1 min 20 s', '1 h', '2 h 30 min', '50 h')
    """
    whole = round(seconds)
    if whole >= 3600:
        whole = round(whole / 60) * 60
    units = [("h", whole // 3600), ("min", whole // 60 % 60), ("s", whole % 60)]
    said = [f"{number} {unit}" for unit, number in units if number]
    return " ".join(said) or "0 s"


_display: ContextVar[Display | None] = ContextVar("progress", default=None)


def is_shown() -> bool:
    """Whether progress is shown at present."""
    return _display.get() is not None


@contextmanager
def shown(display: Display | None = None, bars: bool = True) -> Iterator[None]:
    """Show the progress of what runs inside.

    Args:
        display: shows it; default: on standard output.
        bars: whether that may draw bars.
    """
    token = _display.set(Display(sys.stdout, bars) if display is None else display)
    try:
        yield
    finally:
        found = _display.get()
        if found is not None:
            found.clear()
        _display.reset(token)


@contextmanager
def steps(what: str, total: float) -> Iterator[Part]:
    """Let work say how far it has come.

    Args:
        what: in words; may be empty inside of other work.
        total: number of pieces; may be corrected later.

    Example:
        >>> with steps("measuring", 2) as part:
        ...     part.advance()
    """
    display = _display.get()
    if display is None:
        yield Part(what, total, _NOWHERE)
        return
    part = Part(what, total, display)
    display.open(part)
    try:
        yield part
    finally:
        display.close(part)


def track(items: Iterable[T], what: str = "", total: float | None = None) -> Iterator[T]:
    """Yield the items, and say how many of them are done.

    Args:
        items: of which each is a piece of work of about the same length.
        what: in words; may be empty inside of other work.
        total: their number, if they do not tell it.

    Example:
        >>> list(track([1, 2, 3], "counting"))
        [1, 2, 3]
    """
    number = length_hint(items) if total is None else total
    if _display.get() is None or not number:
        yield from items
        return
    with steps(what, number) as part:
        for item in items:
            yield item
            part.advance()


class _Nowhere(Display):
    """Shows nothing."""

    def __init__(self) -> None:
        """Need nothing."""

    def update(self) -> None:
        """Show nothing."""


_NOWHERE = _Nowhere()
