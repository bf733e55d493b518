"""An example of each command, which its help shows. Those that train or measure need no download.

They belong together: ``fit`` trains what ``compact``, ``benchmark`` and others are shown with.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

PROGRAM = "ssl-lightning"
CHECKPOINT = "runs/default/checkpoints/last.ckpt"
MNIST_ENTRIES = "zoo:lenet_mnist_filter_channel --dense zoo:lenet_mnist_dense"
CIFAR_ENTRIES = "zoo:resnet20_cifar10_channel --dense zoo:resnet20_cifar10_dense"
EXAMPLES: dict[str, str] = {
    "fit": "fit --data MNISTDataModule --budget.macs 0.5 --trainer.max_epochs 6",
    "validate": f"validate --config runs/default/config.yaml --ckpt_path {CHECKPOINT}",
    "test": f"test --config runs/default/config.yaml --ckpt_path {CHECKPOINT}",
    "predict": f"predict --config runs/default/config.yaml --ckpt_path {CHECKPOINT}",
    "compact": f"compact {CHECKPOINT}",
    "sensitivity": f"sensitivity {CHECKPOINT}",
    "prune": "prune zoo:lenet_mnist_dense --macs 0.5 --output runs/pruned",
    "benchmark": f"benchmark {CHECKPOINT}",
    "benchmark paper-table4": (
        "benchmark paper-table4 --configurations 2 --layers conv3 --output runs/table4.json"
    ),
    "benchmark break-even": "benchmark break-even --layer conv3 --output runs/break_even.json",
    "benchmark training": "benchmark training --backbone resnet20 --kinds filter coupled",
    "benchmark int8": f"benchmark int8 {CHECKPOINT}",
    "evaluate": f"evaluate calibration {MNIST_ENTRIES} --data mnist --split test",
    "evaluate calibration": f"evaluate calibration {MNIST_ENTRIES} --data mnist --split test",
    "evaluate corruption": f"evaluate corruption {CIFAR_ENTRIES} --limit 500",
    "evaluate transfer": f"evaluate transfer {CIFAR_ENTRIES} --to mnist --num_train 1000",
    "export": "export zoo:lenet_mnist_filter_channel --output runs/lenet.onnx",
    "report": "report runs/default",
    "sparsify": (
        "sparsify --model.backbone zoo:lenet_mnist_dense --data MNISTDataModule \\\n"
        "    --budget.macs 0.5 --epochs 6 --controls"
    ),
    "compare": (
        "compare --model.backbone lenet --data MNISTDataModule --budget.macs 0.1 --epochs 3 \\\n"
        "    --ways measured magnitude random --seeds 0 1 2"
    ),
    "sweep": (
        "sweep --config configs/quickstart.yaml --space configs/sweep/lenet_strength.yaml \\\n"
        "    --output runs/sweep"
    ),
    "zoo": "zoo list",
    "zoo list": "zoo list",
    "zoo show": "zoo show lenet_mnist_filter_channel",
    "zoo verify": "zoo verify lenet_mnist_filter_channel",
    "zoo publish": "zoo publish runs/seed0 runs/seed1 runs/seed2 --name mine",
    "zoo control": "zoo control mine magnitude=runs/m0,runs/m1 random=runs/r0,runs/r1",
    "zoo evaluation": "zoo evaluation mine calibration.json corruption.json",
    "zoo pages": "zoo pages mine",
    "zoo site": "zoo site --output zoo.html",
    "zoo push": "zoo push mine USER/REPOSITORY",
    "zoo pull": "zoo pull USER/REPOSITORY my_zoo",
}
"""Command -> arguments, which run as they are written."""
NOTES: dict[str, str] = {
    "fit": f"It writes {CHECKPOINT} and config.yaml in runs/default.",
    "sweep": "The two files are in the repository.",
    "evaluate corruption": "CIFAR-10 is read from SSL_DATA_DIR, or else from ./data.",
}
"""Command -> a sentence behind its example."""


def program() -> str:
    """Return how the command line was called, so that what is suggested can be copied."""
    if sys.argv[0].rpartition(os.sep)[2] != "cli.py":
        return PROGRAM
    here = Path(sys.argv[0]).parent / ".venv"
    own = Path(sys.prefix).resolve() == here.resolve()  # that of the checkout, not activated
    return f"{here / 'bin' / 'python' if own else 'python'} {sys.argv[0]}"


def suggest(*commands: str) -> None:
    """Print the commands that a user may want next."""
    sys.stdout.write(f"Next: {', or '.join(f'{program()} {each}' for each in commands)}\n")


def shown(command: str) -> str:
    r"""Return the last lines of a command's help; nothing if it has no example.

    Example:
        >>> shown("zoo pages")
        '\nexample:\n  ssl-lightning zoo pages mine\n'
    """
    if command not in EXAMPLES:
        return ""
    note = f"  {NOTES[command]}\n" if command in NOTES else ""
    return f"\nexample:\n  {program()} {EXAMPLES[command]}\n{note}"
