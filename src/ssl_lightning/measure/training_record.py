"""What a training step costs with penalties and without, as JSON holds it. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from ssl_lightning.measure.record import Machine
from ssl_lightning.measure.serial import VersionedRecord

NONE, ALL = "none", "all kinds"
"""Forms without penalties, and with all kinds together."""


@dataclass(frozen=True)
class TrainingRow:
    """One form of a training loop, beside the one without penalties.

    Attributes:
        backbone: name of the network.
        form: :data:`NONE`, a kind of group, :data:`ALL`, the same with another penalty function
            behind a comma, or another library.
        mode: ``"proximal"``, ``"subgradient"``, or ``""`` for :data:`NONE` and other libraries.
        step_ms: median over the steps: forward and backward pass, optimizer, penalties.
        ratio: median over the rounds of this step / the one without penalties in the same round.
        ratio_low: lower quartile of these ratios.
        ratio_high: upper quartile.
        penalty_ms: median of the time inside the penalties themselves.
        peak_bytes: most bytes of tensors at once in a step, beyond weights and the optimizer's
            state: activations, gradients and temporary tensors.
        penalty_bytes: most bytes of tensors that the penalties themselves make at once.
    """

    backbone: str
    form: str
    mode: str
    step_ms: float
    ratio: float
    ratio_low: float
    ratio_high: float
    penalty_ms: float
    peak_bytes: int
    penalty_bytes: int


SCHEMA = 1


@dataclass(frozen=True)
class TrainingRecord(VersionedRecord):
    """Forms that were measured in turns, and where.

    Attributes:
        batch_size: images of a step.
        dtype: ``"float32"``, or ``"bfloat16"``: autocast, with weights in float32.
        threads: intra-op threads.
        steps: timed steps of each form.
        input_shapes: backbone -> shape of one image.
        machine: processor, cores, Python and torch.
        cpu_capability: instruction set that torch takes there, such as ``"AVX2"``. Where it has no
            bfloat16, steps under autocast are many times slower, and penalties seem cheap.
        versions: package -> version.
        rows: the measurements; the first of each backbone is :data:`NONE`.
        left_out: ``"backbone, form"`` -> why it was not measured.
        schema: version of this format.

    Raises:
        ValueError: if the schema is unknown.
    """

    batch_size: int
    dtype: str
    threads: int
    steps: int
    input_shapes: dict[str, tuple[int, ...]]
    machine: Machine
    cpu_capability: str
    versions: dict[str, str]
    rows: tuple[TrainingRow, ...]
    left_out: dict[str, str]
    schema: int = SCHEMA
    what = "training benchmark"
    known_schema = SCHEMA

    def __post_init__(self) -> None:
        self.check_schema(self.schema)

    def blocks(self) -> dict[str, list[TrainingRow]]:
        """Return backbone -> its rows."""
        found: dict[str, list[TrainingRow]] = {}
        for row in self.rows:
            found.setdefault(row.backbone, []).append(row)
        return found
