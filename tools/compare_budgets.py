"""Which way to a budget is best: the same network, cost and epochs, several seeds.

``python tools/compare_budgets.py resnet20 short --ways one_shot gradual --seeds 0 1 2``

Each run is a line of ``runs/budgets/results.jsonl``; runs that are there are not made again, so
that the same command continues after an interruption. ``--table`` prints what there is. Errors are
of the last epoch, in percent, on the validation split (by which ways are compared) and on the test
split. ``mobilenetv3`` begins with what ``configs/mobilenetv3_small_imagenette_dense.yaml`` trained.
"""

from __future__ import annotations

import statistics
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F

from comparing import Row, carry_out, measured, parser_of, print_tables, stored
from dual_averaging import DualAveraging, DualPenalty
from ssl_lightning import SSLLightningModule, sensitivity
from ssl_lightning.callbacks import Budget
from ssl_lightning.cli.sources import named_network
from ssl_lightning.data import CIFAR10DataModule, ImagenetteDataModule, MNISTDataModule
from ssl_lightning.schedules import StageLR
from steering import Steered

COUPLED = {"kind": "coupled"}
WAYS: dict[str, dict[str, Any]] = {
    "measured": {"method": "one_shot", "importance": "measured", "at_once": True},
    "recorded": {"method": "one_shot", "importance": "recorded", "at_once": True},
    "one_shot": {"method": "one_shot", "importance": "l2", "at_once": True},
    "one_shot_l1": {"method": "one_shot", "importance": "l1", "at_once": True},
    "one_shot_later": {"method": "one_shot", "importance": "l2"},
    "random": {"method": "one_shot", "importance": "random", "at_once": True},
    "gradual": {"method": "gradual", "importance": "l2"},
    "gradual_measured": {"method": "gradual", "importance": "measured"},
    "fading": {"method": "fading", "importance": "l2"},
    "lasso": {"method": "steered", "penalties": [COUPLED]},
    "mcp": {"method": "steered", "penalties": [COUPLED | {"function": "mcp"}]},
    "lasso_held": {"method": "held", "penalties": [COUPLED]},
    "mcp_held": {"method": "held", "penalties": [COUPLED | {"function": "mcp"}]},
    "dual": {"method": "one_shot", "penalties": [COUPLED | {"mode": "subgradient"}]},
    "dense": {},
}
for way in ("lasso", "mcp", "lasso_held", "mcp_held", "dual"):
    WAYS[way]["importance"] = "l2"  # what a penalty has brought near zero goes
LABELS = {
    "measured": "**measured, at once** (the default)",
    "recorded": "by a record of the loss, at once",
    "one_shot": "l2 norms, at once",
    "one_shot_l1": "l1 norms, at once",
    "one_shot_later": "l2 norms, after the window",
    "random": "random groups, at once",
    "gradual": "gradual, l2 norms",
    "gradual_measured": "gradual, measured",
    "fading": "fading, l2 norms",
    "lasso": "steered group lasso",
    "mcp": "steered MCP",
    "lasso_held": "steered group lasso, norms held",
    "mcp_held": "steered MCP, norms held",
    "dual": "dual averaging",
    "dense": "dense, trained as long",
}
"""What the tables call a way."""
STRENGTHS = (1e-4, 3e-4, 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3e-2)
WAYS |= {
    f"constant_{strength:g}": {
        "method": "one_shot",
        "importance": "l2",
        "penalties": [COUPLED | {"strength": strength}],
    }
    for strength in STRENGTHS
}
"""A strength chosen by hand, constant in the window; at its end the budget decides what goes."""
NETWORKS: dict[str, dict[str, Any]] = {
    "resnet20": {
        "module": {"backbone": "zoo:resnet20_cifar10_dense", "label_smoothing": 0.0},
        "sgd": {"lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4, "nesterov": True},
        "data": partial(CIFAR10DataModule, source="local", batch_size=128, augment=True),
        "batches": 352,
    },
    "mobilenetv3": {
        "module": {
            "backbone": "timm:mobilenetv3_small_100",
            "backbone_args": {"num_classes": 10},
            "init_from": "runs/mobilenetv3_small_imagenette_dense/checkpoints/last.ckpt",
            "input_shape": (3, 96, 96),
            "label_smoothing": 0.1,
        },
        "adamw": {"lr": 6e-4, "weight_decay": 0.05},
        "data": partial(ImagenetteDataModule, source="local", batch_size=64, image_size=96),
        "batches": 133,
    },
    "lenet": {
        "module": {"backbone": "zoo:lenet_mnist_dense"},
        "sgd": {"lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4},
        "data": partial(MNISTDataModule, source="local", batch_size=128),
        "batches": 430,
    },
}
BATCHES = 6
"""Training batches on which sensitivities are measured."""
LENGTHS = {"trial": (1, 1, 13), "short": (3, 4, 80), "long": (8, 12, 1.0)}
"""Epochs of the window and after it, and batches per epoch (1.0: all)."""


def measured_record(network: str, folder: Path) -> str:
    """Return the file of the network's sensitivities: the training loss, set by set."""
    path = folder / f"{network}_sensitivity.json"
    if not path.exists():
        model = named_network(NETWORKS[network]["module"]["backbone"])
        data = NETWORKS[network]["data"](seed=7, split_seed=0)
        data.prepare_data()
        batches = list(islice(data.train_dataloader(), BATCHES))

        @torch.no_grad()
        def loss(thinned: torch.nn.Module) -> float:
            return statistics.mean(float(F.cross_entropy(thinned(x), y)) for x, y in batches)

        shares = [i / 8 for i in range(1, 8)]
        sensitivity(model.model.eval(), model.example(), loss, shares=shares).save(path)
    return str(path)


def optimizer_for(settings: dict[str, Any], way: str) -> tuple[Any, dict[str, Any]]:
    """Return an optimizer's class and arguments."""
    if "adamw" in settings:
        return torch.optim.AdamW, settings["adamw"]
    sgd = settings["sgd"]
    if way == "dual":  # a step of it is as long as all that follows from one of SGD's gradients
        return DualAveraging, {
            "lr": sgd["lr"] * 10,
            "momentum": sgd["momentum"],
            "weight_decay": sgd["weight_decay"],
        }
    return torch.optim.SGD, sgd


def module_of(network: str, choice: dict[str, Any], way: str, stages: list[int]) -> Any:
    """Return the module that a way trains, with a cycle of the learning rate for each stage."""
    settings = NETWORKS[network]
    make, arguments = optimizer_for(settings, way)
    return SSLLightningModule(
        **settings["module"],
        channels_last=network != "lenet",
        penalties=choice.pop("penalties", []),
        optimizer=lambda p: make(p, **arguments),
        lr_scheduler=lambda o: StageLR(o, stages, [arguments["lr"]] * len(stages)),
    )


def train(
    network: str, length: str, way: str, macs: float, seed: int, precision: Any, folder: Path
) -> Row:
    """Train once; return errors, cost and time."""
    settings, choice = NETWORKS[network], dict(WAYS[way])
    window, rest, batches = LENGTHS[length]
    at_once = choice.pop("at_once", way == "dense")
    if choice.get("importance") == "recorded":
        choice["importance"] = measured_record(network, folder)
    pl.seed_everything(seed, verbose=False)
    Steered.num_epochs = window
    module = module_of(network, choice, way, [window + rest] if at_once else [window, rest])
    callbacks: list[pl.Callback] = []
    if choice:
        end = 0 if at_once else window
        every = 12 if choice["method"] in ("steered", "held") else 40
        factor = 1 if isinstance(batches, int) else round(settings["batches"] / 60)
        callbacks = [Budget(macs=macs, end=end, every_n_steps=every * factor, **choice)]
    if way == "dual":
        assert isinstance(batches, int)
        callbacks.append(DualPenalty(window, window * batches))
    figures = measured(
        module,
        settings["data"](seed=seed, split_seed=0),
        window + rest,
        callbacks,
        limit_train_batches=batches,
        precision=precision,
        gradient_clip_val=1.0 if "adamw" in settings else None,
    )
    place = {"network": network, "length": length, "way": way, "macs": macs, "seed": seed}
    return {**place, "precision": precision, **figures}


def name_of(way: str) -> str:
    """Return what the tables call a way."""
    kind, _, strength = way.partition("_")
    return f"constant strength {strength}" if kind == "constant" else LABELS[way]


def main() -> None:
    """Run what is asked for."""
    parser = parser_of(__doc__, list(WAYS), "runs/budgets/results.jsonl")
    parser.add_argument("network", choices=NETWORKS, nargs="?")
    parser.add_argument("length", choices=LENGTHS, nargs="?")
    parser.set_defaults(ways=[way for way in WAYS if not way.startswith("constant_")])
    args = parser.parse_args()
    if args.table:
        return print_tables(stored(args.results), name_of)
    runs = (
        {
            "network": args.network,
            "length": args.length,
            "way": way,
            "macs": args.macs,
            "seed": seed,
        }
        for seed in args.seeds
        for way in args.ways
    )
    more = {"precision": args.precision, "folder": args.results.parent}
    return carry_out(runs, partial(train, **more), args.results)


if __name__ == "__main__":
    main()
