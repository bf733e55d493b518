"""What factorise did, as data that can be printed."""

from __future__ import annotations

from dataclasses import dataclass, field

from ssl_lightning.suggest import aligned, reasons

HEADER = ("layer", "method", "ranks", "of", "MACs", "left", "error")


@dataclass(frozen=True)
class FactorRow:
    """A layer that was replaced.

    Attributes:
        method: of its factors.
        ranks: of its factors.
        largest: the largest that they could have.
        macs: multiply-adds of the layer, and of its factors.
        error: of its weight, relative: the norm of the difference over the norm.
    """

    method: str
    ranks: tuple[int, ...]
    largest: tuple[int, ...]
    macs: tuple[int, int]
    error: float

    def cells(self, name: str) -> tuple[str, ...]:
        """Return the row of the table."""
        ranks, largest = (" x ".join(map(str, sizes)) for sizes in (self.ranks, self.largest))
        before, after = self.macs
        share = f"{100 * after / max(before, 1):.1f} %"
        return name, self.method, ranks, largest, f"{after:,}", share, f"{self.error:.3f}"


@dataclass(frozen=True)
class LowRankReport:
    """What :func:`~ssl_lightning.factorise` did.

    Attributes:
        rows: layer -> its factors.
        macs: multiply-adds of the network before and after.
        left: layer -> why it remains as it is.

    Example:
        >>> row = FactorRow("svd", (4,), (16,), (1000, 500), 0.25)
        >>> print(LowRankReport({"fc1": row}, (2000, 1500), {"conv1": "it is grouped"}))
        layer  method  ranks  of  MACs  left    error
        fc1    svd     4      16  500   50.0 %  0.250
        MACs 2,000 -> 1,500 (75.0 %)
        as it was: conv1: it is grouped
    """

    rows: dict[str, FactorRow]
    macs: tuple[int, int]
    left: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = aligned([HEADER, *(row.cells(name) for name, row in self.rows.items())])
        before, after = self.macs
        lines.append(f"MACs {before:,} -> {after:,} ({100 * after / max(before, 1):.1f} %)")
        return "\n".join([*lines, *reasons(self.left, "as it was")])
