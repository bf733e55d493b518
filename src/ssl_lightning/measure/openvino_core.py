"""The one core of OpenVINO in a process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any


@lru_cache
def openvino_core() -> Any:
    """Return one core for the life of the process.

    OpenVINO's CPU plugin gives the thread a stack for signal handlers, one per core. When two cores
    are freed, the stack that is in use may be unmapped, and the next signal, such as the end of a
    worker of a DataLoader, ends the process in a segmentation fault.
    """
    import openvino

    return openvino.Core()


@contextmanager
def only_this_core() -> Iterator[None]:
    """Let libraries that make cores of their own, as NNCF does, have the one of the process."""
    import openvino

    core, before = openvino_core(), openvino.Core
    openvino.Core = lambda: core
    try:
        yield
    finally:
        openvino.Core = before
