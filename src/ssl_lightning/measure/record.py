"""What a benchmark measured, as plain data. Imports no torch, so that reports read it fast."""

from dataclasses import dataclass

from ssl_lightning.measure.serial import Record
from ssl_lightning.suggest import aligned


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
        macs: multiply-adds of one image (a batch of size 1).
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
class Fastest:
    """A model in its fastest engine, against the first model in the engine fastest for that one.

    Attributes:
        engine: the one with the smallest median.
        ratio: median over the rounds of this latency / the first model's in its fastest engine.
        ratio_iqr: interquartile range of those ratios.
    """

    engine: str
    ratio: float
    ratio_iqr: float


@dataclass(frozen=True)
class Run:
    """All timings of one type, batch size and number of threads.

    Attributes:
        dtype: of the numbers, such as ``"float32"``.
        batch_size: images per call.
        threads: intra-op threads.
        engines: engine -> model -> timing of the whole model. Eager is the first of them; all
            ratios refer to the first model in it.
        fastest: model -> its fastest engine.
        left_out: ``"model, engine"`` -> why it could not be timed.
        layers: layer name -> model -> timing in eager, with the ratio to the first model's layer;
            a model without that layer has no entry.
    """

    dtype: str
    batch_size: int
    threads: int
    engines: dict[str, dict[str, Timing]]
    fastest: dict[str, Fastest]
    left_out: dict[str, str]
    layers: dict[str, dict[str, Timing]]

    @property
    def network(self) -> dict[str, Timing]:
        """Timing of each whole model in the first engine."""
        return next(iter(self.engines.values()))


@dataclass(frozen=True)
class BenchmarkResult(Record):
    """Models measured side by side; the first is the one that ratios refer to.

    Attributes:
        machine: where it was measured.
        versions: package -> version of what the engines run on.
        input_shape: of one image, all dimensions but the batch.
        memory_format: ``"contiguous"``, ``"channels_last"`` or ``"strided"`` (neither).
        models: size of each model, in the order of measurement.
        layer_macs: layer name -> model -> multiply-adds of one image.
        runs: one per type, batch size and number of threads.

    Raises:
        ValueError: if there is no model or no run.

    Example:
        >>> machine = Machine("a processor", 2, "cpu", "3.11", "2.14")
        >>> size = ModelSize(macs=10, num_parameters=5, num_bytes=20)
        >>> timings = {"eager": {"dense": Timing(1.5, 0.1, 1.0, 0.0, 30, 2)}}
        >>> fastest = {"dense": Fastest("eager", 1.0, 0.0)}
        >>> run = Run("float32", 1, 2, timings, fastest, left_out={}, layers={})
        >>> result = BenchmarkResult(machine, {"torch": "2.14"}, (3, 8, 8), "contiguous",
        ...                          {"dense": size}, {}, (run,))
        >>> BenchmarkResult.from_dict(result.to_dict()) == result
        True
        >>> result.run(threads=2).network["dense"].median_ms
        1.5
        >>> print(result)
        float32, batch size 1, 2 threads  MACs  parameters  eager, ms
        dense                             10    5           1.500
    """

    machine: Machine
    versions: dict[str, str]
    input_shape: tuple[int, ...]
    memory_format: str
    models: dict[str, ModelSize]
    layer_macs: dict[str, dict[str, int]]
    runs: tuple[Run, ...]

    what = "benchmark"

    def __post_init__(self) -> None:
        if not self.models or not self.runs:
            raise ValueError(
                "benchmark: expected at least one entry in `models` and in `runs`, got none. "
                "Measure again."
            )

    @property
    def baseline(self) -> str:
        """Name of the model that the ratios refer to."""
        return next(iter(self.models))

    def __str__(self) -> str:
        return "\n".join(line for run in self.runs for line in self._lines(run))

    def _lines(self, run: Run) -> list[str]:
        """Return the table of one run, and what was left out of it and why."""
        plural = "s" if run.threads > 1 else ""
        setting = f"{run.dtype}, batch size {run.batch_size}, {run.threads} thread{plural}"
        rows = [(setting, "MACs", "parameters", *(f"{engine}, ms" for engine in run.engines))]
        for model, size in self.models.items():
            timings = (by_model.get(model) for by_model in run.engines.values())
            cells = ("-" if timing is None else f"{timing.median_ms:.3f}" for timing in timings)
            rows.append((model, f"{size.macs:,}", f"{size.num_parameters:,}", *cells))
        return [*aligned(rows), *(f"{what}: {why}" for what, why in run.left_out.items())]

    def run(
        self, threads: int | None = None, batch_size: int | None = None, dtype: str | None = None
    ) -> Run:
        """Return the first run of that number of threads, batch size and type; None is any.

        Raises:
            ValueError: if that was not measured.
        """
        wanted = {"threads": threads, "batch_size": batch_size, "dtype": dtype}
        wanted = {name: value for name, value in wanted.items() if value is not None}
        for run in self.runs:
            if all(getattr(run, name) == value for name, value in wanted.items()):
                return run
        known = [tuple(getattr(run, name) for name in wanted) for run in self.runs]
        raise ValueError(
            f"BenchmarkResult.run: expected {', '.join(wanted)} among {known}, "
            f"got {tuple(wanted.values())}. Measure it, too."
        )
