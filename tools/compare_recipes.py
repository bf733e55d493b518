"""What each part of a recipe is worth: ResNet-20 with half of its multiply-adds, retrained.

``python tools/compare_recipes.py --seeds 0``

Every recipe begins with the dense entry of the zoo, removes the same share of multiply-adds by
measured importance at once, and trains for 10 epochs on 45,000 images. Each differs from the first
in one part only. Runs are stored, continued and printed as those of ``compare_budgets.py`` are.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging

from comparing import Row, carry_out, measured, parser_of, print_tables, stored
from ssl_lightning import SSLLightningModule
from ssl_lightning.callbacks import Budget, Distill
from ssl_lightning.data import CIFAR10DataModule
from ssl_lightning.schedules import StageLR

NETWORK = "resnet20"
BACKBONE = "zoo:resnet20_cifar10_dense"
EPOCHS = 10
SGD = {"momentum": 0.9, "weight_decay": 5e-4, "nesterov": True}
RECIPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "distilled": {"weight": 0.9},
    "cutout": {"cutout": 8},
    "low_rate": {"rates": (0.01,)},
    "lower_rate": {"rates": (0.03,)},
    "averaged": {"decay": 0.999},
    "smoothed": {"smoothing": 0.1},
    "cycles": {"rates": (0.1, 0.1)},
    "distilled_half": {"weight": 0.5},
}
LABELS = {
    "plain": "one cycle from 0.1",
    "distilled": "distilled from the dense network, weight 0.9",
    "distilled_half": "distilled, weight 0.5",
    "cutout": "cutout of 8 pixels",
    "low_rate": "one cycle from 0.01, the paper's rate",
    "lower_rate": "one cycle from 0.03",
    "averaged": "exponential average of weights, 0.999 per step",
    "smoothed": "label smoothing 0.1",
    "cycles": "two cycles from 0.1",
}
"""What the tables call a recipe; all that it does not name is as in the first."""


def train(
    network: str, length: str, way: str, macs: float, seed: int, precision: Any, epochs: int
) -> Row:
    """Train once; return errors, cost and time."""
    recipe = RECIPES[way]
    rates = recipe.get("rates", (0.1,))
    pl.seed_everything(seed, verbose=False)
    module = SSLLightningModule(
        backbone=BACKBONE,
        channels_last=True,
        label_smoothing=recipe.get("smoothing", 0.0),
        optimizer=lambda p: torch.optim.SGD(p, lr=rates[0], **SGD),
        lr_scheduler=lambda o: StageLR(o, [epochs // len(rates)] * len(rates), rates),
    )
    callbacks: list[pl.Callback] = [Budget(macs=macs, end=0)]
    if "weight" in recipe:
        callbacks.append(Distill(BACKBONE, weight=recipe["weight"]))
    if "decay" in recipe:
        callbacks.append(EMAWeightAveraging(decay=recipe["decay"]))
    data = CIFAR10DataModule(
        source="local",
        batch_size=128,
        augment=True,
        cutout=recipe.get("cutout", 0),
        seed=seed,
        split_seed=0,
    )
    figures = measured(module, data, epochs, callbacks, precision=precision)
    place = {"network": network, "length": length, "way": way, "macs": macs, "seed": seed}
    return {**place, "precision": precision, **figures}


def main() -> None:
    """Run what is asked for."""
    parser = parser_of(__doc__, list(RECIPES), "runs/recipes/results.jsonl")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    args = parser.parse_args()
    if args.table:
        return print_tables(stored(args.results), LABELS.__getitem__)
    length = f"recipe{args.epochs}"
    runs = (
        {"network": NETWORK, "length": length, "way": way, "macs": args.macs, "seed": seed}
        for seed in args.seeds
        for way in args.ways
    )
    more = {"precision": args.precision, "epochs": args.epochs}
    return carry_out(runs, partial(train, **more), args.results)


if __name__ == "__main__":
    main()
