"""Records of column-sparse layers against dense engines, as JSON holds them. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from ssl_lightning.measure.record import Machine
from ssl_lightning.measure.serial import Record

CONV_PART = "conv part"
"""Layer name of all convolutions together, with the pooling and response norms between them."""


@dataclass(frozen=True)
class SparseRow:
    """One sparse layer beside its dense form.

    Attributes:
        configuration: number in the paper's table, or 0.
        layer: name of the layer, or :data:`CONV_PART`, whose sparsities are means over the layers.
        form: ``"columns"`` (rows x columns that are not zero, :class:`ColumnSparseConv2d`) or
            ``"csr"`` (single zeros, torch's sparse CSR product of the lowered input).
        row_sparsity: share of filters that are zero.
        column_sparsity: share of columns that are zero; of single weights for ``"csr"``.
        batch_size: images.
        threads: intra-op threads.
        dense_engine: the fastest engine for the dense form.
        dense_ms: its median.
        sparse_ms: median of the sparse layer: lowering, padding and scattering included.
        speedup: median of the ratios within a round.
        speedup_iqr: interquartile range of these ratios.
        limit: what the arithmetic allows, dense over remaining multiply-adds.
        paper: CPU speed-up that the paper reports, for the product alone; None if it does not.
        engines_ms: median of every dense engine.
        workspace_bytes: scratch memory of the column-sparse kernel on all its threads, beside
            input, weights and output; 0 where plain torch or CSR runs.
        lowering_bytes: the lowered matrix of one image, which the usual way holds beside them.
    """

    configuration: int
    layer: str
    form: str
    row_sparsity: float
    column_sparsity: float
    batch_size: int
    threads: int
    dense_engine: str
    dense_ms: float
    sparse_ms: float
    speedup: float
    speedup_iqr: float
    limit: float
    paper: float | None
    engines_ms: dict[str, float]
    workspace_bytes: int
    lowering_bytes: int


@dataclass(frozen=True)
class SparseRecord(Record):
    """Rows that were measured in one run, and where.

    Attributes:
        title: what was measured.
        dtype: type of the numbers.
        machine: processor, cores, Python and torch.
        instruction_set: what the compiled kernel uses there, ``"none"`` without it.
        versions: package -> version of the engines.
        rows: the measurements.
    """

    title: str
    dtype: str
    machine: Machine
    instruction_set: str
    versions: dict[str, str]
    rows: tuple[SparseRow, ...]

    what = "sparse benchmark"
