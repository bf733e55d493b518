"""Calls timed in turns, so that a slow moment of the machine hits all of them alike."""

import math
import os
import statistics
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Generic, TypeVar

import torch
from torch.utils.benchmark import Timer
from torch.utils.benchmark.utils.timer import timer as default_clock

from ssl_lightning.measure.record import Timing
from ssl_lightning.progress import track

Call = Callable[[], object]
Name = TypeVar("Name", bound=Hashable)
Item = TypeVar("Item")

ROUNDS_AT_ONCE = 5
"""Of one engine before another one's turn."""
MOST_CALLS, LONG = 5, 0.02
"""Calls before each sample that refill the caches, at most, and seconds of them after which they
have: in turns, each network finds the weights of another one there."""
SETTLING = 0.1
"""Seconds that an engine runs untimed when its turn comes: others' threads wait in busy loops."""


@dataclass(frozen=True)
class Turns(Generic[Name]):
    """Samples of calls that were timed in turns.

    Attributes:
        samples: name -> milliseconds per call, one sample per round.
        loops: name -> calls averaged in each sample.
    """

    samples: dict[Name, list[float]]
    loops: dict[Name, int]

    def ratios(self, name: Name, base: Name) -> list[float]:
        """Return round by round the time of one call over that of another.

        Example:
            >>> Turns({"a": [2.0, 4.0], "b": [1.0, 4.0]}, {"a": 1, "b": 1}).ratios("b", "a")
            [0.5, 1.0]
        """
        pairs = zip(self.samples[name], self.samples[base], strict=True)
        return [mine / other for mine, other in pairs]

    def timing(self, name: Name, base: Name) -> Timing:
        """Return the statistics of a call; its ratio refers to ``base``."""
        samples, ratios = self.samples[name], self.ratios(name, base)
        return Timing(
            median_ms=statistics.median(samples),
            iqr_ms=interquartile_range(samples),
            ratio=statistics.median(ratios),
            ratio_iqr=interquartile_range(ratios),
            num_samples=len(samples),
            calls_per_sample=self.loops[name],
        )


def take_turns(
    calls: Mapping[Name, Call],
    *,
    repeats: int,
    warmup: int,
    min_run_time: float,
    clock: Callable[[], float] = default_clock,
    engine_of: Callable[[Name], Hashable] = lambda name: None,
) -> Turns[Name]:
    """Time the calls in turns (A B, B A, A B, ...), at torch's present number of threads.

    Each sample is taken by :meth:`torch.utils.benchmark.Timer.timeit`, which never reports less
    than a nanosecond. Before it, the call runs untimed a few times, until its weights are in the
    caches, as they are where one network alone is in use.

    Calls of several engines take turns engine by engine, a few rounds each time, and whenever
    another engine's turn comes, it runs untimed for a moment: threads of the one before wait for
    work in busy loops, and would slow down what comes first.

    Args:
        calls: name -> function without arguments.
        repeats: rounds.
        warmup: untimed rounds before.
        min_run_time: seconds that one sample lasts at least.
        clock: seconds; torch's own waits for the GPU.
        engine_of: of a call's name.
    """
    threads = torch.get_num_threads()
    timers = {
        name: Timer("call()", globals={"call": call}, num_threads=threads, timer=clock)
        for name, call in calls.items()
    }
    for _ in range(warmup):
        for timer in timers.values():
            timer.timeit(1)
    seconds = {name: timer.timeit(1).mean for name, timer in timers.items()}
    loops = {name: _loops(once, min_run_time) for name, once in seconds.items()}
    before = {name: min(_loops(once, LONG), MOST_CALLS) for name, once in seconds.items()}
    samples: dict[Name, list[float]] = {name: [] for name in timers}
    engines: dict[Hashable, list[Name]] = {}
    for name in calls:
        engines.setdefault(engine_of(name), []).append(name)
    for names, rounds in track(engines_in_turns(list(engines.values()), repeats)):
        if len(engines) > 1:
            settle(calls[names[0]], clock)
        for name in in_turns(names, rounds):
            for _ in range(before[name]):
                calls[name]()
            samples[name].append(1e3 * timers[name].timeit(loops[name]).mean)
    return Turns(samples, loops)


def engines_in_turns(engines: Sequence[list[Name]], rounds: int) -> list[tuple[list[Name], range]]:
    """Return the names of one engine after the other, and for which rounds.

    Example:
        >>> engines_in_turns([["a", "b"], ["c"]], 6)[:3]
        [(['a', 'b'], range(0, 5)), (['c'], range(0, 5)), (['c'], range(5, 6))]
    """
    most = rounds if len(engines) == 1 else ROUNDS_AT_ONCE
    blocks = [range(start, min(start + most, rounds)) for start in range(0, rounds, most)]
    return [(names, block) for i, block in enumerate(blocks) for names in in_order(engines, i)]


def settle(call: Call, clock: Callable[[], float]) -> None:
    """Run a call until threads of other engines no longer wait for work."""
    end = clock() + SETTLING
    while clock() < end:
        call()


def take_steps(
    calls: Mapping[Name, Call],
    *,
    repeats: int,
    warmup: int,
    clock: Callable[[], float] = default_clock,
) -> Turns[Name]:
    """Time single calls in turns: of what is long and changes with every call, as training does.

    Unlike :func:`take_turns`, nothing runs between one timed call and the next one's in a round.

    Args:
        calls: name -> function without arguments.
        repeats: rounds.
        warmup: untimed rounds before.
        clock: seconds; torch's own waits for the GPU.

    Example:
        >>> steps = []
        >>> calls = {"a": lambda: steps.append("a"), "b": lambda: steps.append("b")}
        >>> turns = take_steps(calls, repeats=2, warmup=1)
        >>> "".join(steps), len(turns.samples["a"])
        ('abbaab', 2)
    """
    samples: dict[Name, list[float]] = {name: [] for name in calls}
    for name in in_turns(list(calls), range(warmup + repeats)):
        start = clock()
        calls[name]()
        samples[name].append(1e3 * (clock() - start))
    timed = {name: times[warmup:] for name, times in samples.items()}
    return Turns(timed, dict.fromkeys(calls, 1))


def in_turns(names: Sequence[Name], rounds: range) -> Iterator[Name]:
    """Yield each name once per round, in an order that is reversed after every round.

    So none is always faster or slower by what ran before it.

    Example:
        >>> "".join(in_turns("abc", range(2)))
        'abccba'
    """
    for i in track(rounds):
        yield from in_order(names, i)


def in_order(names: Sequence[Item], turn: int) -> Iterator[Item]:
    """Return the names, in every other turn from the last to the first."""
    return reversed(names) if turn % 2 else iter(names)


def interleave(
    calls: Mapping[Name, Call],
    *,
    repeats: int,
    warmup: int,
    min_run_time: float,
    clock: Callable[[], float] = default_clock,
) -> dict[Name, Timing]:
    """Time the calls as :func:`take_turns` does; return one timing per call, in the same order.

    Ratios refer to the first call.
    """
    turns = take_turns(
        calls, repeats=repeats, warmup=warmup, min_run_time=min_run_time, clock=clock
    )
    first = next(iter(calls))
    return {name: turns.timing(name, first) for name in calls}


def _loops(seconds: float, min_run_time: float) -> int:
    """Return how many calls of that duration last ``min_run_time`` (at most a million)."""
    return min(max(math.ceil(min_run_time / seconds), 1), 1_000_000)


def interquartile_range(values: Sequence[float]) -> float:
    """Return the distance between the quartiles, 0 for a single value.

    Example:
        >>> interquartile_range([1.0, 2.0, 3.0, 4.0, 5.0])
        2.0
    """
    low, _, high = quartiles(values)
    return high - low


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the lower quartile, the median and the upper quartile.

    Example:
        >>> quartiles([1.0, 2.0, 3.0, 4.0, 5.0]), quartiles([7.0])
        ((2.0, 3.0, 4.0), (7.0, 7.0, 7.0))
    """
    if len(values) == 1:
        return (values[0],) * 3
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


@contextmanager
def num_threads(threads: int) -> Iterator[None]:
    """Set torch's intra-op threads and put the former number back afterwards.

    Raises:
        ValueError: if they are more than cores.
    """
    check_threads(threads)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def check_threads(threads: int) -> None:
    """Refuse threads that would wait for each other's core; torch's present number is taken.

    Raises:
        ValueError: if they are no whole number from 1 to the cores of the machine.
    """
    cores = os.cpu_count() or 1
    if isinstance(threads, bool) or not isinstance(threads, Integral) or threads < 1:
        raise ValueError(f"threads: expected a whole number >= 1, got {threads!r}. Give 1, say.")
    if threads > max(cores, torch.get_num_threads()):
        raise ValueError(
            f"threads: expected at most {cores}, the cores of this machine, got {threads}. Give "
            "fewer."
        )


def several(values: Any) -> list[Any]:
    """Return one value or several as a list.

    Example:
        >>> several("eager"), several((1, 2))
        (['eager'], [1, 2])
    """
    single = isinstance(values, str) or not isinstance(values, Iterable)
    return [values] if single else list(values)
