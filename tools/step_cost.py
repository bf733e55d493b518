"""What a training step costs: plain loop, module without penalties, module with penalties.

``python tools/step_cost.py --backbone resnet20 --kinds filter channel shape depth``

The three train in threads of one process that take turns after every step (A B C, C B A, ...), on
the same images, which are in memory already; so drifts of the machine's speed hit all alike. A
step is all from one batch to the next. Printed are the medians, the median and quartiles of the
step-by-step ratios, and the time inside the proximal step itself. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import threading
import time
import warnings
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F

from ssl_lightning import SSLLightningModule, create_backbone

PATTERNS = {"depth": "layer*.conv?"}
PROXIMAL: list[float] = []  # seconds of every proximal step


def make_optimizer(parameters: Any) -> torch.optim.Optimizer:
    """Return the optimizer of all three."""
    return torch.optim.SGD(parameters, lr=1e-3, momentum=0.9, weight_decay=1e-4)


class Turns:
    """Lets the loops of several threads make one step each in turn, and times the steps.

    The order is reversed after every round (A B C, C B A, ...), since a step is slower or faster
    by what ran before it.
    """

    def __init__(self, number: int, steps: int) -> None:
        self.steps = steps
        self.round = list(range(number))
        self.order = list(self.round)
        self.changed = threading.Condition()
        self.times: list[list[float]] = [[] for _ in range(number)]

    def batches(self, who: int, batch: Any) -> Any:
        """Yield the batch once per step, each time when it is this loop's turn."""
        for _ in range(self.steps):
            with self.changed:
                self.changed.wait_for(lambda: self.order[0] == who)
            start = time.perf_counter()
            yield batch
            self.times[who].append(time.perf_counter() - start)
            with self.changed:
                self.order.pop(0)
                self.start_round()
                self.changed.notify_all()

    def start_round(self) -> None:
        """Begin the next round, in reversed order, if this one is over."""
        if not self.order:
            self.round.reverse()
            self.order = list(self.round)

    def leave(self, who: int) -> None:
        """Let the others continue without this loop (trainers do not ask for a batch too many)."""
        with self.changed:
            self.round = [other for other in self.round if other != who]
            self.order = [other for other in self.order if other != who]
            self.start_round()
            self.changed.notify_all()


class Batches:
    """What a loop trains on: an iterable with a length, as the trainer wants it."""

    def __init__(self, turns: Turns, who: int, batch: Any) -> None:
        self.turns, self.who, self.batch = turns, who, batch

    def __len__(self) -> int:
        return self.turns.steps

    def __iter__(self) -> Any:
        return self.turns.batches(self.who, self.batch)


def train_module(options: argparse.Namespace, penalties: list[Any], batches: Batches) -> None:
    """Train an SSLLightningModule, writing down how long its proximal steps take."""
    module = SSLLightningModule(
        create_backbone(options.backbone),
        penalties=penalties,
        optimizer=make_optimizer,
        channels_last=True,
    )
    step = module.sparsity.regularizer.proximal_step_

    def timed(*arguments: Any) -> None:
        start = time.perf_counter()
        step(*arguments)
        PROXIMAL.append(time.perf_counter() - start)

    module.sparsity.regularizer.proximal_step_ = timed if penalties else step
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        precision=options.precision,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, batches)


def train_plainly(options: argparse.Namespace, batches: Batches) -> None:
    """Train by a hand-written loop under the same settings."""
    model = create_backbone(options.backbone).to(memory_format=torch.channels_last).train()
    optimizer = make_optimizer(model.parameters())
    mixed = options.precision == "bf16-mixed"
    for x, y in batches:
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            loss = F.cross_entropy(model(x.to(memory_format=torch.channels_last)), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--backbone", default="resnet20")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--kinds", nargs="+", default=["filter", "channel", "shape", "depth"])
    parser.add_argument("--precision", default="32-true", choices=["32-true", "bf16-mixed"])
    parser.add_argument("--steps", type=int, default=60)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    penalties = [
        {"kind": kind, "strength": 1e-5, "layers": PATTERNS.get(kind, "*")}
        for kind in options.kinds
    ]
    shape = create_backbone(options.backbone).input_shape
    batch = (torch.randn(options.batch_size, *shape), torch.arange(options.batch_size) % 10)
    turns = Turns(3, options.steps)
    loops = [
        lambda: train_plainly(options, Batches(turns, 0, batch)),
        lambda: train_module(options, [], Batches(turns, 1, batch)),
        lambda: train_module(options, penalties, Batches(turns, 2, batch)),
    ]

    def run(who: int) -> None:
        try:
            loops[who]()
        finally:
            turns.leave(who)

    threads = [threading.Thread(target=run, args=(who,)) for who in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    report(options, [times[2:] for times in turns.times])


def report(options: argparse.Namespace, times: list[list[float]]) -> None:
    """Print medians and ratios."""
    print(f"{options.backbone}, batch {options.batch_size}, {options.precision}, ", end="")
    print(f"{torch.get_num_threads()} threads, penalties on {', '.join(options.kinds)}, ", end="")
    print(f"{len(times[0])} steps each")
    names = ("plain loop", "module", "module with penalties")
    for name, values in zip(names, times, strict=True):
        print(f"{name:<24}{1e3 * statistics.median(values):9.2f} ms")
    share = [p / s for p, s in zip(PROXIMAL[2:], times[2], strict=False)]
    low, middle, high = statistics.quantiles(share, n=4)
    print(f"proximal step alone: {1e3 * statistics.median(PROXIMAL):.2f} ms, ", end="")
    print(f"{100 * middle:.2f} % of its step (quartiles {100 * low:.2f} to {100 * high:.2f})")
    for a, b in ((1, 0), (2, 1)):
        ratios = [p / q for p, q in zip(times[a], times[b], strict=False)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(f"{names[a]} / {names[b]}: {middle:.3f} (quartiles {low:.3f} to {high:.3f})")


if __name__ == "__main__":
    main()
