"""Entries of older schemas, brought to the present one without training anything again."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ssl_lightning.compaction.planning import expand
from ssl_lightning.compaction.store import RECIPE, read_tensors
from ssl_lightning.files import parse_yaml
from ssl_lightning.measure.serial import decode
from ssl_lightning.zoo.cards import (
    CARD,
    CONFIG,
    FILES,
    MODEL,
    PAGE,
    REQUIRED,
    SCHEMA,
    Card,
    check_schema,
    digest,
    is_old,
)
from ssl_lightning.zoo.entries import card as read_card
from ssl_lightning.zoo.entries import entry_folder
from ssl_lightning.zoo.listing import write_table
from ssl_lightning.zoo.loading import build_stored, read_recipe
from ssl_lightning.zoo.measuring import measure_error, measure_layers
from ssl_lightning.zoo.publishing import (
    latency_of,
    rewrite,
    rewriting,
    step_cost_of,
    write_card,
    write_filters,
)
from ssl_lightning.zoo.records import DataSet, SeedResult, Size, StoredFile, Weights
from ssl_lightning.zoo.runs import open_data

OLD_FILES = ("model.safetensors", RECIPE, CONFIG, "golden.safetensors")
"""What an entry of schema 1 consists of, apart from its card."""
NOT_KEPT = "not recorded when the entry was trained, by an earlier version of the library"


def upgrade(name: str, root: str | Path | None = None, threads: int = 1) -> Path:
    """Bring an entry to the present schema: measure what can be measured, say what cannot.

    The network, its plan, config and golden batch stay as they are, byte for byte. Of an entry
    that has the present schema only the page is written anew. The table in ``README.md`` of the
    folder of entries is too, as soon as no entry is of an older schema.

    Args:
        name: an entry.
        root: folder of entries; see :func:`ssl_lightning.zoo.entries.zoo_root` for the default.
        threads: to take timings with.

    Returns:
        The folder of the entry.

    Raises:
        FileNotFoundError: if there is no zoo, or a file of the entry or its data set is missing.
        ValueError: if the name is no plain name or unknown, the schema is unknown, a file is not
            what was published, or the validation error is not what the old card says.
    """
    target = entry_folder(name, root)
    old = read_old(target / CARD)
    if old is None:
        rewrite(target, read_card(name, root))
    else:
        renew(target, old, threads)
    if all(read_old(path) is None for path in target.parent.glob(f"*/{CARD}")):
        write_table(target.parent)
    return target


def renew(target: Path, old: Mapping[str, Any], threads: int) -> None:
    """Replace an entry whose card is of an older schema; errors as of :func:`upgrade`."""
    stored = {file: StoredFile(**given) for file, given in old["files"].items()}
    with rewriting(target, stored) as (folder, kept):
        if old["schema"] == 1:
            card = upgraded(old, kept, folder, threads)
        else:
            card = from_schema_2(old, kept)
        write_card(card, folder)


def read_old(path: Path) -> dict[str, Any] | None:
    """Return the fields of a card of an older schema, or None if it has the present one.

    Raises:
        ValueError: if it is damaged or of another schema.
    """
    try:
        data = json.loads(path.read_bytes())
        schema = data["schema"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"{path} is damaged or was edited: {error}. Get it again.") from error
    if not is_old(schema):
        check_schema(schema)
        return None
    fields: dict[str, Any] = {key: value for key, value in data.items() if key != "digest"}
    known = set(fields["files"]) == set(OLD_FILES) if schema == 1 else named(fields["files"])
    if data.get("digest") != digest(fields) or not known:
        raise ValueError(f"{path} is damaged or was edited: its digest differs. Get it again.")
    return fields


def named(files: Mapping[str, Any]) -> bool:
    """Whether an entry has all files that it needs, and no others than an entry may have."""
    return set(REQUIRED) <= set(files) <= set(FILES)


def from_schema_2(old: Mapping[str, Any], files: dict[str, bytes]) -> Card:
    """Add what schema 2 had not: the type of the weights. Nothing is measured.

    Raises:
        ValueError: if the card is damaged.
    """
    tensors = read_tensors(files[MODEL], MODEL).values()
    types = sorted({str(t.dtype).removeprefix("torch.") for t in tensors if t.is_floating_point()})
    weights = dataclasses.asdict(Weights(types[0] if len(types) == 1 else "float32"))
    return decode(
        Card, {**old, "schema": SCHEMA, "weights": weights, "layer_speedups": None}, "card"
    )


def upgraded(old: Mapping[str, Any], files: dict[str, bytes], folder: Path, threads: int) -> Card:
    """Measure what schema 1 had not, and write the picture of the filters into ``folder``.

    Raises:
        ValueError: if the validation error is not what the old card says.
    """
    config = parse_yaml(files[CONFIG], CONFIG)
    data = open_data(config["data"])
    compact = build_stored(files)
    found = measure_error(compact, data.val_dataloader())
    if abs(found - old["validation_error"]) > 0.05:
        raise ValueError(
            f"{old['name']} has {found:.2f} % validation error on this machine, its card says "
            f"{old['validation_error']:.2f} %. Use the data that it was trained on."
        )
    recipe = read_recipe(files)
    dense = recipe.create_dense().eval()
    masked = expand(compact, dense, recipe.plans)
    write_filters({"compact": masked}, folder)
    step_cost, why_not = step_cost_of(config, recipe.create_dense, data, threads)
    size = Size(**old["compact"])
    result = SeedResult(
        old["seed"], old["validation_error"], old["test_error"], size.macs, size.num_parameters
    )
    same = ("name", "backbone", "arguments", "validation_error", "test_error", "seed", "epochs")
    missing = dict.fromkeys(("curves", "training_seconds"), NOT_KEPT)
    missing["controls"] = "no controls were trained for this entry"
    return Card(
        **{key: old[key] for key in (*same, "groups", "licence", "paper")},
        data=DataSet(**old["data"]),
        seeds=(result,),
        training_seconds=None,
        optimizer=config["model"].get("optimizer"),
        lr_scheduler=config["model"].get("lr_scheduler"),
        penalties=tuple(old["penalties"]),
        layer_macs=measure_layers(dense, compact),
        dense=Size(**old["dense"]),
        compact=size,
        latency=latency_of(dense, masked, compact, threads),
        step_cost=step_cost,
        controls=(),
        layer_speedups=None,
        weights=Weights("float32"),
        remark=None,
        unmeasured=missing | ({"step_cost": why_not} if why_not else {}),
        files={file: StoredFile("", 0) for file in (*OLD_FILES, PAGE)},
        schema=SCHEMA,
    )
