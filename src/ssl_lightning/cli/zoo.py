"""zoo: what is done with entries. Listing and showing them imports no torch."""

from __future__ import annotations

import sys
from collections.abc import Callable
from textwrap import wrap
from typing import Any

from ssl_lightning import zoo
from ssl_lightning.cli.examples import program, shown, suggest
from ssl_lightning.cli.parse import call
from ssl_lightning.cli.short_help import text_width
from ssl_lightning.cli.tables import Rows, console, show_table
from ssl_lightning.cli.zoo_cells import cell, counts, errors, patterns, ratios, storage, strength
from ssl_lightning.progress import track
from ssl_lightning.report import percent, short_count
from ssl_lightning.suggest import pick
from ssl_lightning.zoo.listing import latency_cell
from ssl_lightning.zoo.records import CONTROLS


def run(name: str, arguments: list[str]) -> int | None:
    """Carry out the command: the first argument says what to do. Return the exit status."""
    if not arguments or arguments[0] in ("-h", "--help"):
        (sys.stdout if arguments else sys.stderr).write(usage())
        raise SystemExit(0 if arguments else 2)
    action = pick("action of `zoo`", arguments[0], ACTIONS)
    by_hand = BY_HAND.get(arguments[0])
    status: int | None = call(action, f"{name} {arguments[0]}", arguments[1:], by_hand)
    return status


def list_entries(root: str | None = None) -> int:
    """List the entries: test error, multiply-adds, parameters, latency as a ratio to the dense.

    Exit status 1: a card cannot be read; the others are listed.

    Args:
        root: folder of entries; default: SSL_ZOO_DIR, else the repository's zoo.
    """
    rows: Rows = []
    unread: list[str] = []
    for name in zoo.list_models(root):
        try:
            card = zoo.card(name, root)
        except ValueError as error:
            unread.append(f"{name}: {error}")
            continue
        macs, parameters = card.compact.macs, card.compact.num_parameters
        rows.append(
            (
                name,
                f"{card.backbone}, {card.data.name}",
                f"{card.test_error:.2f}",
                str(len(card.seeds)),
                f"{short_count(macs)} ({percent(macs, card.dense.macs)} %)",
                f"{short_count(parameters)} ({percent(parameters, card.dense.num_parameters)} %)",
                latency_cell(card),
            )
        )
    head = ("entry", "network, data", "test error %", "seeds", "MACs", "parameters", "latency")
    show_table("", head, rows, whole=("entry",))
    sys.stderr.writelines(f"error: {text}\n" for text in unread)
    return 1 if unread else 0


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
        *((f"latency, batch {r.batch_size}", ratios(r.ratio)) for r in card.latency),
        *((f"strength, {p.get('kind')} of {patterns(p)}", strength(p)) for p in card.penalties),
        ("seed, epochs", f"{card.seed}, {card.epochs}"),
        *((f"seed {r.seed}", errors(r.validation_error, r.test_error)) for r in card.seeds),
        *(
            (f"control, {c.kind}, seed {r.seed}", errors(r.validation_error, r.test_error))
            for c in card.controls
            for r in c.seeds
        ),
        ("weights", storage(card)),
        ("licence", card.licence),
        *((f"paper: {key}", str(value)) for key, value in (card.paper or {}).items()),
        *((f"not measured: {field}", reason) for field, reason in card.unmeasured.items()),
        *((file, f"{stored.num_bytes:,} bytes") for file, stored in card.files.items()),
    ]
    show_table(name, ("what", "value"), rows)


def verify_entries(
    name: str | None = None,
    all: bool = False,  # noqa: A002 - the flag's name
    root: str | None = None,
    latency: bool = True,
) -> int:
    """Measure an entry's error, size, groups, outputs and times again.

    Exit status 1: a figure differs, 3: one has no verdict.

    Args:
        name: an entry that ``zoo list`` lists.
        all: every entry, instead of one.
        root: folder of entries; default: SSL_ZOO_DIR, else the repository's zoo.
        latency: also take the timings.
    """
    if all == (name is not None):
        raise ValueError("zoo verify: expected the name of an entry or `--all`. Give one of them.")
    names = zoo.list_models(root) if name is None else [name]
    verdicts = {
        verify_entry(each, root, latency)
        for each in track(names, "zoo verify" if len(names) > 1 else "")
    }
    return next((STATUS[verdict] for verdict in STATUS if verdict in verdicts), 0)


def verify_entry(name: str, root: str | None, latency: bool) -> str:
    """Print the table of one entry and say what differs; return the worst verdict."""
    from ssl_lightning import publishing

    try:
        checks = publishing.verify(name, root, latency)
    except (ValueError, FileNotFoundError) as error:
        sys.stderr.write(f"error: {error}\n")
        return "DIFFERS"
    rows: Rows = [
        (c.what, cell(c.published), cell(c.measured), cell(c.tolerance), c.verdict) for c in checks
    ]
    show_table(name, ("what", "published", "measured", "tolerance", "verdict"), rows)
    sentences = {"DIFFERS": "is not as published", "not measured": "was not wholly measured"}
    for verdict, sentence in sentences.items():
        if found := [c for c in checks if c.verdict == verdict]:
            names = ", ".join(c.what for c in found)
            reasons = " ".join(dict.fromkeys(c.reason for c in found if c.reason))
            sys.stderr.write(f"error: {name} {sentence}: {names}. {reasons}".rstrip() + "\n")
            return verdict
    return "ok"


STATUS = {"DIFFERS": 1, "not measured": 3, "ok": 0}
"""Verdict -> exit status, the worst first."""


def publish_runs(
    runs: list[str],
    name: str,
    root: str = "zoo",
    paper: dict[str, Any] | None = None,
    controls: list[str] | None = None,
    remark: str | None = None,
    threads: int = 1,
    dtype: str = "float32",
    weights: bool = True,
) -> None:
    """Write an entry from finished runs that differ in their seed, by measuring them.

    Args:
        runs: folders of the runs: config.yaml, checkpoints/last.ckpt, compact/.
        name: of the new entry.
        root: folder of entries to write to.
        paper: the published row to compare with, such as '{"row": "LeNet 2", "error": 0.8}';
            with "table4" AlexNet's layers are timed beside that configuration of Table 4.
        controls: runs of other methods, such as magnitude=RUN,RUN random=RUN,RUN small_dense=RUN.
        remark: what a reader must know, such as a goal that was missed.
        threads: to take timings with.
        dtype: to store weights in: float32, float16 or bfloat16; figures are of what is stored.
        weights: whether to store weights; without them an entry keeps figures and the hash.
    """
    from ssl_lightning import publishing

    compared = parse_controls(controls or [])
    folder = publishing.publish(runs, name, root, paper, compared, remark, threads, dtype, weights)
    show_entry(name, root)
    console().print(f"Wrote {folder}")
    suggest(f"zoo verify {name} --root {root}")


def add_controls(
    name: str, controls: list[str], root: str | None = None, remark: str | None = None
) -> None:
    """Add runs of other methods to the card of an entry, by measuring them.

    Args:
        name: an entry that ``zoo list`` lists.
        controls: finished runs, such as magnitude=RUN,RUN random=RUN,RUN small_dense=RUN.
        root: folder of entries; default: SSL_ZOO_DIR, else the repository's zoo.
        remark: what a reader must know, in place of what the card says now.
    """
    from ssl_lightning import publishing

    folder = publishing.add_controls(name, parse_controls(controls), root, remark)
    show_entry(name, root)
    console().print(f"Wrote {folder}")


def add_evaluations(name: str, files: list[str], root: str | None = None) -> None:
    """Add what `evaluate` measured of an entry to its files and its page.

    Args:
        name: an entry that ``zoo list`` lists.
        files: written by `evaluate calibration`, `corruption` or `transfer` with --output.
        root: folder of entries; default: SSL_ZOO_DIR, else the repository's zoo.
    """
    from ssl_lightning import publishing

    console().print(f"Wrote {publishing.add_evaluations(name, files, root)}")


def parse_controls(given: list[str]) -> dict[str, list[str]]:
    """Return kind of control -> folders of its runs.

    Raises:
        ValueError: if one has no ``=`` or no folder.

    Example:
        >>> parse_controls(["random=runs/a,runs/b"])
        {'random': ['runs/a', 'runs/b']}
    """
    controls: dict[str, list[str]] = {}
    for text in given:
        kind, _, folders = text.partition("=")
        if not all(folders.split(",")):
            raise ValueError(f"controls: expected KIND=RUN,RUN,..., got {text!r}. Name the runs.")
        controls.setdefault(kind, []).extend(folders.split(","))
    return controls


def write_pages(
    names: list[str], root: str | None = None, step_cost: bool = False, threads: int = 1
) -> None:
    """Write the pages of entries anew from their cards, after a change of the wording.

    Args:
        names: entries; default: all.
        root: folder of entries; default: SSL_ZOO_DIR, else the repository's zoo.
        step_cost: also time again what the penalties add to a step, on an idle machine.
        threads: to do that with.
    """
    from ssl_lightning.publishing import write_page

    for name in track(names or zoo.list_models(root), "zoo pages"):
        console().print(f"Wrote {write_page(name, root, step_cost, threads)}")


def write_site(output: str = "zoo.html", root: str | None = None) -> None:
    """Write one HTML file for the whole zoo, which needs no server and no network.

    Args:
        output: file to write; default: zoo.html in the current folder.
        root: folder of entries; default: SSL_ZOO_DIR, else the repository's zoo.
    """
    from ssl_lightning import publishing

    path = publishing.write_site(output, root)
    console().print(f"Wrote {path}")


def push_entry(name: str, repository: str, root: str | None = None, private: bool = False) -> None:
    """Upload an entry to a model hub, after checking its files.

    Args:
        name: an entry that ``zoo list`` lists.
        repository: to upload to, such as USER/NAME; it is made if missing.
        root: folder of entries; default: SSL_ZOO_DIR, else the repository's zoo.
        private: whether a repository that is made is private.
    """
    from ssl_lightning.publishing import push

    console().print(f"Uploaded {push(name, repository, root, private)}")


def pull_entry(repository: str, root: str, revision: str | None = None) -> None:
    """Download an entry from a model hub; its files are checked before one is parsed.

    Args:
        repository: that ``zoo push`` uploaded to, such as USER/NAME.
        root: folder of entries to write to.
        revision: branch, tag or commit; default: the main branch.
    """
    folder = zoo.pull(repository, root, revision)
    console().print(f"Wrote {folder}")
    suggest(f"zoo verify {folder.name} --root {root}")


ACTIONS: dict[str, Callable[..., int | None]] = {
    "list": list_entries,
    "show": show_entry,
    "verify": verify_entries,
    "publish": publish_runs,
    "control": add_controls,
    "evaluation": add_evaluations,
    "pages": write_pages,
    "site": write_site,
    "push": push_entry,
    "pull": pull_entry,
}
BY_HAND: dict[str, dict[str, dict[str, Any]]] = {
    "verify": {
        "name": {"nargs": "?", "help": "an entry that `zoo list` lists"},
        "--all": {"action": "store_true", "help": "every entry, instead of one"},
    },
    "publish": {
        "runs": {"nargs": "+", "help": "folders of finished runs, one per seed"},
        "--name": {"required": True, "help": "of the new entry"},
        "--controls": {
            "nargs": "+",
            "metavar": "KIND=RUN,RUN",
            "help": "finished runs of " + ", ".join(CONTROLS),
        },
    },
    "control": {
        "name": {"help": "an entry that `zoo list` lists"},
        "controls": {
            "nargs": "+",
            "metavar": "KIND=RUN,RUN",
            "help": f"finished runs of {', '.join(CONTROLS)}, one per seed",
        },
    },
    "evaluation": {
        "name": {"help": "an entry that `zoo list` lists"},
        "files": {"nargs": "+", "help": "that `evaluate` wrote with --output"},
    },
    "pages": {"names": {"nargs": "*", "help": "entries; default: all"}},
}
"""Action -> arguments that its function's signature cannot express."""


def usage() -> str:
    """Return the overview of what the command does."""
    first = {name: (action.__doc__ or "").splitlines()[0] for name, action in ACTIONS.items()}
    lines = (wrap(f"  {name:<10} {text}", text_width()) for name, text in first.items())
    rows = "\n".join(f"\n{13 * ' '}".join(line) for line in lines)
    return (
        f"usage: {program()} zoo ACTION [ARGUMENTS]\n\nPublished compact networks.\n\n"
        f"actions:\n{rows}\n\n`{program()} zoo ACTION --help` says more.\n{shown('zoo')}"
    )
