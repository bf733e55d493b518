"""The tables of README: from the demo's report, and the cards of the zoo.

``docs/demo/`` holds the report and the pictures of a run of ``make demo`` on an idle machine:
``cp runs/quickstart/report.{json,png} runs/quickstart/filters.png docs/demo/``.
"""

from __future__ import annotations

from pathlib import Path

from ssl_lightning.measure.record import Timing
from ssl_lightning.report.run_report import RunReport
from ssl_lightning.report.table import percent, plural
from ssl_lightning.zoo import Card, card, list_models
from ssl_lightning.zoo.wording import table

ROOT = Path(__file__).resolve().parent.parent

ENTRIES: dict[str, str | None] = {  # entry -> the dense one that it is compared with
    "lenet_mnist_filter_channel": "lenet_mnist_dense",
    "resnet20_cifar10_channel": "resnet20_cifar10_dense",
    "resnet20_cifar10_depth18": "resnet20_cifar10_dense",
    "resnet20_cifar10_depth14": "resnet20_cifar10_dense",
    "alexnet_imagenette_full": "alexnet_imagenette_dense",
    "mobilenetv3_small_imagenette_half": "mobilenetv3_small_imagenette_dense",
    "efficientnet_b0_imagenette_half": "efficientnet_b0_imagenette_dense",
}
FIGURES = (
    "compact",
    "dense, trained as long",
    "best control",
    "multiply-adds",
    "parameters",
    "latency",
)


def demo_table() -> str:
    """Return dense, masked and compact of the demo's report."""
    report = RunReport.load(ROOT / "docs/demo/report.json")
    record = report.benchmark
    run = record.run()
    dense = record.models[record.baseline]
    rows = [
        (
            "masked (zeros, nothing removed)" if name == "masked" else name,
            f"{report.errors[name]:.2f} %",
            f"{size.macs:,} ({percent(size.macs, dense.macs)} %)",
            f"{size.num_parameters:,}",
            latency_cell(run.network[name]),
        )
        for name, size in record.models.items()
    ]
    head = (
        "LeNet, 10,000 test images",
        "test error",
        "multiply-adds",
        "parameters",
        f"latency, one image, {plural(run.threads, 'thread')}",
    )
    processor = (
        f"Measured in {next(iter(run.engines))} on {record.machine.processor}. Dense is the "
        "network after the first of the run's three stages, the others after the last."
    )
    return f"{table(head, rows)}\n\n{processor}\n"


def latency_cell(timing: Timing) -> str:
    """Return milliseconds, and the ratio to the dense network with half its quartile range."""
    return f"{timing.median_ms:.3f} ms ({timing.ratio:.2f} ± {timing.ratio_iqr / 2:.2f})"


def zoo_table() -> str:
    """Return some entries of the zoo beside their dense networks and their best controls."""
    head = ("network", "test error: dense", *FIGURES)
    rows = (zoo_row(card(name), dense) for name, dense in ENTRIES.items())
    return f"{table(head, rows)}\n\n{controls_sentence()}\n"


def controls_sentence() -> str:
    """Say how many sparse entries have controls, and how many of those a better one."""
    sparse = [one for one in map(card, list_models()) if one.compact.macs < one.dense.macs]
    lowest = {one.name: min(errors) for one in sparse if (errors := of_equal_cost(one))}
    better = [one for one in sparse if lowest.get(one.name, one.test_error) < one.test_error]
    return (
        f"Of {len(sparse)} sparse entries {len(lowest)} have controls; {len(better)} of these have "
        "one (by magnitude, at random, or from scratch) with a lower error, and say so on their "
        "pages."
    )


def of_equal_cost(entry: Card) -> list[float]:
    """Return the test errors of an entry's controls, without the dense network's."""
    return [error for kind, error in entry.control_errors().items() if kind != "dense"]


def zoo_row(entry: Card, dense: str | None) -> tuple[str, ...]:
    """Return one entry's row in README."""
    return (
        f"[{entry.name}](zoo/{entry.name}/README.md)",
        "-" if dense is None else f"{card(dense).test_error:.2f} %",
        *figures(entry),
    )


def figures(entry: Card) -> tuple[str, ...]:
    """Return an entry's test error, its best control's, its shares of the dense cost, its time."""
    controls, dense = of_equal_cost(entry), entry.control_errors().get("dense")
    ratios = [one.ratio["compact"] for one in entry.latency or () if one.batch_size == 1]
    return (
        f"{entry.test_error:.2f} %",
        "-" if dense is None else f"{dense:.2f} %",
        f"{min(controls):.2f} %" if controls else "-",
        f"{percent(entry.compact.macs, entry.dense.macs)} %",
        f"{percent(entry.compact.num_parameters, entry.dense.num_parameters)} %",
        f"{ratios[0]:.2f}" if ratios else "-",
    )


TABLES = {"demo": demo_table, "zoo": zoo_table}
"""Mark in README -> what makes its table."""
