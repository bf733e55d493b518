"""How well latency is predicted and reached: what was asked for beside what is measured.

``python tools/latency_budget.py --networks torchvision:resnet18 --engines openvino onnxruntime``

Each network is pruned by :func:`prune_` to shares of its latency (the weights are random: speed
does not depend on them), compacted, and measured in turns with the dense one. Printed are the share
of the multiply-adds, predictions, measurements, how much of what the multiply-adds promise is won,
and how long the search took. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import copy
import time

import torch
from rich.console import Console
from rich.table import Table

from ssl_lightning import LatencyMeter, benchmark, compact, create_backbone, make_plan, prune_


def main() -> None:
    """Prune, compact, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--networks", nargs="+", default=["timm:mobilenetv3_small_100"])
    parser.add_argument("--engines", nargs="+", default=["openvino", "onnxruntime"])
    parser.add_argument("--budget", nargs="+", default=["latency=0.5"], help="or macs=0.5, say")
    parser.add_argument("--multiple", default="auto")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=25)
    parser.add_argument("--cache", help="folder of the table of layers; default: the user's")
    options = parser.parse_args()
    columns = ("network", "engine", "budget", "multiple", "MACs", "predicted first", "predicted")
    table = Table(*columns, "measured", "speed-up x MACs", "search, s")
    for name in options.networks:
        for engine in options.engines:
            for budget in options.budget:
                table.add_row(name, engine, budget, *row(name, engine, budget, options))
    Console(width=140).print(table)


def row(name: str, engine: str, budget: str, options: argparse.Namespace) -> list[str]:
    """Return the cells of one network, engine and budget."""
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    dense = create_backbone(name).eval()
    pruned, x = copy.deepcopy(dense), torch.randn(1, *dense.input_shape)
    start = time.perf_counter()
    resource, _, value = budget.partition("=")
    cache = options.cache or True
    meter = LatencyMeter(pruned, x, engine, threads=options.threads, cache=cache)
    multiple = "auto" if options.multiple == "auto" else int(options.multiple)
    goal = {resource: float(value)}
    report = prune_(pruned, x, budget=goal, engine=meter, multiple=multiple)
    seconds = time.perf_counter() - start
    small = compact(pruned, make_plan(pruned, x)).eval()
    settings = {"threads": options.threads, "repeats": options.repeats, "per_layer": False}
    settings["min_run_time"] = 0.03  # single calls of a millisecond vary by 10 %
    run = benchmark({"dense": dense, "small": small}, x, engines=engine, **settings).run()
    timings = run.engines[engine]
    measured = timings["small"].ratio / timings["dense"].ratio
    macs = report.macs[1] / report.macs[0]
    latency = report.latency
    shares = (
        [f"{check.predicted / latency.dense_ms:.3f}" for check in (latency.first, latency.found)]
        if latency
        else [f"{meter(small) / meter.dense_ms:.3f}", ""]
    )
    if latency and latency.first != latency.found:
        shares[0] += f" ({latency.first.measured / latency.dense_ms:.3f})"
    cells = [str(report.multiple), f"{macs:.3f}", *shares, f"{measured:.3f}"]
    return [*cells, f"{macs / measured:.2f}", f"{seconds:.0f}"]


if __name__ == "__main__":
    main()
