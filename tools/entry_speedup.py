"""How much faster an entry of the zoo is than its dense network, each in its fastest engine.

``python tools/entry_speedup.py alexnet_imagenette_full --threads 1``

The entry runs compact, and with the library's kernels: each convolution in the faster of its dense
and column-sparse forms, as measured here, then ``for_inference``. The dense network has fresh
weights. All take turns on one random batch, in all engines. Run it on an idle machine.
"""

from __future__ import annotations

import argparse

import torch
from rich.console import Console

from ssl_lightning import (
    benchmark,
    choose_layers,
    compact,
    create_backbone,
    for_inference,
    make_plan,
    zoo,
)
from ssl_lightning.report import RunReport, engine_table
from ssl_lightning.report.engines import reasons


def main() -> None:
    """Load, choose, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("name", help="of an entry with weights")
    parser.add_argument("--root", help="folder of entries")
    parser.add_argument("--engines", nargs="+", default=["all"])
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=25)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    card = zoo.card(options.name, options.root)
    dense = create_backbone(card.backbone, **card.arguments).eval()
    entry = zoo.load(options.name, root=options.root).eval()
    x = torch.randn(options.batch_size, *dense.input_shape)
    sparse = compact(entry, choose_layers(entry, make_plan(entry, x))).eval()
    models = {
        "dense": dense,
        "dense, kernels": for_inference(dense, x),
        "entry": entry,
        "entry, kernels": for_inference(sparse, x),
    }
    result = benchmark(
        models,
        x,
        engines="all" if options.engines == ["all"] else options.engines,
        threads=options.threads,
        repeats=options.repeats,
        per_layer=False,
    )
    console = Console(width=124)
    console.print(engine_table(RunReport(options.name, {}, {}, result)), *reasons(result))


if __name__ == "__main__":
    main()
