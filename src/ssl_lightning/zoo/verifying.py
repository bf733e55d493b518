"""Every figure of a card, measured again."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import yaml
from safetensors.torch import load as parse_tensors
from torch import nn

from ssl_lightning.backbones import create_backbone
from ssl_lightning.zoo.cards import CONFIG, GOLDEN, Card, StoredFile
from ssl_lightning.zoo.entries import checked_entry
from ssl_lightning.zoo.loading import build
from ssl_lightning.zoo.measuring import (
    difference,
    groups_left,
    measure_error,
    measure_size,
    open_test_split,
    outputs,
)

ERROR_TOLERANCE = 0.02
"""Percentage points: rounding differs between processors, and an image may lie on the border."""
GOLDEN_TOLERANCE = 1e-5
"""Of the largest output: float32 sums in another order."""

Value = float | int | str


@dataclass(frozen=True)
class Check:
    """One figure of a card, measured again.

    Attributes:
        what: name of the figure.
        published: value in the card.
        measured: value found now.
        tolerance: largest difference that is no difference.
    """

    what: str
    published: Value
    measured: Value
    tolerance: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether both values agree.

        Example:
            >>> Check("error", 0.62, 0.63, tolerance=0.02).ok, Check("MACs", 10, 11).ok
            (True, False)
        """
        if isinstance(self.published, str) or isinstance(self.measured, str):
            return self.published == self.measured
        return abs(self.published - self.measured) <= self.tolerance + 1e-9


def verify(name: str, root: str | Path | None = None) -> list[Check]:
    """Measure what an entry's card says again.

    Hashes, settings of the run, groups left, multiply-adds, parameters, golden outputs, and the
    error on the whole test split.

    Args:
        name: an entry of :func:`ssl_lightning.zoo.list_models`.
        root: folder of entries; see :func:`ssl_lightning.zoo.entries.zoo_root` for the default.

    Returns:
        One row per figure; the entry is as published if all are ``ok``.

    Raises:
        FileNotFoundError: if there is no zoo, a file of the entry is missing, or its data set is
            not on this machine.
        ValueError: if the name is no plain name or unknown, or a file is not what was published:
            such files are not parsed, so nothing else is measured.
    """
    card, files = checked_entry(name, root)
    model = build(files)
    hashes = [
        Check(f"sha256 of {file}", stored.sha256, StoredFile.of(files[file]).sha256)
        for file, stored in card.files.items()
    ]
    batches = open_test_split(card.data).test_dataloader()
    return [
        *hashes,
        *check_settings(card, files),
        *check_size(card, model),
        check_golden(files[GOLDEN], model),
        Check("test images", card.data.num_test, len(batches.dataset)),
        Check("test error %", card.test_error, measure_error(model, batches), ERROR_TOLERANCE),
    ]


def check_settings(card: Card, files: dict[str, bytes]) -> list[Check]:
    """Compare the card with the plan and the config beside it."""
    recipe, config = json.loads(files["plan.json"]), yaml.safe_load(files[CONFIG])
    penalties = config["model"].get("penalties") or []
    return [
        Check("backbone", card.backbone, str(recipe["backbone"])),
        Check("arguments", json.dumps(card.arguments), json.dumps(recipe["arguments"])),
        Check("seed", card.seed, config["seed_everything"]),
        Check("epochs", card.epochs, config["trainer"]["max_epochs"]),
        Check("penalties", json.dumps(card.penalties), json.dumps(penalties)),
    ]


def check_size(card: Card, model: nn.Module) -> list[Check]:
    """Count groups, multiply-adds and parameters again, of the dense network too."""
    backbone = create_backbone(card.backbone, **card.arguments)
    dense, compact = measure_size(backbone), measure_size(model)
    return [
        Check("groups left", json.dumps(card.groups), json.dumps(groups_left(backbone, model))),
        Check("MACs, dense", card.dense.macs, dense.macs),
        Check("MACs, compact", card.compact.macs, compact.macs),
        Check("parameters, dense", card.dense.num_parameters, dense.num_parameters),
        Check("parameters, compact", card.compact.num_parameters, compact.num_parameters),
    ]


def check_golden(content: bytes, model: nn.Module) -> Check:
    """Compare the outputs of the stored batch with the stored ones."""
    golden = parse_tensors(content)
    found = difference(outputs(model, golden["input"]), golden["output"])
    return Check("golden outputs, relative difference", 0.0, found, GOLDEN_TOLERANCE)
