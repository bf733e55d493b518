"""Networks in several precisions beside each other, as JSON holds it. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from ssl_lightning.measure.record import Machine, Timing
from ssl_lightning.measure.serial import VersionedRecord


@dataclass(frozen=True)
class PrecisionRow:
    """One network in one precision and engine.

    Attributes:
        network: its name, such as ``"compact"``.
        engine: runs its file.
        precision: ``"float32"``, ``"bfloat16"`` or ``"int8"``.
        error: what the task is measured by; lower is better.
        num_bytes: size of the file, weights included.
        timing: its latency; the ratio is to the first network in float32, in the same engine.
    """

    network: str
    engine: str
    precision: str
    error: float
    num_bytes: int
    timing: Timing


SCHEMA = 1


@dataclass(frozen=True)
class PrecisionRecord(VersionedRecord):
    """Networks in precisions that were measured in turns, and where.

    Attributes:
        title: of the table.
        measure: what errors are, in words.
        input_shape: of one example.
        batch_size: examples in a timed call.
        threads: of the engines.
        examples: on which the ranges of int8 were seen.
        machine: processor, cores, Python and torch.
        instructions: that the processor has for small numbers, such as ``"avx512_vnni"``; without
            them int8 is hardly faster.
        versions: package -> version.
        rows: the measurements; the first of each engine is what ratios refer to.
        left_out: ``"network, engine, precision"`` -> why it was not measured.
        schema: version of this format.

    Raises:
        ValueError: if the schema is unknown.
    """

    title: str
    measure: str
    input_shape: tuple[int, ...]
    batch_size: int
    threads: int
    examples: int
    machine: Machine
    instructions: tuple[str, ...]
    versions: dict[str, str]
    rows: tuple[PrecisionRow, ...]
    left_out: dict[str, str]
    schema: int = SCHEMA

    what = "comparison of precisions"
    known_schema = SCHEMA

    def __post_init__(self) -> None:
        self.check_schema(self.schema)

    def row(self, network: str, engine: str, precision: str) -> PrecisionRow:
        """Return a row.

        Raises:
            KeyError: if it was not measured.
        """
        for row in self.rows:
            if (row.network, row.engine, row.precision) == (network, engine, precision):
                return row
        raise KeyError((network, engine, precision))
