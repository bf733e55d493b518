"""zoo: list, show, verify and publish entries. Listing and showing import no torch."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ssl_lightning import zoo
from ssl_lightning.cli.parse import call
from ssl_lightning.report import percent, short_count
from ssl_lightning.suggest import pick

WIDTH = 120  # characters, where the output is no terminal

Rows = list[tuple[str, ...]]


def run(name: str, arguments: list[str]) -> None:
    """Carry out the command: the first argument says what to do."""
    if not arguments or arguments[0] in ("-h", "--help"):
        (sys.stdout if arguments else sys.stderr).write(usage())
        raise SystemExit(0 if arguments else 2)
    action = pick("action of `zoo`", arguments[0], ACTIONS)
    call(action, f"{name} {arguments[0]}", arguments[1:])


def list_entries(root: str | None = None) -> None:
    """List the entries: error on the test split, multiply-adds and parameters.

    Args:
        root: folder of entries; default: SSL_ZOO_DIR, else the repository's zoo.
    """
    rows: Rows = []
    for name in zoo.list_models(root):
        card = zoo.card(name, root)
        macs, parameters = card.compact.macs, card.compact.num_parameters
        rows.append(
            (
                name,
                f"{card.backbone}, {card.data.name}",
                f"{card.test_error:.2f}",
                f"{short_count(macs)} ({percent(macs, card.dense.macs)} %)",
                f"{short_count(parameters)} ({percent(parameters, card.dense.num_parameters)} %)",
            )
        )
    show_table("", ("entry", "network, data", "test error %", "MACs", "parameters"), rows)


def show_entry(name: str, root: str | None = None) -> None:
    """Show the card of an entry.

    Args:
        name: an entry that ``zoo list`` lists.
        root: folder of entries; default: SSL_ZOO_DIR, else the repository's zoo.
    """
    card = zoo.card(name, root)
    data = card.data
    rows: Rows = [
        ("backbone", f"{card.backbone} {card.arguments or ''}".strip()),
        ("data", f"{data.name}: {data.num_train} + {data.num_validation} + {data.num_test} images"),
        ("validation error %", f"{card.validation_error:.2f}"),
        ("test error %", f"{card.test_error:.2f}"),
        ("MACs", f"{card.dense.macs:,} -> {card.compact.macs:,}"),
        ("parameters", f"{card.dense.num_parameters:,} -> {card.compact.num_parameters:,}"),
        *((f"left of {layer}", counts(kinds)) for layer, kinds in card.groups.items()),
        *((f"strength, {p.get('kind')} of {p.get('layers')}", strength(p)) for p in card.penalties),
        ("seed, epochs", f"{card.seed}, {card.epochs}"),
        ("licence", card.licence),
        *((f"paper: {key}", str(value)) for key, value in (card.paper or {}).items()),
        *((file, f"{stored.num_bytes:,} bytes") for file, stored in card.files.items()),
    ]
    show_table(name, ("what", "value"), rows)


def verify_entry(name: str, root: str | None = None) -> None:
    """Measure every figure of an entry again; the exit status is 1 if one differs.

    Args:
        name: an entry that ``zoo list`` lists.
        root: folder of entries; default: SSL_ZOO_DIR, else the repository's zoo.
    """
    checks = zoo.verify(name, root)
    rows: Rows = [
        (
            c.what,
            cell(c.published),
            cell(c.measured),
            cell(c.tolerance),
            "ok" if c.ok else "DIFFERS",
        )
        for c in checks
    ]
    show_table(name, ("what", "published", "measured", "tolerance", "verdict"), rows)
    wrong = [check.what for check in checks if not check.ok]
    if wrong:
        raise ValueError(f"{name} is not as published: {', '.join(wrong)} differ.")


def publish_run(
    run: str, name: str, root: str = "zoo", paper: dict[str, Any] | None = None
) -> None:
    """Write an entry from a finished run, by measuring its compact network.

    Args:
        run: folder of the run: config.yaml, checkpoints/last.ckpt, compact/.
        name: of the new entry.
        root: folder of entries to write to.
        paper: the published row to compare with, such as '{"row": "LeNet 2", "error": 0.8}'.
    """
    folder = zoo.publish(run, name, root, paper)
    show_entry(name, root)
    console().print(f"Wrote {folder}")


ACTIONS: dict[str, Callable[..., None]] = {
    "list": list_entries,
    "show": show_entry,
    "verify": verify_entry,
    "publish": publish_run,
}


def usage() -> str:
    """Return the overview of what the command does."""
    rows = "\n".join(
        f"  {name:<8} {(action.__doc__ or '').splitlines()[0]}" for name, action in ACTIONS.items()
    )
    return (
        "usage: ssl-lightning zoo ACTION [ARGUMENTS]\n\nPublished compact networks.\n\n"
        f"actions:\n{rows}\n\n`ssl-lightning zoo ACTION --help` says more.\n"
    )


def show_table(title: str, columns: tuple[str, ...], rows: Rows) -> None:
    """Print a table; long cells are folded, never cut."""
    table = Table(title=title or None, box=SIMPLE_HEAD)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    console().print(table)


def console() -> Console:
    """Return the terminal, or a wide one if the output goes elsewhere."""
    terminal = Console()
    return terminal if terminal.is_terminal else Console(width=WIDTH)


def counts(kinds: dict[str, list[int]]) -> str:
    """Say how many groups of each kind are left.

    Example:
        >>> counts({"filters": [5, 20], "channels": [1, 1]})
        '5/20 filters, 1/1 channels'
    """
    return ", ".join(f"{left}/{of} {kind}" for kind, (left, of) in kinds.items())


def strength(penalty: dict[str, Any]) -> str:
    """Say a penalty's strength, and when it is in force."""
    schedule = penalty.get("schedule")
    return f"{penalty.get('strength')}" + (f", {schedule}" if schedule else "")


def cell(value: float | int | str) -> str:
    """Write a figure for a table; long texts are shortened.

    Example:
        >>> cell(0.62), cell(2293000), cell("x" * 60)
        ('0.62', '2,293,000', 'xxxxxxxxxxxxxxxxxxxxx...')
    """
    if isinstance(value, str):
        return value if len(value) <= 24 else f"{value[:21]}..."
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
