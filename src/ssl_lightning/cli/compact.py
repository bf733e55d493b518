"""compact: from a checkpoint to a smaller network on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from rich.console import Console

from ssl_lightning.cli.examples import program, suggest
from ssl_lightning.cli.network import load_trained
from ssl_lightning.cli.parse import call
from ssl_lightning.cli.sources import print_change, sizes_of
from ssl_lightning.cli.tables import say
from ssl_lightning.compaction import Plan, carried_out, choose_layers, make_plan, save_compact
from ssl_lightning.suggest import reasons

MOST_REASONS = 3


def run(name: str, arguments: list[str]) -> None:
    """Carry out the command."""
    call(compact_checkpoint, name, arguments)


def compact_checkpoint(
    checkpoint: str,
    output: str | None = None,
    prefer: Literal["dense", "auto"] = "dense",
    model: str | None = None,
    config: str | None = None,
) -> None:
    """Write the smaller network that computes the same function as a checkpoint.

    Args:
        checkpoint: file that ``fit`` wrote.
        output: folder to write to; default: ``compact`` beside the checkpoint's folder.
        prefer: ``auto`` measures each convolution that still has zero columns, dense and
            column-sparse, and takes what is faster on this machine with its present threads;
            ``dense`` uses ordinary convolutions, which run anywhere.
        model: import path of the network's class, such as ``my_package.MyNetwork``, if it is your
            own; it is called with the arguments that the checkpoint holds.
        config: instead, the config that it was trained with, whose ``model.backbone`` is used.
    """
    console = Console()
    trained = load_trained(checkpoint, model, config)
    example = torch.zeros(1, *trained.model.input_shape)  # type: ignore[misc]
    plan = make_plan(trained.model, example)
    if prefer == "auto":
        plan = choose_layers(trained.model, plan)
    small = carried_out(trained.model, plan)
    folder = Path(output) if output else Path(checkpoint).parent.parent / "compact"
    recipe = trained.recipe(plan)
    save_compact(folder, small, recipe.plans, recipe.backbone, recipe.arguments)
    before, after = sizes_of(trained.original(), example), sizes_of(small, example)
    print_change(console, before, after)
    for note in plan.notes:
        console.print(f"note: {note}")
    if before == after:
        say(why_nothing(plan, checkpoint))
    say(f"The outputs of both networks agree. Wrote {folder}")
    if before != after:
        suggest(f"benchmark {checkpoint}", f"export {folder}")


def why_nothing(plan: Plan, checkpoint: str) -> str:
    """Say why nothing was removed, and what would help."""
    stuck = {name: slices.reason for name, slices in plan.modules.items() if slices.idle}
    found = "; ".join(reasons(stuck, "zeros remain in")[:MOST_REASONS])
    why = found or "no filter, channel or neuron is zero"
    return (
        f"Nothing was removed: {why}. Train with a budget (`fit --budget.macs 0.5`) or penalties "
        f"and ThresholdPruning, or remove channels now: {program()} prune {checkpoint} --macs 0.5"
    )
