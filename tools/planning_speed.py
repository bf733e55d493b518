"""How long it takes to plan and compact a network, beside torch-pruning, in turns.

``python tools/planning_speed.py torchvision:resnet50 torchvision:mobilenet_v2``

Half of the groups of each network are zero. Ours is :func:`make_plan`, which analyses the graph and
compares the compact network with the dense one in float64 at several sizes, and what is left of
:func:`compact` when it follows at once, as in callbacks and commands. torch-pruning's is its
dependency graph, and a pruner with one step at half of the channels; it compares nothing. Medians
of the rounds; the ratio is of what both have done at the end, the smaller network. Needs the extra
``peers``; run it on an idle machine.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from ssl_lightning import create_backbone, make_plan, prune_
from ssl_lightning.compaction import carried_out

DEFAULT = ("resnet50", "mobilenet_v2", "swin_t", "vit_b_16")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("networks", nargs="*", default=[f"torchvision:{name}" for name in DEFAULT])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    heads = ("make_plan", "compact", "torch-pruning: graph", "its pruner and step", "ratio")
    table = Table("network", *heads, title=f"seconds, {options.threads} thread(s)")
    for name in options.networks:
        table.add_row(name, *row(name, options.rounds))
    Console(width=120).print(table)


def row(name: str, rounds: int) -> list[str]:
    """Return the cells of one network."""
    torch.manual_seed(0)
    net = create_backbone(name).eval()
    x = torch.randn(1, *net.input_shape)
    prune_(net, x, fraction=0.5, importance="l1")
    found: list[list[float]] = []
    failed = ""
    for _ in range(rounds):
        fresh = copy.deepcopy(net)  # nothing is known of it
        plan, planning = timed(lambda net=fresh: make_plan(net, x))
        _, compacting = timed(lambda net=fresh, plan=plan: carried_out(net, plan))
        theirs = [0.0, 0.0]
        try:
            theirs = torch_pruning(copy.deepcopy(net), x)
        except Exception as error:  # what it cannot do is said
            failed = f"{type(error).__name__}"
        found.append([planning, compacting, *theirs])
    plan_s, compact_s, graph, pruner = (
        statistics.median(column) for column in zip(*found, strict=True)
    )
    ratio = statistics.median((r[0] + r[1]) / (r[3] or float("inf")) for r in found)
    if failed:
        return [f"{plan_s:.2f}", f"{compact_s:.2f}", failed, failed, "-"]
    return [*(f"{s:.2f}" for s in (plan_s, compact_s, graph, pruner)), f"{ratio:.1f}"]


def torch_pruning(net: nn.Module, x: torch.Tensor) -> list[float]:
    """Return the seconds that the other library takes for its graph, and for all of it."""
    import torch_pruning as tp

    _, graph = timed(lambda: tp.DependencyGraph().build_dependency(net, x))
    heads = [m for m in net.modules() if isinstance(m, nn.Linear) and m.out_features == 1000]

    def prune() -> None:
        pruner = tp.pruner.MagnitudePruner(
            net,
            x,
            importance=tp.importance.MagnitudeImportance(),
            pruning_ratio=0.5,
            ignored_layers=heads,
        )
        pruner.step()

    return [graph, timed(prune)[1]]


def timed(call: Callable[[], object]) -> tuple[object, float]:
    """Return a call's result and its seconds."""
    start = time.perf_counter()
    result = call()
    return result, time.perf_counter() - start


if __name__ == "__main__":
    main()
