"""One JSON file that holds everything known about a compacted network. Imports no torch."""

from dataclasses import dataclass, field

from ssl_lightning.measure.record import BenchmarkResult
from ssl_lightning.measure.serial import VersionedRecord

SCHEMA = 2
GROUP_KINDS = ("filters", "channels", "columns")


@dataclass(frozen=True)
class RunReport(VersionedRecord):
    """Errors, retained groups and benchmark of one network in its versions.

    Attributes:
        title: what the report is about, such as ``"LeNet on MNIST"``.
        errors: model -> error in percent, for the models whose error is known.
        layers: layer -> ``"filters"``, ``"channels"``, ``"columns"`` -> [retained, of].
        benchmark: what was measured; its first model is the dense one.
        sources: model -> the checkpoint or folder that it is from, as it was given.
        schema: version of this format.

    Raises:
        ValueError: if the schema is unknown, an error is no percentage or belongs to no measured
            model, or more groups are retained than there are.
    """

    title: str
    errors: dict[str, float]
    layers: dict[str, dict[str, list[int]]]
    benchmark: BenchmarkResult
    sources: dict[str, str] = field(default_factory=dict)
    schema: int = SCHEMA
    what = "report"
    known_schema = SCHEMA

    def __post_init__(self) -> None:
        self.check_schema(self.schema)
        for model, error in self.errors.items():
            _check_error(model, error, list(self.benchmark.models))
        for layer, kinds in self.layers.items():
            for kind, counts in kinds.items():
                check_counts(f"report.layers.{layer}", kind, counts)


def _check_error(model: str, error: float, measured: list[str]) -> None:
    if model not in measured:
        raise ValueError(
            f"report.errors: expected measured models ({', '.join(measured)}), got {model!r}. "
            "Use the names given to `benchmark`."
        )
    if not 0 <= error <= 100:
        raise ValueError(
            f"report.errors.{model}: expected percent from 0 to 100, got {error}. "
            "Give 100 * (1 - accuracy)."
        )


def check_counts(where: str, kind: str, counts: list[int]) -> None:
    """Reject counts of groups that are not [retained, total] of a known kind.

    Raises:
        ValueError: naming ``where`` they were found.
    """
    if kind not in GROUP_KINDS:
        raise ValueError(
            f"{where}: expected {', '.join(GROUP_KINDS)}, got {kind!r}. Rename or remove it."
        )
    if len(counts) != 2 or not 0 <= counts[0] <= counts[1]:
        raise ValueError(
            f"{where}.{kind}: expected [kept, total] with 0 <= kept <= total, got {counts}. "
            "Count the groups again."
        )
