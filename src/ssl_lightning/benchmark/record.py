"""What a benchmark measured, as plain data. Imports no torch, so that reports read it fast."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssl_lightning.benchmark.serial import decode, load_json, save_json


@dataclass(frozen=True)
class Timing:
    """Latency of one model, or of one layer of it.

    Attributes:
        median_ms: median over the samples, milliseconds per call.
        iqr_ms: interquartile range of the samples, milliseconds.
        ratio: median over the rounds of this latency / the first model's in the same round;
            below 1 is faster.
        ratio_iqr: interquartile range of those ratios.
        num_samples: samples taken, one per round.
        calls_per_sample: calls averaged in each sample.
    """

    median_ms: float
    iqr_ms: float
    ratio: float
    ratio_iqr: float
    num_samples: int
    calls_per_sample: int


@dataclass(frozen=True)
class ModelSize:
    """What a model costs apart from time.

    Attributes:
        macs: multiply-adds of one forward pass of the whole batch.
        num_parameters: elements of all parameters.
        num_bytes: bytes of all parameters and buffers.
    """

    macs: int
    num_parameters: int
    num_bytes: int


@dataclass(frozen=True)
class Machine:
    """Where it was measured.

    Attributes:
        processor: name of the processor (of the GPU if the input was on one).
        num_cores: logical cores of the machine.
        device: type of device, such as ``"cpu"``.
        python: version.
        torch: version.
    """

    processor: str
    num_cores: int
    device: str
    python: str
    torch: str


@dataclass(frozen=True)
class Run:
    """All timings at one number of threads.

    Attributes:
        threads: intra-op threads of torch.
        network: timing of each whole model.
        layers: layer name -> model -> timing; a model without that layer has no entry.
    """

    threads: int
    network: dict[str, Timing]
    layers: dict[str, dict[str, Timing]]


@dataclass(frozen=True)
class BenchmarkResult:
    """Models measured side by side; the first is the one that ratios refer to.

    Attributes:
        machine: where it was measured.
        batch_size: size of dimension 0 of the input.
        input_shape: the other dimensions.
        dtype: of the input, such as ``"float32"``.
        memory_format: ``"contiguous"``, ``"channels_last"`` or ``"strided"`` (neither).
        models: size of each model, in the order of measurement.
        layer_macs: layer name -> model -> multiply-adds of the batch.
        runs: one per number of threads.

    Example:
        >>> machine = Machine("a processor", 2, "cpu", "3.11", "2.14")
        >>> size = ModelSize(macs=10, num_parameters=5, num_bytes=20)
        >>> timing = Timing(1.5, 0.1, 1.0, 0.0, 30, 2)
        >>> run = Run(threads=1, network={"dense": timing}, layers={})
        >>> result = BenchmarkResult(machine, 1, (3, 8, 8), "float32", "contiguous",
        ...                          {"dense": size}, {}, (run,))
        >>> BenchmarkResult.from_dict(result.to_dict()) == result
        True
        >>> result.run(threads=1).network["dense"].median_ms
        1.5
    """

    machine: Machine
    batch_size: int
    input_shape: tuple[int, ...]
    dtype: str
    memory_format: str
    models: dict[str, ModelSize]
    layer_macs: dict[str, dict[str, int]]
    runs: tuple[Run, ...]

    @property
    def baseline(self) -> str:
        """Name of the model that the ratios refer to."""
        return next(iter(self.models))

    def run(self, threads: int | None = None) -> Run:
        """Return the run at ``threads`` threads, the first run if None.

        Raises:
            ValueError: if nothing was measured at that number of threads.
        """
        for run in self.runs:
            if threads is None or run.threads == threads:
                return run
        raise ValueError(
            f"BenchmarkResult.run: expected one of {[run.threads for run in self.runs]} threads, "
            f"got {threads}. Measure again with `threads={threads}`."
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "BenchmarkResult":
        """Build a result from :meth:`to_dict`.

        Raises:
            ValueError: if a field is missing, unknown or of another type, or nothing is in it.
        """
        result = decode(cls, data, "benchmark")
        if not result.models or not result.runs:
            raise ValueError(
                "benchmark: expected at least one entry in `models` and in `runs`, got none. "
                "Measure again."
            )
        return result

    def save(self, path: str | Path) -> None:
        """Write JSON to ``path``; a reader never sees half a file."""
        save_json(self.to_dict(), path)

    @classmethod
    def load(cls, path: str | Path) -> "BenchmarkResult":
        """Read what :meth:`save` wrote.

        Raises:
            ValueError: if the file is not such a record.
        """
        return cls.from_dict(load_json(path))
