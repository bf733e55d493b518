"""Latency, multiply-adds, parameters and bytes, measured side by side.

The records (:class:`BenchmarkResult` and its parts) need no torch; what measures is imported when
it is first asked for.
"""

from typing import TYPE_CHECKING

from ssl_lightning import lazy
from ssl_lightning.measure.record import (
    BenchmarkResult,
    Fastest,
    Machine,
    ModelSize,
    Run,
    Timing,
)

if TYPE_CHECKING:
    from ssl_lightning.measure.engine import Engine
    from ssl_lightning.measure.engines import ENGINES, register_engine
    from ssl_lightning.measure.latency import benchmark
    from ssl_lightning.measure.macs import (
        count_macs,
        count_sparse_macs,
        num_bytes,
        num_parameters,
    )
    from ssl_lightning.measure.turns import interleave

__all__ = [
    "ENGINES",
    "BenchmarkResult",
    "Engine",
    "Fastest",
    "Machine",
    "ModelSize",
    "Run",
    "Timing",
    "benchmark",
    "count_macs",
    "count_sparse_macs",
    "interleave",
    "num_bytes",
    "num_parameters",
    "register_engine",
]
__getattr__, __dir__ = lazy.attach(__name__)
