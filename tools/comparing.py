"""What comparisons share: a run of a given network, results that a stop does not lose, tables."""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from ssl_lightning import SSLLightningModule
from ssl_lightning.zoo.wording import table

Row = dict[str, Any]
KEYS = ("network", "length", "way", "macs", "seed")
"""What a run is known by."""


def parser_of(text: str | None, ways: Sequence[str], results: str) -> argparse.ArgumentParser:
    """Return a parser with the options that comparisons share."""
    parser = argparse.ArgumentParser(
        description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ways", nargs="+", default=list(ways), choices=ways, metavar="WAY")
    parser.add_argument("--macs", type=float, default=0.5)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--precision", default="32-true", help="bf16-mixed where it is faster")
    parser.add_argument("--results", type=Path, default=Path(results))
    parser.add_argument("--table", action="store_true", help="print what there is")
    return parser


def stored(path: Path) -> list[Row]:
    """Return the runs that a file holds."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def carry_out(runs: Iterable[Row], train: Callable[..., Row], path: Path) -> None:
    """Train the runs that the file does not hold, and add a line for each."""
    warnings.simplefilter("ignore")
    path.parent.mkdir(parents=True, exist_ok=True)
    done = {tuple(row[key] for key in KEYS) for row in stored(path)}
    for run in runs:
        if tuple(run[key] for key in KEYS) in done:
            continue
        try:
            row = train(**run)
        except ValueError as error:  # a large strength may end in NaN
            print(f"{run}: {error}", flush=True)
            continue
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(row, flush=True)


def measured(
    module: SSLLightningModule,
    data: pl.LightningDataModule,
    epochs: int,
    callbacks: Sequence[pl.Callback],
    **trainer_settings: Any,
) -> Row:
    """Train; return the errors after the last epoch in percent, what is left, and the seconds."""
    trainer = pl.Trainer(
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        callbacks=list(callbacks),
        **trainer_settings,
    )
    start = time.time()
    trainer.fit(module, data)
    seconds = time.time() - start
    trainer.limit_val_batches = 1.0
    (val,) = trainer.validate(module, data, verbose=False)
    (test,) = trainer.test(module, data, verbose=False)
    share = module.sparsity.macs_left()
    return {
        "val": round(val["val/error"], 3),
        "test": round(test["test/error"], 3),
        "macs_left": None if share is None else round(share, 2),
        "seconds": round(seconds),
    }


def tables(rows: list[Row], name_of: Callable[[str], str]) -> dict[str, str]:
    """Return means over seeds, with the spread, best first: a table for each network and cost."""
    found: dict[tuple[Any, ...], dict[str, list[Row]]] = {}
    for row in rows:
        place = row["network"], row["length"], row["macs"]
        found.setdefault(place, {}).setdefault(row["way"], []).append(row)
    return {
        f"{network} {length} {macs:g}": table_of(ways, name_of)
        for (network, length, macs), ways in sorted(found.items())
    }


def table_of(ways: Mapping[str, list[Row]], name_of: Callable[[str], str]) -> str:
    """Return one table."""
    lines = [
        (statistics.mean(r["val"] for r in runs), name_of(way), runs) for way, runs in ways.items()
    ]
    head = ("way", "seeds", "validation %", "test %")
    cells = [
        (name, len(runs), *(spread([r[split] for r in runs]) for split in ("val", "test")))
        for _, name, runs in sorted(lines, key=lambda line: line[0])
    ]
    return f"{table(head, cells)}\n"


def print_tables(rows: list[Row], name_of: Callable[[str], str]) -> None:
    """Print all tables with the marks between which they stand in docs."""
    for name, text in tables(rows, name_of).items():
        print(f"\n<!-- {name} -->\n{text}<!-- end -->")


def spread(values: list[float]) -> str:
    """Return mean and standard deviation; of one value, that."""
    mean = f"{statistics.mean(values):.2f}"
    return f"{mean} ± {statistics.stdev(values):.2f}" if len(values) > 1 else mean
