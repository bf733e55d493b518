"""compare: one network, data, budget and number of epochs, with every method, each a card."""

from __future__ import annotations

import argparse
import inspect
import os
import shutil
import signal
import statistics
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch.callbacks import Timer

from ssl_lightning import zoo
from ssl_lightning.callbacks import Budget
from ssl_lightning.cli.examples import program, shown
from ssl_lightning.cli.one_run import INTERRUPTED, RUN, agree, trained
from ssl_lightning.cli.parser_errors import refuse_misspelt
from ssl_lightning.cli.short_help import PlainHelp
from ssl_lightning.cli.sparsify import check_epochs, checked_engine
from ssl_lightning.cli.tables import say, show_table
from ssl_lightning.cli.training import quieten, resolved
from ssl_lightning.cli.ways import ALTERNATIVES, LOW_RANK, Config
from ssl_lightning.files import FolderLock, Traces, replacing
from ssl_lightning.progress import Part, steps
from ssl_lightning.publishing import publish
from ssl_lightning.publishing.runs import data_class
from ssl_lightning.report.compared import HEAD, Compared, Comparison, cells_of, comparison_table
from ssl_lightning.report.ways import ways_chart
from ssl_lightning.suggest import first_line, pick
from ssl_lightning.sweep.processes import (
    OUTPUT,
    ended_with,
    follow_parent,
    in_processes,
    redirect_output,
)
from ssl_lightning.zoo.cards import Card

SETTINGS, LOCK, CARDS, REASON = "compare.json", ".lock", "cards", "reason.txt"
RESULT, TABLE, PICTURE = "comparison.json", "comparison.md", "comparison.png"
START_METHOD = "spawn"
USAGE = "%(prog)s CONFIG --budget.TARGET NUMBER [options of fit]"
MORE = """Every option of `fit` may be given too: `fit --help`. The same command continues
where it was stopped.
"""


@dataclass(frozen=True)
class Job:
    """One run.

    Attributes:
        way: name of the way.
        seed: of the run.
        folder: of the run.
        config: resolved config of ``fit``, as plain values.
        threads: of the process.
    """

    way: str
    seed: int
    folder: Path
    config: Config
    threads: int

    @property
    def name(self) -> str:
        """What lines about it begin with."""
        return f"{self.way}, seed {self.seed}"


def run(name: str, arguments: list[str]) -> int | None:
    """Carry out the command. Exit status 1: a way that was asked for could not run."""
    parser = make_parser()
    given = arguments if arguments[:1] and arguments[0].startswith("-") else with_config(arguments)
    own, others = parser.parse_known_args(given)
    if own.help:
        sys.stdout.write(f"{parser.format_help()}\n{MORE}{shown(name)}")
        sys.exit(0)
    if not arguments:
        raise ValueError(
            f"compare: expected a config and a budget, got none. `{program()} compare CONFIG "
            "--budget.macs 0.5`; options of `fit` may stand for the config."
        )
    refuse_misspelt(others, vars(own))
    quieten()
    asked, own.ways = own.ways is not None, own.ways or list(ALTERNATIVES)
    options = [*others, *([] if own.epochs is None else [f"--trainer.max_epochs={own.epochs}"])]
    try:
        refused = compare(own, options, " ".join(["ssl-lightning", name, *arguments]))
    except KeyboardInterrupt:
        say("Stopped. The same command continues where this one was.")
        return INTERRUPTED
    return 1 if refused and asked else None


def with_config(arguments: list[str]) -> list[str]:
    """Return the arguments with the config, which is the first of them, as an option of `fit`."""
    return ["--config", *arguments] if arguments else []


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the options that `fit` does not have."""
    parser = argparse.ArgumentParser(
        prog=f"{program()} compare",
        usage=USAGE,
        add_help=False,
        allow_abbrev=False,
        formatter_class=PlainHelp,
        description="Bring a network to a budget with every method, and set the results side by "
        "side: error, multiply-adds, parameters, latency, training time.",
    )
    add = parser.add_argument
    add("-h", "--help", action="store_true", help="show this")
    add("--ways", nargs="+", metavar="WAY",
        help=f"of {', '.join(ALTERNATIVES)}; default: all that can run")  # fmt: skip
    add("--seeds", nargs="+", type=int, default=[0], help="of the runs of each way")
    add("--epochs", type=int, help="of each run; default: trainer.max_epochs of the config")
    add("--jobs", type=int, default=1, help="runs side by side, which share the threads")
    add("--output", default="runs/compare", help="folder to write to")
    return parser


def compare(own: argparse.Namespace, options: list[str], command: str) -> dict[str, str]:
    """Train, publish, show and store; return the ways that could not run, with the reasons.

    Raises:
        ValueError: if there is no budget, a way is unknown, the data set or the network cannot be
            that of a card, or the folder is of other runs.
    """
    config = checked(own, resolved("fit", options)[0])
    folder = Path(own.output)
    traces = Traces([folder], [folder / SETTINGS, folder / LOCK])
    lock = FolderLock(folder, LOCK, "--output")
    try:
        agree(folder, SETTINGS, {"config": config})
        refused: dict[str, str] = {}
        jobs = jobs_of(config, own, folder, refused)
        train(jobs, own.jobs, refused)
        cards = {way: card_of(way, jobs, folder) for way in own.ways if way not in refused}
        found = result(config, cards, refused, command)
    except BaseException:
        if not any(folder.glob(f"*/*/{OUTPUT}")):
            traces.remove()
        raise
    finally:
        lock.release()
    show(found, folder)
    return refused


def checked(own: argparse.Namespace, config: Config) -> Config:
    """Return the config, unless no comparison can be made of it.

    Raises:
        ValueError: saying what is wrong.
    """
    for way in own.ways:
        pick("way", way, ALTERNATIVES)
    if len(set(own.seeds)) < len(own.seeds) or own.jobs < 1:
        raise ValueError(
            f"compare: expected different seeds and at least one job, got --seeds "
            f"{' '.join(map(str, own.seeds))} and --jobs {own.jobs}."
        )
    if config.get("budget") is None:
        raise ValueError(
            "compare: expected a budget, got none. Give one, such as --budget.macs 0.5."
        )
    checked_engine(config)
    data_class(config["data"])
    if not isinstance(config["model"]["backbone"], str):
        raise ValueError(
            "compare: expected a backbone by its name, so that each way becomes a card, got a "
            "class. Call `register_backbone` (`--import`), or use `sparsify --controls`."
        )
    check_epochs("compare", config["trainer"]["max_epochs"])
    return config


def jobs_of(
    config: Config, own: argparse.Namespace, folder: Path, refused: dict[str, str]
) -> list[Job]:
    """Return all runs, the first seeds first; note ways for which there is no such run."""
    threads = max((os.cpu_count() or 1) // own.jobs, 1)
    ways = {}
    for way in own.ways:
        try:
            ways[way] = with_timer(ALTERNATIVES[way][1](config))
        except ValueError as error:
            refused[way] = first_line(error)
    return [
        Job(way, seed, folder / way / f"seed{seed}", seeded(made, seed), threads)
        for seed in own.seeds
        for way, made in ways.items()
    ]


def seeded(config: Config, seed: int) -> Config:
    """Return the config of a run with a seed: of weights and data; the same images are held out."""
    data = dict(config["data"]["init_args"])
    if data.get("split_seed") is None:
        data["split_seed"] = data["seed"]
    data["seed"] = seed
    return {**config, "seed_everything": seed, "data": {**config["data"], "init_args": data}}


def with_timer(config: Config) -> Config:
    """Return a config whose run stores its time, and one checkpoint at its end."""
    given = config["trainer"]["callbacks"] or []
    others = [c for c in given if not c["class_path"].endswith(("ModelCheckpoint", "Timer"))]
    settings = {"verbose": False, "interval": "epoch"}
    timer = {"class_path": f"{Timer.__module__}.Timer", "init_args": settings}
    return {**config, "trainer": {**config["trainer"], "callbacks": [*others, timer]}}


def train(jobs: list[Job], at_once: int, refused: dict[str, str]) -> None:
    """Make all runs that are not there yet; note way -> why it could not run.

    The other seeds of a way that was refused are not tried.
    """
    missing = [job for job in jobs if not (job.folder / RUN).is_file()]
    if missing:
        say(f"{len(missing)} runs; each writes its epochs to {OUTPUT}, such as that of "
            f"{missing[0].name} in {missing[0].folder}.")  # fmt: skip
    with steps("compare, runs", len(missing)) as part:
        for seed in dict.fromkeys(job.seed for job in jobs):
            now = [job for job in missing if job.seed == seed and job.way not in refused]
            ended = partial(tell, now, refused, part)
            in_processes(START_METHOD, work, [(job,) for job in now], at_once, ended)
            part.reach(part.done, sum(job.way not in refused for job in missing))


def tell(jobs: list[Job], refused: dict[str, str], part: Part, number: int, status: int) -> None:
    """Say how a run ended."""
    job = jobs[number]
    part.advance()
    reason = job.folder / REASON
    if status == 0:
        say(f"{job.name}: done")
        return
    why = reason.read_text() if reason.is_file() else ended_with(status)
    refused.setdefault(job.way, why)
    say(f"{job.name}: not run: {why} ({job.folder / OUTPUT})")


def work(job: Job) -> None:
    """Train, in a process of its own; where that fails, store why."""
    follow_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    job.folder.mkdir(parents=True, exist_ok=True)
    (job.folder / REASON).unlink(missing_ok=True)
    redirect_output(job.folder / OUTPUT)
    quieten()
    torch.set_num_threads(min(torch.get_num_threads(), job.threads))
    try:
        trained(job.way, job.config, job.folder, None, "compare")
    except Exception as error:
        from ssl_lightning.cli import own_error

        (job.folder / REASON).write_text(first_line(own_error(error)))
        raise


def card_of(way: str, jobs: list[Job], folder: Path) -> Card:
    """Return the card of a way, whose runs are measured if that was not done yet."""
    root = folder / CARDS
    runs = {job.seed: job.folder for job in jobs if job.way == way}
    if (root / way).is_dir() and {seed.seed for seed in zoo.card(way, root).seeds} != set(runs):
        shutil.rmtree(root / way)  # of other seeds
    if not (root / way).is_dir():
        say(f"{way}: measuring")
        publish(list(runs.values()), way, root, remark=ALTERNATIVES[way][0])
    return zoo.card(way, root)


def result(
    config: Config, cards: Mapping[str, Card], refused: dict[str, str], command: str
) -> Comparison:
    """Return what is shown and stored."""
    dense = without_defaults(ALTERNATIVES["dense"][1](config))
    rows = [
        row_of(way, card, len(differing(without_defaults(ALTERNATIVES[way][1](config)), dense)))
        for way, card in cards.items()
    ]
    rows.sort(key=lambda row: row.validation)
    model, data = config["model"]["backbone"], config["data"]["class_path"].rpartition(".")[2]
    title = f"{model}, {data.removesuffix('DataModule')}"
    return Comparison(title, config["trainer"]["max_epochs"], command, tuple(rows), refused)


def row_of(way: str, card: Card, lines: int) -> Compared:
    """Return what a card says of a way."""
    validation = [seed.validation_error for seed in card.seeds]
    test = [seed.test_error for seed in card.seeds]
    latency = next(each for each in card.latency if each.batch_size == 1)
    return Compared(
        name=way,
        label=ALTERNATIVES[way][0],
        seeds=len(card.seeds),
        validation=statistics.mean(validation),
        validation_spread=spread(validation),
        test=statistics.mean(test),
        test_spread=spread(test),
        macs_left=100.0 * sparse_macs(card) / card.dense.macs,
        parameters_left=100.0 * card.compact.num_parameters / card.dense.num_parameters,
        latency_left=100.0 * latency.ratio["compact"],
        latency_spread=50.0 * latency.ratio_iqr["compact"],
        seconds=card.training_seconds,
        lines=lines,
    )


def sparse_macs(card: Card) -> float:
    """Return the multiply-adds of a card's network without zero columns of convolutions."""
    total = 0.0
    for layer, (left, dense) in card.layer_macs.items():
        kinds = card.groups.get(layer, {})
        if "columns" in kinds and "filters" in kinds:
            shares = [part / of for part, of in (kinds["filters"], kinds["columns"])]
            left = min(left, round(dense * shares[0] * shares[1]))  # factors cost less than both
        total += left
    return total


def spread(values: list[float]) -> float:
    """Return the standard deviation over seeds (of a sample); 0 for one."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def without_defaults(config: Config) -> dict[str, Any]:
    """Return what a user writes of a way: the budget, penalties and callbacks, without defaults."""
    known = {k: p.default for k, p in inspect.signature(Budget).parameters.items()}
    chosen = config["budget"] or {}
    given = chosen.get("init_args", {})
    budget = {k: v for k, v in given.items() if k not in known or v != known[k]}
    if chosen and not chosen["class_path"].endswith(f".{Budget.__name__}"):
        budget = {"class_path": chosen["class_path"], "init_args": budget}
    model = config["model"]
    scratch = model.get("backbone_args") or {}
    given = config["trainer"]["callbacks"] or []
    callbacks = [c for c in given if c["class_path"] == LOW_RANK]
    found = {"budget": budget, "penalties": model["penalties"], "backbone_args": scratch}
    found["callbacks"] = callbacks
    return {key: value for key, value in found.items() if value}


def differing(settings: Mapping[str, Any], dense: Mapping[str, Any]) -> list[str]:
    """Return the lines of YAML of settings that the dense run does not have.

    Example:
        >>> differing({"budget": {"macs": 0.5, "importance": "l2"}, "a": 1}, {"a": 1})
        ['budget:', '  macs: 0.5', '  importance: l2']
    """
    own = {key: value for key, value in settings.items() if dense.get(key) != value}
    return yaml.safe_dump(own, sort_keys=False).splitlines() if own else []


def show(found: Comparison, folder: Path) -> None:
    """Print the table; write table, record and picture."""
    show_table(found.title, HEAD, [cells_of(row) for row in found.rows], whole=HEAD)
    for way, reason in found.refused.items():
        say(f"not run: {ALTERNATIVES[way][0]}: {reason}")
    if not found.rows:
        return
    found.save(folder / RESULT)
    with replacing(folder / TABLE) as temporary:
        temporary.write_text(comparison_table(found.rows))
    first = sorted(found.rows, key=lambda row: row.name != "dense")  # the line is its error
    ways_chart([row.way() for row in first], folder / PICTURE,
               title=f"{found.title}, {found.epochs} epochs", engine="eager")  # fmt: skip
    say(f"Wrote {folder / RESULT}, {folder / TABLE}, {folder / PICTURE} and {folder / CARDS}.")
