"""How much faster an entry of the zoo is than its dense network in the fastest engine.

``python tools/entry_speedup.py alexnet_imagenette_full --threads 1``

The entry runs compact, in each engine, and in the library's own kernels: each convolution in the
faster of its dense and column-sparse forms, as measured here, then ``for_inference``. The dense
network, with fresh weights, runs in all engines. All take turns on one random batch; printed are
medians, and the fastest dense time over each. Run it on an idle machine.
"""

from __future__ import annotations

import argparse

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from ssl_lightning import choose_layers, compact, create_backbone, for_inference, make_plan, zoo
from ssl_lightning.benchmark import interleave
from ssl_lightning.benchmark.engines import installed_engines, prepare
from ssl_lightning.benchmark.turns import num_threads

KERNELS = "own kernels"


def networks(name: str, root: str | None, x: Tensor) -> dict[tuple[str, str], nn.Module]:
    """Return (network, how it runs) -> network, for all engines and the library's kernels."""
    card = zoo.card(name, root)
    dense = create_backbone(card.backbone, **card.arguments).eval()
    entry = zoo.load(name, root=root).eval()
    sparse = compact(entry, choose_layers(entry, make_plan(entry, x))).eval()
    engines = installed_engines()
    return {
        **{("dense", engine): dense for engine in engines},
        ("dense", KERNELS): for_inference(dense, x),
        **{("entry", engine): entry for engine in engines},
        ("entry", KERNELS): for_inference(sparse, x),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("name", help="of an entry with weights")
    parser.add_argument("--root", help="folder of entries")
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=25)
    options = parser.parse_args()
    card = zoo.card(options.name, options.root)
    shape = create_backbone(card.backbone, **card.arguments).input_shape
    x = torch.randn(options.batch_size, *shape, generator=torch.Generator().manual_seed(0))
    with num_threads(options.threads), torch.inference_mode():
        calls = {
            key: prepare("eager" if key[1] == KERNELS else key[1], network, x)
            for key, network in networks(options.name, options.root, x).items()
        }
        timings = interleave(calls, repeats=options.repeats, warmup=3, min_run_time=0.02)
    best = min(t.median_ms for (network, _), t in timings.items() if network == "dense")
    table = Table("network", "engine", "ms", "x, fastest dense over this")
    for (network, engine), timing in timings.items():
        ms = timing.median_ms
        table.add_row(network, engine, f"{ms:.2f}", f"{best / ms:.2f}")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
