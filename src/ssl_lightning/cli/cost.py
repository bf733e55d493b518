"""benchmark training: what penalties cost in a training step, beside another library."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich.console import Console

from ssl_lightning.cli.records import check_output, finish
from ssl_lightning.measure.training import TrainingSetting, measure_training
from ssl_lightning.report.training import (
    TABLE_WIDTH,
    training_chart,
    training_reasons,
    training_table,
)

DEFAULT = TrainingSetting()


def training(
    backbone: list[str],
    kinds: list[str] = list(DEFAULT.kinds),  # noqa: B006 - read only
    modes: list[str] = list(DEFAULT.modes),  # noqa: B006
    batch_size: int = DEFAULT.batch_size,
    dtype: str = DEFAULT.dtype,
    steps: int = DEFAULT.steps,
    threads: int = DEFAULT.threads,
    device: str = DEFAULT.device,
    peers: bool = False,
    output: str | None = None,
) -> None:
    """Time training steps with and without penalties, in turns, and measure their memory.

    Args:
        backbone: names of networks, such as resnet20 or timm:mobilenetv3_small_100.
        kinds: kinds of groups, each alone and all together.
        modes: proximal, subgradient or both.
        batch_size: images of a step.
        dtype: float32, or bfloat16 (autocast).
        steps: timed steps of each form.
        threads: number of threads.
        device: cpu or cuda.
        peers: also time the regulariser of torch-pruning.
        output: JSON file to write; bars are drawn beside it as a PNG.
    """
    check_output(output)
    setting = TrainingSetting(kinds, modes, batch_size, dtype, steps, threads, peers, device)
    console = Console()

    def progress(line: str) -> None:
        console.print(line, highlight=False, markup=False)

    record = measure_training(backbone, setting, progress)
    finish(record, training_table(record), training_chart, output, TABLE_WIDTH)
    for line in training_reasons(record):
        progress(line)


COMMANDS: dict[str, Callable[..., None]] = {"training": training}
"""What may follow ``benchmark`` instead of a checkpoint."""

BY_HAND: dict[str, dict[str, dict[str, Any]]] = {
    "training": {
        "--backbone": {
            "nargs": "+",
            "required": True,
            "metavar": "NAME",
            "help": "networks, such as resnet20 timm:mobilenetv3_small_100",
        },
        "--kinds": {
            "nargs": "+",
            "metavar": "KIND",
            "default": list(DEFAULT.kinds),
            "help": "kinds of groups, each alone and all together",
        },
        "--modes": {
            "nargs": "+",
            "metavar": "MODE",
            "default": list(DEFAULT.modes),
            "help": "proximal, subgradient or both",
        },
    }
}
"""Command -> arguments that take several words, which a signature cannot express."""
