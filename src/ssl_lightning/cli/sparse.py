"""benchmark paper-table4, benchmark break-even: sparse layers against dense engines."""

from __future__ import annotations

import os
from collections.abc import Callable

from rich.console import Console

from ssl_lightning.cli.records import check_output, finish
from ssl_lightning.measure.sparse import break_even_cases, measure_sparse, table4_cases
from ssl_lightning.measure.sparse_record import CONV_PART, SparseRow
from ssl_lightning.measure.table4 import LAYERS
from ssl_lightning.measure.turns import several
from ssl_lightning.report.sparse import (
    TABLE_WIDTH,
    break_even_chart,
    sparse_table,
    speedup_chart,
)


def paper_table4(
    configurations: int | list[int] = [1, 2, 4, 5],  # noqa: B006 - read only, shown by --help
    layers: str | list[str] = [*LAYERS, CONV_PART],  # noqa: B006
    batch_size: int | list[int] = [1, 16],  # noqa: B006
    threads: int | list[int] | None = None,
    engines: str | list[str] | None = None,
    dtype: str = "float32",
    repeats: int = 60,
    output: str | None = None,
) -> None:
    """Time AlexNet's convolutions at the sparsities of the paper's Table 4.

    Args:
        configurations: numbers in the paper's table: 1 and 4 are l1, 2 and 5 are SSL.
        layers: some of conv1 .. conv5, and "conv part": all five with ReLU, max pooling and
            response norms between them, for SSL only.
        batch_size: images per call, or a list of several.
        threads: number of threads, or a list of several; default: 1 and all cores.
        engines: dense engines to be compared with: eager, compile, onnxruntime, openvino;
            default: all that are installed.
        dtype: float32 or bfloat16.
        repeats: interleaved samples per engine, of two milliseconds (twenty for the conv part) or
            one call.
        output: JSON file to write; the bars per layer are drawn beside it as a PNG.
    """
    check_output(output)
    cases = table4_cases(several(configurations), several(layers))
    record = measure_sparse(
        "AlexNet at the sparsity of Table 4",
        cases,
        batch_sizes=several(batch_size),
        threads=thread_counts(threads),
        engines=None if engines is None else several(engines),
        dtype=dtype,
        repeats=repeats,
        progress=show,
    )
    finish(record, sparse_table(record), speedup_chart, output, TABLE_WIDTH)


def break_even(
    layer: str = "conv3",
    sparsities: list[float] = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8],  # noqa: B006
    batch_size: int | list[int] = 1,
    threads: int | list[int] = 1,
    engines: str | list[str] | None = None,
    dtype: str = "float32",
    repeats: int = 60,
    output: str | None = None,
) -> None:
    """Time a layer from dense to very sparse: where does sparsity begin to pay?

    Args:
        layer: one of AlexNet's conv1 .. conv5.
        sparsities: shares of rows and of columns that are zero; CSR gets as many single zeros.
        batch_size: images per call, or a list of several.
        threads: number of threads, or a list of several.
        engines: dense engines to be compared with; default: all that are installed.
        dtype: float32 or bfloat16.
        repeats: interleaved samples per engine, of two milliseconds or one call.
        output: JSON file to write; the curve is drawn beside it as a PNG.
    """
    check_output(output)
    record = measure_sparse(
        f"AlexNet {layer}, dense to sparse",
        break_even_cases(layer, sparsities),
        batch_sizes=several(batch_size),
        threads=thread_counts(threads),
        engines=None if engines is None else several(engines),
        dtype=dtype,
        repeats=repeats,
        progress=show,
    )
    finish(record, sparse_table(record), break_even_chart, output, TABLE_WIDTH)


COMMANDS: dict[str, Callable[..., None]] = {"paper-table4": paper_table4, "break-even": break_even}
"""What may follow ``benchmark`` instead of a checkpoint."""


def thread_counts(threads: int | list[int] | None) -> list[int]:
    """Return the numbers of threads to measure with: one and all by default."""
    return sorted({1, os.cpu_count() or 1}) if threads is None else several(threads)


def show(row: SparseRow) -> None:
    """Print a line for each row, since the whole takes minutes."""
    Console().print(
        f"{row.layer} {row.form}, batch {row.batch_size}, threads {row.threads}: "
        f"{row.speedup:.2f}x of {row.limit:.2f}x over {row.dense_engine}",
        highlight=False,
    )
