"""Is the automatic choice between dense and column-sparse ever slower than dense?

``python tools/auto_choice.py --sparsities 0 0.1 0.2 --batch_size 1 16 --threads 1``

For each convolution of AlexNet, LeNet and ConvNet, alone on an input of its own shape: as many
random rows and columns are zeroed, ``choose_layers`` decides, and its choice takes turns with the
dense layer. Printed is the median of the ratios, choice over dense, and their spread. Run it
on an idle machine.
"""

from __future__ import annotations

import argparse
import copy
from itertools import product

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from ssl_lightning import Plan, choose_layers, compact, create_backbone
from ssl_lightning.compaction.sparse import layer_inputs
from ssl_lightning.measure import interleave
from ssl_lightning.measure.sparse import zero_
from ssl_lightning.measure.turns import num_threads


def layers_of(backbone: str, batch_size: int) -> dict[str, tuple[nn.Conv2d, torch.Tensor]]:
    """Return name -> convolution and what reaches it."""
    torch.manual_seed(0)
    net = create_backbone(backbone).eval()
    with torch.no_grad():
        inputs = layer_inputs(net, (torch.randn(batch_size, *net.input_shape),))
    return {f"{backbone} {name}": (net.get_submodule(name), x) for name, x in inputs.items()}


def measure(conv: nn.Conv2d, x: torch.Tensor, repeats: int) -> tuple[str, float, float]:
    """Return the form that is chosen, and its time over the dense one's with the spread."""
    net = nn.Sequential(conv)
    plan = choose_layers(net, Plan({}, (tuple(x.shape),), ("float32",)))  # removes nothing
    chosen = compact(net, plan).eval()
    calls = {"dense": lambda: net(x), "chosen": lambda: chosen(x)}
    with torch.inference_mode():
        timing = interleave(calls, repeats=repeats, warmup=2, min_run_time=0.002)["chosen"]
    return "column-sparse" if plan.sparse else "dense", timing.ratio, timing.ratio_iqr


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--backbones", nargs="+", default=["alexnet", "lenet", "convnet"])
    parser.add_argument("--sparsities", type=float, nargs="+", default=[0.0, 0.1, 0.2])
    parser.add_argument("--batch_size", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--repeats", type=int, default=25)
    options = parser.parse_args()
    table = Table("layer", "batch", "threads", "zero %", "choice", "over dense")
    worst = 0.0
    for threads, size, backbone in product(options.threads, options.batch_size, options.backbones):
        with num_threads(threads):
            layers = layers_of(backbone, size)
            for name, sparsity in product(layers, options.sparsities):
                conv, x = copy.deepcopy(layers[name][0]), layers[name][1]
                zero_(conv, sparsity, sparsity)
                choice, ratio, spread = measure(conv, x, options.repeats)
                worst = max(worst, ratio)
                cells = (name, size, threads, f"{100 * sparsity:.0f}", choice)
                table.add_row(*map(str, cells), f"{ratio:.3f} ± {spread:.3f}")
    Console(width=100).print(table, f"worst: {worst:.3f}")


if __name__ == "__main__":
    main()
