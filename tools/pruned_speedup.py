"""How much faster a pruned network is in fact, beside what its multiply-adds promise.

``python tools/pruned_speedup.py --engines all --batch_size 1 --threads 1``

Half of the coupled channels of torchvision's ResNet-50 are zeroed by :func:`prune_` (the weights
are random: speed does not depend on them); printed is the table of all engines, ``speed-up`` beside
its ``limit``. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import copy

import torch
from rich.console import Console

from ssl_lightning import benchmark, compact, create_backbone, make_plan, prune_
from ssl_lightning.report import RunReport, bar_chart, comparison_table, engine_chart, engine_table
from ssl_lightning.report.engines import reasons


def main() -> None:
    """Prune, compact, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--backbone", default="torchvision:resnet50")
    parser.add_argument("--fraction", type=float, default=0.5)
    parser.add_argument("--multiple", type=int, nargs="+", default=[16])
    parser.add_argument("--engines", nargs="+", default=["eager"])
    parser.add_argument("--batch_size", type=int, nargs="+", default=[1])
    parser.add_argument("--dtype", nargs="+", default=["float32"])
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--channels_last", action="store_true")
    parser.add_argument("--per_layer", action="store_true", help="and every layer, in eager")
    parser.add_argument("--output", help="folder for the record and the pictures")
    options = parser.parse_args()
    torch.manual_seed(0)
    dense = create_backbone(options.backbone).eval()
    x = torch.randn(1, *dense.input_shape)
    models = {"dense": dense}
    for multiple in options.multiple:
        pruned = copy.deepcopy(dense)
        prune_(pruned, x, fraction=options.fraction, multiple=multiple)
        models[f"of {multiple}"] = compact(pruned, make_plan(pruned, x))
    if options.channels_last:
        models = {name: m.to(memory_format=torch.channels_last) for name, m in models.items()}
        x = x.to(memory_format=torch.channels_last)
    result = benchmark(
        models,
        x,
        engines="all" if options.engines == ["all"] else options.engines,
        batch_size=options.batch_size,
        dtype=options.dtype,
        threads=options.threads,
        repeats=options.repeats,
        warmup=1,
        per_layer=options.per_layer,
    )
    title = f"{options.backbone}, {100 * options.fraction:.0f} % of coupled groups removed"
    report = RunReport(title, {}, {}, result)
    console = Console(width=124)
    for run in result.runs if options.per_layer else []:
        console.print(comparison_table(report, run))
    console.print(engine_table(report), *reasons(result))
    if options.output:
        report.save(f"{options.output}/report.json")
        bar_chart(report, f"{options.output}/report.png")
        engine_chart(report, f"{options.output}/report-engines.png")


if __name__ == "__main__":
    main()
