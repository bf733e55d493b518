"""The parts of a card: what was measured, on what, and where. Imports no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from ssl_lightning.measure.record import Machine

CONTROLS = {
    "magnitude": "plain magnitude pruning + fine-tuning",
    "random": "random groups + fine-tuning",
    "small_dense": "small dense network from scratch",
    "regular": "regular network of fewer filters or layers from scratch",
    "dense": "dense network trained as long",
}
"""Kind of control -> what it is."""


@dataclass(frozen=True)
class DataSet:
    """What an entry was trained and measured on.

    Attributes:
        name: of the data module, as in ``ssl_lightning.data.DATA_MODULES``.
        normalize: whether the network expects pixels normalised by mean and standard deviation.
        num_train: images trained on.
        num_validation: training images held out.
        num_test: images of the official test split.
    """

    name: str
    normalize: bool
    num_train: int
    num_validation: int
    num_test: int


@dataclass(frozen=True)
class Size:
    """What a network costs.

    Attributes:
        macs: multiply-adds of one image.
        num_parameters: elements of all parameters.
    """

    macs: int
    num_parameters: int


@dataclass(frozen=True)
class SeedResult:
    """One of several runs that differ in their seed alone.

    Attributes:
        seed: of the run.
        validation_error: percent, of its compact network on the held-out training images.
        test_error: percent, of its compact network on the official test split.
        macs: multiply-adds of one image in its compact network.
        num_parameters: elements of all parameters of its compact network.
    """

    seed: int
    validation_error: float
    test_error: float
    macs: int
    num_parameters: int


def median_result(results: Sequence[SeedResult]) -> SeedResult:
    """Return the result with the median validation error; of equal ones that of the lowest seed.

    Of an even number of results the better of the two in the middle.

    Example:
        >>> errors = {0: 0.9, 1: 0.7, 2: 0.8}
        >>> median_result([SeedResult(s, e, 1.0, 5, 5) for s, e in errors.items()]).seed
        2
    """
    ordered = sorted(results, key=lambda r: (r.validation_error, r.seed))
    middle = ordered[(len(ordered) - 1) // 2]
    equal = [r for r in ordered if r.validation_error == middle.validation_error]
    return equal[0]


@dataclass(frozen=True)
class Control:
    """What another method reaches within the entry's budget; of kind dense, without one.

    Attributes:
        kind: one of :data:`CONTROLS`.
        seeds: one result per run.

    Raises:
        ValueError: if the kind is unknown, or there is no run or a seed twice.
    """

    kind: str
    seeds: tuple[SeedResult, ...]

    def __post_init__(self) -> None:
        if self.kind not in CONTROLS:
            raise ValueError(
                f"card.controls: expected {', '.join(CONTROLS)}, got {self.kind!r}. Rename it."
            )
        check_seeds(f"card.controls.{self.kind}", self.seeds)


def check_seeds(where: str, results: Sequence[SeedResult]) -> None:
    """Reject an empty list of results, impossible errors, and seeds that are there twice.

    Raises:
        ValueError: naming ``where`` they were found.
    """
    seeds = [result.seed for result in results]
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(
            f"{where}: expected at least one run and different seeds, got the seeds {seeds}. "
            "Give each run once."
        )
    for result in results:
        check_percent(f"{where}.validation_error", result.validation_error)
        check_percent(f"{where}.test_error", result.test_error)


def check_percent(where: str, value: float) -> None:
    """Reject errors that are no percentage.

    Raises:
        ValueError: naming ``where`` it was found.
    """
    if not 0 <= value <= 100:
        raise ValueError(
            f"{where}: expected percent from 0 to 100, got {value}. Publish the run again."
        )


@dataclass(frozen=True)
class Latency:
    """The dense, the masked and the compact network, timed in turns.

    Attributes:
        ratio: model -> median over the rounds of its latency / the dense one's.
        ratio_iqr: model -> interquartile range of those ratios.
        median_ms: model -> milliseconds per batch.
        batch_size: images per batch.
        threads: intra-op threads.
        num_rounds: rounds in which each was timed once.
        machine: where.
    """

    ratio: dict[str, float]
    ratio_iqr: dict[str, float]
    median_ms: dict[str, float]
    batch_size: int
    threads: int
    num_rounds: int
    machine: Machine


@dataclass(frozen=True)
class StepCost:
    """A training step with the penalties and one without, timed in turns.

    A step is what the module's ``optimizer_step`` does: forward and backward pass, optimizer,
    penalties. (The first cards of the repository timed that in a loop without the trainer.)

    Attributes:
        ratio: median over the rounds of the step with penalties / the one without.
        ratio_iqr: interquartile range of those ratios.
        median_ms: ``"without"`` and ``"with"`` -> milliseconds per step.
        batch_size: images per step, as trained.
        precision: of the forward pass, such as ``"float32"``.
        threads: intra-op threads.
        num_rounds: rounds in which each was timed once.
        machine: where.
    """

    ratio: float
    ratio_iqr: float
    median_ms: dict[str, float]
    batch_size: int
    precision: str
    threads: int
    num_rounds: int
    machine: Machine


DTYPES = ("float32", "float16", "bfloat16")
"""Types that weights may be stored in; networks always compute in float32."""


@dataclass(frozen=True)
class Weights:
    """How the weights of the published network are stored.

    Attributes:
        dtype: one of :data:`DTYPES`; half precision is turned into float32 when it is loaded, and
            all figures are those of the network so stored.
        unstored: the file as it would have been, if it is too large to be part of the entry.

    Raises:
        ValueError: if the type is unknown.
    """

    dtype: str
    unstored: StoredFile | None = None

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(
                f"card.weights.dtype: expected {', '.join(DTYPES)}, got {self.dtype!r}. Publish "
                "the run again."
            )


@dataclass(frozen=True)
class StoredFile:
    """A file of the entry.

    Attributes:
        sha256: of its bytes, in hexadecimal.
        num_bytes: its size.
    """

    sha256: str
    num_bytes: int

    @classmethod
    def of(cls, data: bytes) -> StoredFile:
        """Describe a file's content.

        Example:
            >>> StoredFile.of(b"abc").num_bytes
            3
        """
        return cls(hashlib.sha256(data).hexdigest(), len(data))
