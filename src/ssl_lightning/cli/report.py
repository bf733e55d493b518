"""report: tables and figures of what ``benchmark`` measured. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from ssl_lightning.cli.examples import program
from ssl_lightning.cli.parse import call
from ssl_lightning.report import RunReport, bar_chart, engine_chart, has_engines, print_report
from ssl_lightning.report.html import EXTRA, PACKAGES, write_run_page
from ssl_lightning.suggest import require, there_are


def run(name: str, arguments: list[str]) -> None:
    """Carry out the command."""
    call(report, name, arguments)


def where_reports_are(path: Path) -> str:
    """Say which reports there are, or how one is made."""
    folder = path if path.is_dir() else path.parent
    checkpoints = sorted(
        folder.glob("checkpoints/*.ckpt"), key=lambda file: file.name != "last.ckpt"
    )
    if not checkpoints and (there := there_are(path, "report.json")):
        return there
    checkpoint = checkpoints[0] if checkpoints else "CHECKPOINT"
    elsewhere = "" if checkpoints else there_are(path, ".ckpt")
    return f"`{program()} benchmark {checkpoint}` writes one. {elsewhere}".rstrip()


def report(path: str, figure: bool = True, html: bool = False) -> None:
    """Print the comparison table of a run and draw its bar charts.

    Args:
        path: ``report.json`` that ``benchmark`` wrote, or the folder that holds it.
        figure: also write ``report.png`` beside it, and ``report-engines.png`` if several engines
            or settings were measured.
        html: also write ``report.html`` beside it: everything known about the run in one file, to
            be opened without a server or a network. Needs the extra ``html``.
    """
    file = Path(path) / "report.json" if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"No report at {file}. {where_reports_are(Path(path))}")
    if file.suffix == ".ckpt":
        raise ValueError(
            f"Expected a report, got the checkpoint {file}. `{program()} benchmark {file}` "
            "measures it first."
        )
    content = RunReport.load(file)
    if html:
        require("`report --html`", PACKAGES, EXTRA)
    print_report(file)
    if figure:
        picture = file.with_suffix(".png")
        bar_chart(content, picture)
        Console().print(f"Wrote {picture}")
        if has_engines(content.benchmark):
            picture = file.with_name(f"{file.stem}-engines.png")
            engine_chart(content, picture)
            Console().print(f"Wrote {picture}")
    if html:
        Console().print(f"Wrote {write_run_page(content, file.with_suffix('.html'), file.parent)}")
