"""The tables of docs/comparison.md: from the records in docs/comparison and the zoo's cards.

A mark names ``docs/comparison/<name>.json`` where ``ssl-lightning compare`` wrote it, ``cost.json``
(``ssl-lightning benchmark training``), ``engines.json`` (``ssl-lightning benchmark``), or the card
of an entry with its controls.
"""

from __future__ import annotations

from pathlib import Path

from ssl_lightning.measure.record import BenchmarkResult
from ssl_lightning.measure.training_record import TrainingRecord
from ssl_lightning.report.compared import Comparison, comparison_table
from ssl_lightning.report.run_report import RunReport
from ssl_lightning.report.table import percent
from ssl_lightning.zoo import card
from ssl_lightning.zoo.records import CONTROLS, SeedResult, median_result
from ssl_lightning.zoo.wording import table

DOCS = Path(__file__).resolve().parent.parent / "docs"
RECORDS = DOCS / "comparison"
MODERN = {
    "modern": "mobilenetv3_small_imagenette_half",
    "efficientnet": "efficientnet_b0_imagenette_half",
}
"""Mark -> entry; the dense one has ``dense`` in place of ``half`` in its name."""
TITLES = {"modern": "MobileNetV3-small", "efficientnet": "EfficientNet-B0"}


def modern_table(mark: str) -> str:
    """Return an entry beside its dense network and its controls."""
    entry = MODERN[mark]
    small, large = card(entry), card(entry.replace("_half", "_dense"))

    def row(name: str, seeds: tuple[SeedResult, ...]) -> tuple[object, ...]:
        one = median_result(seeds)
        return (
            name,
            f"{one.validation_error:.2f}",
            f"{one.test_error:.2f}",
            f"{one.macs:,} ({percent(one.macs, small.dense.macs)} %)",
            f"{one.num_parameters:,}",
        )

    rows = [row("dense", large.seeds), row("the entry", small.seeds)]
    rows += [row(CONTROLS[control.kind], control.seeds) for control in small.controls]
    head = (
        TITLES[mark],
        "validation error %",
        "test error %",
        "multiply-adds",
        "parameters",
    )
    return table(head, rows) + "\n"


def engines_table(record: BenchmarkResult) -> str:
    """Return dense and compact latencies in each engine, for one image."""
    run = record.run(batch_size=1)
    dense, *_, compact = record.models
    rows = []
    for engine, times in run.engines.items():
        cells = [f"{times[n].median_ms:.2f} ± {times[n].iqr_ms:.2f}" for n in (dense, compact)]
        ratio = times[compact].median_ms / times[dense].median_ms
        rows.append((engine, *cells, f"{ratio:.2f}"))
    head = (
        f"engine, on {record.machine.processor}",
        "dense, ms",
        "compact, ms",
        "ratio of medians",
    )
    return table(head, rows) + "\n"


def cost_table(record: TrainingRecord) -> str:
    """Return what penalties add to a training step."""
    rows = [
        (
            row.backbone,
            f"{row.form}, {row.mode}" if row.mode else row.form,
            f"{row.step_ms:.1f}",
            f"{row.ratio:.3f} ({row.ratio_low:.3f} - {row.ratio_high:.3f})",
            f"{row.penalty_ms:.2f}",
            f"{row.penalty_bytes / 1e6:.2f}",
        )
        for row in record.rows
    ]
    head = ("network", "penalty", "step, ms", "ratio (quartiles)", "penalty, ms", "penalty, MB")
    return table(head, rows) + "\n"


def made(name: str) -> str:
    """Return one table."""
    if name in MODERN:
        return modern_table(name)
    path = RECORDS / f"{name}.json"
    if name == "engines":
        return engines_table(RunReport.load(path).benchmark)
    if name == "cost":
        return cost_table(TrainingRecord.load(path))
    return comparison_table(Comparison.load(path).rows)
