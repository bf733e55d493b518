"""Run stages on a machine with a GPU, within some minutes, and write what they found.

``python tools/gpu/run.py check --minutes 9 --out results``

Stages run one after the other, each in a process of its own, so that a failure of one (a lost CUDA
context, say) does not touch the next. Of the remaining minutes a stage gets, when it starts, its
share among the stages still to come; what it leaves over is for the others. A stage that does
not stop in time is stopped. Each writes its results as it runs, and finds those of earlier calls.
``--dry-run`` does all of it on the CPU with tiny sizes. The exit status is 1 if a stage failed or
none had time to measure anything.
"""

from __future__ import annotations

import argparse
import importlib
import os
import subprocess
import sys
import time
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(path) for path in (HERE, ROOT / "src") if str(path) not in sys.path]

from pack import wheels  # noqa: E402
from stages import NO_TIME, Context, NoTimeError, read_result  # noqa: E402

sys.path += [str(path) for path in wheels(ROOT)]  # those of the machine come first


class Stage(NamedTuple):
    """What is known of a stage before its file is imported."""

    share: float  # of the minutes
    what: str  # it does, for --help


STAGES = {
    "check": Stage(1.0, "compare all that may run on a GPU with float64 on the CPU"),
    "tune": Stage(1.0, "search the fastest tiles of the column-sparse kernel"),
    "table4": Stage(1.5, "time the layers of the paper's Table 4, dense and sparse"),
    "cifar": Stage(2.0, "train the queue of CIFAR-10 runs"),
}
GRACE = 20.0  # seconds after its deadline at which a stage is stopped


def load(name: str) -> ModuleType:
    """Return the file of a stage."""
    return importlib.import_module(name)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n")[0],
        epilog="stages:\n" + "\n".join(f"  {name:8}{s.what}" for name, s in STAGES.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "stages", nargs="+", choices=list(STAGES), metavar="STAGE", help="see below"
    )
    parser.add_argument("--minutes", type=float, default=9.0, help="for all stages together")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--device", choices=("cpu", "cuda"))
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, with tiny sizes")
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)  # of one stage's process
    options = parser.parse_args(arguments)
    if not options.minutes > 0:
        parser.error(f"--minutes: expected more than 0, got {options.minutes}.")
    if options.dry_run and options.device == "cuda":
        parser.error("--dry-run runs on the CPU: leave out --device.")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run the stages; return 1 if one failed or none measured anything, 2 without a folder."""
    options = parse(arguments)
    options.device = options.device or ("cpu" if options.dry_run else "cuda")
    if options.seconds is not None:
        return run_here(options.stages[0], options)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        print(
            f"--out: expected a folder, got `{options.out}` ({error.strerror}). Name another.",
            file=sys.stderr,
        )
        return 2
    names = list(dict.fromkeys(options.stages))
    end = time.monotonic() + 60 * options.minutes
    for i, name in enumerate(names):
        shares = sum(STAGES[other].share for other in names[i:])
        seconds = max(end - time.monotonic(), 0.0) * STAGES[name].share / shares
        run_apart(name, seconds, options)
    return summary(names, options.out)


def run_apart(name: str, seconds: float, options: argparse.Namespace) -> None:
    """Run a stage in a process of its own; write down how it ended where it could not."""
    command = [sys.executable, str(HERE / "run.py"), name, "--out", str(options.out)]
    command += ["--seconds", str(seconds)]
    command += ["--dry-run"] if options.dry_run else ["--device", options.device]
    print(f"== {name}: {seconds / 60:.1f} minutes", flush=True)
    started = time.time()
    try:
        status = subprocess.run(command, check=False, timeout=seconds + GRACE).returncode
        problem = f"its process ended with status {status}"
    except subprocess.TimeoutExpired:
        status, problem = 1, f"it was stopped {GRACE:.0f} s after its {seconds / 60:.1f} minutes"
    file = options.out / f"{name}.json"
    fresh = file.is_file() and file.stat().st_mtime >= started - 1
    if status and not (fresh and read_result(file)["error"]):
        context = make_context(options, 0.0)
        context.save(name, context.earlier(name), f"{name}: {problem}")


def make_context(options: argparse.Namespace, seconds: float) -> Context:
    """Return what a stage gets."""
    deadline = time.monotonic() + seconds
    out = options.out.resolve()
    return Context(out, options.device, deadline, options.dry_run, ROOT)


def run_here(name: str, options: argparse.Namespace) -> int:
    """Run one stage in this process; store its results and write down why it failed, if it does."""
    context = make_context(options, options.seconds)
    try:
        if options.device == "cuda":
            import torch

            if not torch.cuda.is_available():
                raise RuntimeError("no CUDA device was found. Use --dry-run on a CPU.")
        load(name).run(context)
    except NoTimeError as error:
        context.save(name, context.earlier(name), str(error))
        return 1
    except Exception as error:
        traceback.print_exc()
        lines = f"{type(error).__name__}: {error}".strip().splitlines()
        context.save(name, context.earlier(name), "\n".join(lines[:20]))
        return 1
    return 0


def summary(names: list[str], out: Path) -> int:
    """Print a short table of how the stages ended; return 1 if one failed or all had no time."""
    from rich.console import Console
    from rich.table import Table

    table, outcomes = Table("stage", "outcome", "results"), []
    for name in names:
        file = out / f"{name}.json"
        record: dict[str, Any] = read_result(file) if file.is_file() else {"error": "no results"}
        outcome = "ran" if record["error"] is None else record["error"].splitlines()[0]
        outcomes.append(outcome)
        table.add_row(name, outcome, _headline(name, record.get("result")))
    Console(width=int(os.environ.get("COLUMNS", 100))).print(table)
    late = sum(outcome.startswith(NO_TIME) for outcome in outcomes)
    failed = len(names) - late - outcomes.count("ran")
    return int(failed > 0 or late == len(names))


def _headline(name: str, result: Any) -> str:
    """Return what a stage says of its results in a line; nothing if it cannot."""
    try:
        text: str = load(name).headline(result)
        return text
    except Exception as error:  # its own failure stands beside it
        return f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    sys.exit(main())
