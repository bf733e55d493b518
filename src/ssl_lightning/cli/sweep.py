"""sweep: search hyperparameters; the front of error over cost is the result."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ssl_lightning.cli.parse import call
from ssl_lightning.cli.tables import Rows, say, show_table
from ssl_lightning.suggest import require

if TYPE_CHECKING:
    from ssl_lightning.sweep.reporting import Reporter
    from ssl_lightning.sweep.results import Outcome
    from ssl_lightning.sweep.space import Space
    from ssl_lightning.sweep.study import SharedStudy

INTERRUPTED = 130
"""Exit status of commands that the user stops."""
PLACES = (
    "default_root_dir",
    "dirpath",
    "folder",
    "root",
    "logger",
    "accelerator",
    "devices",
    "on_device",
    "enable_progress_bar",
    "enable_model_summary",
)
"""Keys in which configs of one study may differ: machines differ in them."""
START_METHOD = "spawn"
"""Of a trial's process: a new interpreter, since a process that asked for GPUs cannot be forked."""
NO_CONFIG = "sweep: expected --config FILE.yaml and --space SPACE.yaml, got {}. Give both."
BY_HAND: dict[str, dict[str, Any]] = {
    "--config": {
        "nargs": "+",
        "action": "extend",
        "default": [],
        "help": "configs of `fit`, later ones over earlier",
    },
    "--output": {"required": True, "help": "folder of the trials and of the results"},
}


def run(name: str, arguments: list[str]) -> int | None:
    """Carry out the command."""
    status: int | None = call(sweep, name, arguments, BY_HAND, imports=False)
    return status


def sweep(
    config: list[str],
    output: str,
    space: str | None = None,
    trials: int = 20,
    storage: str | None = None,
    study: str | None = None,
    error: str = "val/error",
    cost: Literal["macs", "parameters"] = "macs",
    prune: bool = True,
    warmup: int | None = None,
    seed: int = 0,
    wandb_file: str | None = None,
) -> int | None:
    """Search hyperparameters of `fit`: the front of validation error over cost.

    Args:
        config: configs of `fit`.
        output: folder of the trials and of the results.
        space: YAML file: dotted key of the config -> {log: [low, high]}, {uniform: [low, high]},
            {int: [low, high]} or {choice: [a, b]}.
        trials: number of trials in the study, over all processes; 0 shows what there is.
        storage: URL of the study's database; default: a SQLite file in the output folder.
        study: its name; default: that of the output folder.
        error: logged metric to minimise.
        cost: what is left after compaction, in percent: of multiply-adds or of parameters.
        prune: stop trials whose error is above the median of trials that were no more costly.
        warmup: epochs before that; default: half of the training.
        seed: of the values that are drawn.
        wandb_file: write the search as a Weights & Biases sweep to this file, and run nothing.
    """
    check_numbers(trials, warmup, error)
    folder = Path(output)
    name = study or folder.resolve().name
    if storage is None and (odd := sorted(set("?%") & set(output))):
        raise ValueError(
            f"--output: expected a folder without {' and '.join(odd)}, which mean something else "
            f"in the URL of its database, got {output}. Give another name, or --storage."
        )
    url = storage or f"sqlite:///{folder.as_posix()}/study.db"
    if wandb_file is not None:
        write_for_wandb(wandb_file, config, space, folder, name, error)
        return None
    require("The command `sweep`", ["optuna"], "sweep")
    from ssl_lightning.sweep.study import SharedStudy

    if trials == 0:
        show(SharedStudy(url, name, folder, create=False), folder)
        return None
    from ssl_lightning.publishing.runs import without
    from ssl_lightning.sweep.reporting import Reporting
    from ssl_lightning.sweep.running import Sweep

    base, searched, epochs = read(config, space)
    shared = SharedStudy(url, name, folder)
    settings = {"error": error, "cost": cost, "space": searched.as_data()}
    shared.agree({**settings, "config": without(PLACES, base)})
    reporting = Reporting(error, cost, prune, epochs // 2 if warmup is None else warmup)
    try:
        search = Sweep(shared, base, searched, reporting, checked, fit, seed, START_METHOD)
        search.run(trials, say)
    except KeyboardInterrupt:
        say("Stopped. The same command continues where this one was.")
        return INTERRUPTED
    show(shared, folder)
    return None


def check_numbers(trials: int, warmup: int | None, error: str) -> None:
    """Refuse what no sweep can be run with.

    Raises:
        ValueError: naming the argument.
    """
    for name, number in {"trials": trials, "warmup": warmup}.items():
        if number is not None and number < 0:
            raise ValueError(f"--{name}: expected 0 or more, got {number}.")
    if error.startswith("test/"):
        raise ValueError(
            f"--error: expected a metric of the validation split such as val/error, got {error}: "
            "the test split must choose nothing."
        )


def read(files: list[str], space: str | None) -> tuple[dict[str, Any], Space, int]:
    """Return the resolved config, what is searched in it, and the least number of epochs.

    Raises:
        FileNotFoundError, ValueError: if one is missing, or they do not fit each other.
    """
    from ssl_lightning.cli.training import resolved
    from ssl_lightning.sweep.space import Space, with_values

    if not files or space is None:
        given = {"--config": files, "--space": space}
        raise ValueError(NO_CONFIG.format(" ".join(n for n, v in given.items() if v) or "neither"))
    base, _ = resolved("fit", [part for file in files for part in ("--config", file)])
    searched = Space.from_file(space)
    searched.check(base, space)
    epochs = []
    for corner in searched.corners():
        config = with_values(base, corner)
        try:
            checked(config)
        except ValueError as error:
            raise ValueError(f"{space}: {error}") from error
        if type(config["seed_everything"]) is not int:
            raise ValueError(
                f"sweep: expected `seed_everything` to be a number, so that the config of a trial "
                f"runs again as it did, got {config['seed_everything']}. Give one."
            )
        epochs.append(config["trainer"]["max_epochs"] or 0)
    return base, searched, max(0, min(epochs))


def checked(config: dict[str, Any]) -> str:
    """Return a config as `fit` stores it.

    Raises:
        ValueError: if `fit` would refuse it.
    """
    from ssl_lightning.cli.training import resolved

    said = io.StringIO()
    try:
        with redirect_stderr(said):
            return resolved("fit", content=config)[1]
    except SystemExit as error:
        raise ValueError(said.getvalue().strip().removeprefix("error: ")) from error


def fit(config: Path, reporter: Reporter, checkpoint: Path | None) -> None:
    """Train as `ssl-lightning fit --config` does, in the process of a trial.

    Raises:
        Exception: what training raises; of this library's own, the first of a chain.
    """
    from ssl_lightning.cli import own_error
    from ssl_lightning.cli.training import ContinuedCLI, carry_out, quieten

    class TrialCLI(ContinuedCLI):
        """Draws no progress bar into a file."""

        def instantiate_trainer(self, **settings: Any) -> Any:
            trainer = super().instantiate_trainer(**settings)
            if trainer.progress_bar_callback is not None:
                trainer.progress_bar_callback.disable()
            return trainer

    quieten()
    try:
        ContinuedCLI.checkpoint = checkpoint
        carry_out("fit", ["--config", str(config)], TrialCLI, callbacks=[reporter])
    except Exception as error:
        own = own_error(error)
        if own is error:
            raise
        raise own from error


def write_for_wandb(
    path: str, config: list[str], space: str | None, output: Path, name: str, error: str
) -> None:
    """Write the search as a sweep file of Weights & Biases."""
    from ssl_lightning.sweep.wandb_file import wandb_sweep, write_wandb_file

    base, searched, _ = read(config, space)
    write_wandb_file(path, wandb_sweep(base, config, searched, output.as_posix(), name, error))
    say(f"Wrote {path}. `wandb sweep {path}` makes the sweep, `wandb agent ID` runs it.")


def show(shared: SharedStudy, folder: Path) -> None:
    """Print the front, and write the tables and the picture."""
    from ssl_lightning.sweep.reporting import COSTS
    from ssl_lightning.sweep.results import best, outcomes, write_results

    settings, found = shared.settings(), outcomes(shared)
    keys, error = list(settings.get("space", {})), settings.get("error", "val/error")
    left = f"{COSTS[settings.get('cost', 'macs')]} left"
    axes = ("validation error, %" if error == "val/error" else error, f"{left}, %")
    files = write_results(found, keys, folder, f"{shared.name}: error over cost", axes)
    rows: Rows = [row(each, keys) for each in best(found)]
    names = ["\n".join(short_name(key, keys).rsplit(".", 1)) for key in keys]
    show_table("", ("trial", error, f"{left}, %", *names, "config"), rows, {"config"})
    counts = Counter(each.state for each in found)
    say(f"{len(found)} trials: {', '.join(f'{n} {state}' for state, n in counts.items())}.")
    say(f"Wrote {', '.join(str(file) for file in files)}.")


def row(each: Outcome, keys: list[str]) -> tuple[str, ...]:
    """Return the cells of a trial."""
    values = [each.values.get(key, "-") for key in keys]
    shown = [f"{v:.4g}" if isinstance(v, float) else str(v) for v in values]
    return (str(each.number), f"{each.error:.4g}", f"{each.cost:.1f}", *shown, each.config)


def short_name(key: str, keys: Sequence[str]) -> str:
    """Return the end of a dotted key that tells it from others; no number stands at its start.

    Example:
        >>> keys = ["model.penalties.0.strength", "model.penalties.1.strength", "model.lr"]
        >>> [short_name(key, keys) for key in keys]
        ['penalties.0.strength', 'penalties.1.strength', 'lr']
    """
    parts = key.split(".")
    for i in reversed(range(len(parts))):
        end = ".".join(parts[i:])
        same = [other for other in keys if f".{other}".endswith(f".{end}")]
        if len(same) == 1 and not parts[i].isdecimal():
            return end
    return key
