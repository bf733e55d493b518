"""The page of a run: what was measured, how it was trained, and how to do it again."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from ssl_lightning.measure.record import Run
from ssl_lightning.parsing import parse_json
from ssl_lightning.report.engines import reasons
from ssl_lightning.report.html.page import Figure, code, picture, write_page
from ssl_lightning.report.html.plots import EXTRA, PACKAGES
from ssl_lightning.report.html.run_charts import layer_figures
from ssl_lightning.report.html.run_tables import (
    conditions_table,
    engines_table,
    layers_table,
    summary_table,
)
from ssl_lightning.report.html.training import training
from ssl_lightning.report.run_report import RunReport
from ssl_lightning.report.table import percent
from ssl_lightning.suggest import require

CONFIG, PLAN, FILTERS = "config.yaml", Path("compact", "plan.json"), "filters.png"
LAST, RECORD = Path("checkpoints", "last.ckpt"), "report.json"
FORMS = ("dense", "masked", "compact", "csr")
"""Networks that ``benchmark`` makes of a checkpoint."""
MOST_CONFIG = 2**17  # bytes of a config that the page holds


def write_run_page(report: RunReport, path: str | Path, folder: str | Path) -> Path:
    """Write everything known about a run as one HTML file, which needs no network.

    Args:
        report: what was measured of it.
        path: HTML file to write.
        folder: of the run: its log, config, plan and picture of filters are read, if they are
            there; what is not is said.

    Returns:
        The path.

    Raises:
        ValueError: if the extra ``html`` is not installed, or a file of the run is damaged.

    Example:
        >>> report = RunReport.load("runs/quickstart/report.json")  # doctest: +SKIP
        >>> write_run_page(report, "report.html", "runs/quickstart")  # doctest: +SKIP
        PosixPath('report.html')
    """
    require("`report --html`", PACKAGES, EXTRA)
    place = Path(folder)
    record = report.benchmark
    run = record.run()
    with_layers = next((found for found in record.runs if found.layers), run)
    return write_page(
        path,
        "run.html.jinja",
        title=report.title,
        source=code(f"ssl-lightning report {shlex.quote(str(folder))} --html"),
        first=first_sentence(report, run),
        summary=summary_table(report, run),
        engines=engines_table(record),
        left_out=reasons(record),
        layers=layers_table(report, with_layers),
        layer_figures=layer_figures(report, with_layers),
        training=training(place),
        filters=filters(place, report),
        conditions=conditions_table(record),
        notes=plan_notes(place),
        config=config_text(place),
        commands=commands(report, place, Path(path).with_suffix(".json")),
    )


def first_sentence(report: RunReport, run: Run) -> str:
    """Say what the last network reaches against the first, in one sentence."""
    record = report.benchmark
    last, base = list(record.models)[-1], record.baseline
    macs = percent(record.models[last].macs, record.models[base].macs)
    parts = [f"{macs} % of {base}'s multiply-adds"]
    if last in run.network:
        parts.append(f"{run.network[last].ratio:.2f} of its latency")
    said = f"The {last} network has {' and '.join(parts)}"
    if {last, base} <= report.errors.keys():
        return (
            f"{said}; its error is {report.errors[last]:.2f} % against {report.errors[base]:.2f} %."
        )
    if last in report.errors:
        return f"{said}; its error is {report.errors[last]:.2f} %, that of {base} was not measured."
    return f"{said}; its error was not measured."


def filters(folder: Path, report: RunReport) -> Figure:
    """Return the picture of the filters."""
    file = folder / FILTERS
    if not file.is_file():
        return Figure(
            reason=f"No picture of filters: no {FILTERS} in {folder}; FilterPictures draws it."
        )
    layer = next((name for name, kinds in report.layers.items() if "filters" in kinds), None)
    words = "Filters of a convolution before and after pruning; filters that are zero are black."
    if layer is not None:
        left, of = report.layers[layer]["filters"]
        words += f" Of the first layer, {layer}, {left} of {of} filters are left."
    return Figure(picture(file.read_bytes(), words, str(file)), words)


def plan_notes(folder: Path) -> tuple[list[str], str]:
    """Return the plan's sentences about what could not be removed or tried, or why there are none.

    Raises:
        ValueError: if the plan is no JSON.
    """
    file = folder / PLAN
    if not file.is_file():
        return [], f"Not known: no {PLAN} in {folder}; `ssl-lightning compact` writes it."
    plan = parse_json(file.read_bytes(), str(file))
    plans = plan.get("plan") if isinstance(plan, dict) else None
    plans = plans if isinstance(plans, list) else [plans]
    found = [
        str(note)
        for part in plans
        if isinstance(part, dict)
        for key in ("notes", "checks")
        if isinstance(part.get(key), list)
        for note in part[key]
    ]
    return found, "" if found else "The plan names nothing that was zero and had to remain."


def config_text(folder: Path) -> tuple[str, str]:
    """Return the run's config, or why it is not here."""
    file = folder / CONFIG
    if not file.is_file():
        return "", f"No {CONFIG} in {folder}."
    if file.stat().st_size > MOST_CONFIG:
        return "", f"{file} is too long for this page ({file.stat().st_size:,} bytes)."
    return file.read_text(encoding="utf-8", errors="replace"), ""


def commands(report: RunReport, folder: Path, record_file: Path) -> list[str]:
    """Return the commands that train, compact, measure and report again.

    Without training if the config is not there, and without measuring if the networks are none that
    ``benchmark`` makes, so that they were measured from Python.
    """
    last, record = str(folder / LAST), report.benchmark
    place = str(folder if record_file.name == RECORD else record_file)
    words = []
    if (folder / CONFIG).is_file():
        words += [["fit", "--config", str(folder / CONFIG)], ["compact", last]]
    if set(record.models) <= set(FORMS):
        dense = ["--dense", "CHECKPOINT"] if record.baseline in report.errors else []
        output = [] if place == str(folder) else ["--output", place]
        measured = ["benchmark", last, *dense, *options(report), "--title", report.title, *output]
        words.append(measured)
    words.append(["report", place, "--html"])
    return [f"ssl-lightning {shlex.join(each)}" for each in words]


def options(report: RunReport) -> list[str]:
    """Return the options of ``benchmark`` that give these settings."""
    record = report.benchmark
    samples = {t.num_samples for run in record.runs for t in run.network.values()}
    found: dict[str, list[Any]] = {
        "--forms": list(record.models),
        "--engines": list(dict.fromkeys(e for run in record.runs for e in run.engines)),
        "--batch_size": list(dict.fromkeys(run.batch_size for run in record.runs)),
        "--dtype": list(dict.fromkeys(run.dtype for run in record.runs)),
        "--threads": list(dict.fromkeys(run.threads for run in record.runs)),
        "--repeats": list(samples) if len(samples) == 1 else [],
        "--per_layer": [] if any(run.layers for run in record.runs) else ["false"],
        "--data": [] if report.errors else ["none"],
    }
    return [
        word
        for option, values in found.items()
        if values
        for word in (option, str(values[0]) if len(values) == 1 else listed(values))
    ]


def listed(values: list[Any]) -> str:
    """Write a list as the command line takes it.

    Example:
        >>> listed(["dense", "compact"])
        '[dense,compact]'
    """
    return f"[{','.join(map(str, values))}]"
