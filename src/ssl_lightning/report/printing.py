"""A report file in the terminal."""

from pathlib import Path

from rich.console import Console

from ssl_lightning.report.engines import engine_table, has_engines, reasons
from ssl_lightning.report.run_report import RunReport
from ssl_lightning.report.table import comparison_table

WIDTH = 124  # characters; a narrower terminal wraps the lines, but no figure is cut


def print_report(
    path: str | Path, *, threads: int | None = None, console: Console | None = None
) -> None:
    """Show the tables of a report file: in eager the first run and those with layers, then engines.

    Args:
        path: file that :meth:`RunReport.save` wrote.
        threads: show only runs with so many; all if None.
        console: where to print; standard output if None.

    Raises:
        ValueError: if the file is no report, or nothing was measured at that number of threads.
    """
    report = RunReport.load(path)
    if console is None:
        console = Console()
        console = console if console.width >= WIDTH else Console(width=WIDTH)
    record = report.benchmark
    first = record.run(threads)
    for run in record.runs:
        if run is first or (run.layers and threads in (None, run.threads)):
            console.print(comparison_table(report, run))
    if has_engines(record):
        console.print(engine_table(report))
        for reason in reasons(record):
            console.print(reason, highlight=False, markup=False)
