"""What a training step costs: plain loop, module without penalties, module with penalties.

``python tools/step_cost.py --backbone resnet20 --kinds filter channel shape depth``

The three take turns after every step (A B C, C B A, ...), on the same images, which are in memory
already; so drifts of the machine's speed hit all alike. A step is all from one batch to the next.
Printed are the medians, the median and quartiles of the step-by-step ratios, and the time inside
the proximal step itself. Run it on an idle machine. ``ssl-lightning benchmark training`` compares
penalties with each other, in plain loops.
"""

from __future__ import annotations

import argparse
import statistics
import time
from contextlib import ExitStack
from typing import Any

import torch

from ssl_lightning import SSLLightningModule, create_backbone
from ssl_lightning.measure.engine import quiet
from ssl_lightning.measure.training_loop import TrainingLoop, small_steps
from ssl_lightning.measure.turns import Turns, quartiles, take_steps
from ssl_lightning.publishing.stepping import TrainingSteps

PATTERNS = {"depth": "layer*.conv?"}
WARMUP = 2
PLAIN, MODULE, PENALISED = NAMES = ("plain loop", "module", "module with penalties")


class PlainSteps:
    """A plain loop, with the seconds that it spent so far."""

    def __init__(self, loop: TrainingLoop) -> None:
        self.loop, self.whole_seconds = loop, 0.0

    def __call__(self) -> None:
        """Make one step."""
        start = time.perf_counter()
        self.loop()
        self.whole_seconds += time.perf_counter() - start


def training_module(
    options: argparse.Namespace, penalties: list[Any], proximal: list[float]
) -> SSLLightningModule:
    """Return a module that notes how many milliseconds each of its proximal steps takes."""
    module = SSLLightningModule(
        create_backbone(options.backbone),
        penalties=penalties,
        optimizer=small_steps,
        channels_last=True,
    )
    step = module.sparsity.regularizer.proximal_step_

    def timed(*arguments: Any) -> None:
        start = time.perf_counter()
        step(*arguments)
        proximal.append(1e3 * (time.perf_counter() - start))

    module.sparsity.regularizer.proximal_step_ = timed if penalties else step
    return module


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--backbone", default="resnet20")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--kinds", nargs="+", default=["filter", "channel", "shape", "depth"])
    parser.add_argument("--precision", default="32-true", choices=["32-true", "bf16-mixed"])
    parser.add_argument("--steps", type=int, default=60)
    options = parser.parse_args()
    penalties = [
        {"kind": kind, "strength": 1e-5, "layers": PATTERNS.get(kind, "*")}
        for kind in options.kinds
    ]
    net = create_backbone(options.backbone)
    images = torch.randn(options.batch_size, *net.input_shape)
    batch = images, torch.arange(options.batch_size) % 10
    autocast = torch.bfloat16 if options.precision == "bf16-mixed" else None
    proximal: list[float] = []
    threads = torch.get_num_threads()
    with quiet(), ExitStack() as stack:
        steps: dict[str, Any] = {PLAIN: PlainSteps(TrainingLoop(net, batch, autocast=autocast))}
        for name, given in ((MODULE, []), (PENALISED, penalties)):
            module = training_module(options, given, proximal)
            trainer = TrainingSteps(module, batch, options.precision, threads)
            steps[name] = stack.enter_context(trainer)
        turns = take_steps(
            steps,
            repeats=options.steps - WARMUP,
            warmup=WARMUP,
            clock=lambda: sum(step.whole_seconds for step in steps.values()),
        )
    report(options, turns, proximal[WARMUP:])


def report(options: argparse.Namespace, turns: Turns[str], proximal: list[float]) -> None:
    """Print medians and ratios."""
    print(f"{options.backbone}, batch {options.batch_size}, {options.precision}, ", end="")
    print(f"{torch.get_num_threads()} threads, penalties on {', '.join(options.kinds)}, ", end="")
    print(f"{len(turns.samples[PLAIN])} steps each")
    for name in NAMES:
        print(f"{name:<24}{statistics.median(turns.samples[name]):9.2f} ms")
    share = [p / s for p, s in zip(proximal, turns.samples[PENALISED], strict=True)]
    low, middle, high = quartiles(share)
    print(f"proximal step alone: {statistics.median(proximal):.2f} ms, ", end="")
    print(f"{100 * middle:.2f} % of its step (quartiles {100 * low:.2f} to {100 * high:.2f})")
    for name, base in ((MODULE, PLAIN), (PENALISED, MODULE)):
        low, middle, high = quartiles(turns.ratios(name, base))
        print(f"{name} / {base}: {middle:.3f} (quartiles {low:.3f} to {high:.3f})")


if __name__ == "__main__":
    main()
