"""Every figure of a card, measured again."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load as parse_tensors
from torch import Tensor, nn

from ssl_lightning.backbones import create_stored
from ssl_lightning.compaction.equality import difference
from ssl_lightning.compaction.expanding import expand
from ssl_lightning.compaction.store import check_state
from ssl_lightning.parsing import parse_yaml
from ssl_lightning.progress import steps, track
from ssl_lightning.publishing.measuring import (
    groups_left,
    measure_error,
    measure_layers,
    measure_size,
    open_test_split,
    outputs,
)
from ssl_lightning.publishing.settings import in_json
from ssl_lightning.publishing.timing import measure_latency, measure_speedups, zero_groups
from ssl_lightning.suggest import shortened
from ssl_lightning.zoo.cards import CARD, CONFIG, GOLDEN, MODEL, Card
from ssl_lightning.zoo.entries import checked_entry
from ssl_lightning.zoo.loading import build, not_stored, read_recipe
from ssl_lightning.zoo.records import Latency

ERROR_TOLERANCE = 0.02
"""Percentage points: rounding differs between processors, and an image may lie on the border."""
GOLDEN_TOLERANCE = 1e-5
"""Of the largest output: float32 sums in another order."""
LATENCY_TOLERANCE = 0.3
"""Of ratios: generous, since they differ between processors and times vary under load."""
SPEEDUP_TOLERANCE = 0.3
"""Of layers, as a share of the published one, for the same reasons."""

Value = float | int | str


@dataclass(frozen=True)
class Check:
    """One figure of a card, measured again.

    Attributes:
        what: name of the figure.
        published: value in the card.
        measured: value found now, or None if it could not be measured here.
        tolerance: largest difference that is no difference.
        reason: why it could not be measured.
    """

    what: str
    published: Value
    measured: Value | None
    tolerance: float = 0.0
    reason: str = ""

    @property
    def ok(self) -> bool:
        """Whether both values are there and agree.

        Example:
            >>> Check("error", 0.62, 0.63, tolerance=0.02).ok, Check("MACs", 10, 11).ok
            (True, False)
        """
        if self.measured is None:
            return False
        if isinstance(self.published, str) or isinstance(self.measured, str):
            return self.published == self.measured
        return abs(self.published - self.measured) <= self.tolerance + 1e-9

    @property
    def verdict(self) -> str:
        """``"ok"``, ``"DIFFERS"`` or ``"not measured"``.

        Example:
            >>> Check("error", 0.62, None, reason="no data").verdict
            'not measured'
        """
        if self.measured is None:
            return "not measured"
        return "ok" if self.ok else "DIFFERS"


def verify(name: str, root: str | Path | None = None, latency: bool = True) -> list[Check]:
    """Measure what an entry's card says again.

    Settings of the run, groups left, multiply-adds, parameters, golden outputs, the error
    on the whole test split, and the latency ratios. What cannot be measured on this machine, for
    want of data, threads or stored weights, has a row that says so. Other seeds and controls,
    training time and the cost of a step have no row: they belong to runs that are not part of the
    entry. Hashes have none either: a file that is not the published one is an error.

    Args:
        name: an entry of :func:`ssl_lightning.zoo.list_models`.
        root: folder of entries; see :func:`ssl_lightning.zoo.entries.zoo_root` for the default.
        latency: also take the timings, which wants an otherwise idle machine.

    Returns:
        One row per figure; the entry is as published if all are ``ok``.

    Raises:
        FileNotFoundError: if there is no zoo, or a file of the entry is missing.
        ValueError: if the name is no plain name or unknown, or a file is not what was published:
            such files are not parsed, so nothing else is measured.
    """
    card, files = checked_entry(name, root)
    stored = card.weights.unstored is None
    model = build(files, card, pretrained=stored)
    with steps(f"verifying {name}", 3 if latency else 1) as part:
        checks = [*check_settings(card, files), *check_size(card, model, files)]
        checks += check_outputs(card, model, files) if stored else unknown(card)
        if latency:
            part.advance()
            checks += check_latency(card, model, files)
            part.advance()
            checks += check_speedups(card)
        part.advance()
    return checks


def check_outputs(card: Card, model: nn.Module, files: dict[str, bytes]) -> list[Check]:
    """Measure again what depends on the weights."""
    stored = {t.dtype for t in read_tensors(files[MODEL], MODEL).values() if t.is_floating_point()}
    found = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in stored))
    dense = create_stored(card.backbone, card.arguments, CARD)
    left = groups_left(dense, model, expand(model, dense, read_recipe(files).plans))
    return [
        Check("groups left", json.dumps(card.groups), json.dumps(left)),
        Check("type of the weights", card.weights.dtype, found),
        check_golden(files[GOLDEN], model),
        *check_error(card, model),
    ]


def unknown(card: Card) -> list[Check]:
    """Say of what depends on the weights that they are not stored."""
    return [
        Check("groups left", json.dumps(card.groups), None, reason=not_stored(card)),
        Check("test error %", card.test_error, None, ERROR_TOLERANCE, not_stored(card)),
    ]


def check_speedups(card: Card) -> list[Check]:
    """Time the layers of the comparison with the paper's table again, at the card's sparsities."""
    if card.layer_speedups is None:
        return []
    rows = card.layer_speedups.rows
    single = {row.layer: (row.row_sparsity, row.column_sparsity) for row in rows}
    shares = single if rows[0].form == "csr" else zero_groups(card.groups)
    found = measure_speedups(shares, rows[0].configuration)
    assert found is not None
    return [
        Check(
            f"speed-up of {old.layer}",
            round(old.speedup, 3),
            round(new.speedup, 3),
            SPEEDUP_TOLERANCE * old.speedup,
        )
        for old, new in zip(rows, found.rows, strict=True)
    ]


def check_error(card: Card, model: nn.Module) -> list[Check]:
    """Measure the error on the test split again, if it is on this machine."""
    published = card.data.num_test, card.test_error
    try:
        shape: tuple[int, ...] = model.input_shape  # type: ignore[assignment]
        batches = open_test_split(card.data, shape).test_dataloader()
        found = len(batches.dataset), measure_error(model, batches)
    except FileNotFoundError as error:
        return [
            Check("test images", published[0], None, reason=str(error)),
            Check("test error %", published[1], None, ERROR_TOLERANCE, str(error)),
        ]
    return [
        Check("test images", published[0], found[0]),
        Check("test error %", published[1], found[1], ERROR_TOLERANCE),
    ]


def check_latency(card: Card, model: nn.Module, files: dict[str, bytes]) -> list[Check]:
    """Time the dense, masked and compact network again and compare the ratios, never the times."""
    recipe = read_recipe(files)
    dense = recipe.create_dense().eval()
    masked = expand(model, dense, recipe.plans)
    models = {"dense": dense, "masked": masked, "compact": model}
    records = track(card.latency, "latency")
    return [check for record in records for check in compare_ratios(record, models)]


def compare_ratios(record: Latency, models: dict[str, nn.Module]) -> list[Check]:
    """Compare the ratios of one batch size, unless this machine has too few threads."""
    cores, found = os.cpu_count() or 0, None
    settings = (record.batch_size, record.threads, record.num_rounds)
    reason = f"The ratio was taken with {record.threads} threads, this machine has {cores}."
    if record.threads <= cores:
        found, reason = measure_latency(models, *settings), ""
    return [
        Check(
            f"latency ratio {name}/dense, batch {record.batch_size}",
            ratio,
            None if found is None else found.ratio[name],
            LATENCY_TOLERANCE,
            reason,
        )
        for name, ratio in record.ratio.items()
        if name != "dense"
    ]


def check_settings(card: Card, files: dict[str, bytes]) -> list[Check]:
    """Compare the card with the plan and the config beside it."""
    recipe, config = read_recipe(files), parse_yaml(files[CONFIG], CONFIG)
    try:
        model, seed = in_json(config["model"]), config["seed_everything"]
        epochs, penalties = config["trainer"]["max_epochs"], model.get("penalties") or []
        settings = {what: model.get(what) for what in ("optimizer", "lr_scheduler")}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{CONFIG} is not what `fit` writes: {type(error).__name__}: {shortened(str(error))}."
        ) from error
    return [
        Check("backbone", card.backbone, recipe.backbone),
        Check("arguments", json.dumps(card.arguments), json.dumps(recipe.arguments)),
        Check("seed", card.seed, seed),
        Check("epochs", card.epochs, epochs),
        Check("penalties", json.dumps(card.penalties), json.dumps(penalties, default=repr)),
        *(
            Check(what, json.dumps(getattr(card, what)), json.dumps(found, default=repr))
            for what, found in settings.items()
        ),
    ]


def check_size(card: Card, model: nn.Module, files: dict[str, bytes]) -> list[Check]:
    """Count multiply-adds and parameters again, of the dense network too."""
    backbone = read_recipe(files).create_dense()
    dense, compact = measure_size(backbone), measure_size(model)
    return [
        Check(
            "MACs per layer",
            json.dumps(card.layer_macs),
            json.dumps(measure_layers(backbone, model)),
        ),
        Check("MACs, dense", card.dense.macs, dense.macs),
        Check("MACs, compact", card.compact.macs, compact.macs),
        Check("parameters, dense", card.dense.num_parameters, dense.num_parameters),
        Check("parameters, compact", card.compact.num_parameters, compact.num_parameters),
    ]


def check_golden(content: bytes, model: nn.Module) -> Check:
    """Compare the outputs of the stored batch with the stored ones."""
    golden = read_tensors(content, GOLDEN)
    if set(golden) != {"input", "output"} or not all(t.numel() for t in golden.values()):
        raise ValueError(f"{GOLDEN} is damaged: expected tensors `input` and `output`.")
    check_state(golden, GOLDEN)
    try:
        found = difference(golden["output"], outputs(model, golden["input"]))
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise ValueError(
            f"{GOLDEN} does not belong to the network: {shortened(str(error), 200)}"
        ) from error
    return Check("golden outputs, relative difference", 0.0, found, GOLDEN_TOLERANCE)


def read_tensors(content: bytes, where: str) -> dict[str, Tensor]:
    """Return the tensors in the content of a safetensors file.

    Raises:
        ValueError: if it is damaged.
    """
    try:
        return parse_tensors(content)
    except Exception as error:  # unknown types and shapes raise what torch makes of them
        raise ValueError(f"{where} is damaged: {shortened(str(error), 200)}") from error
