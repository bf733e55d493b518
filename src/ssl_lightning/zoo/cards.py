"""The card of a zoo entry: everything published about it, as plain data. Imports no torch."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssl_lightning.measure.serial import decode
from ssl_lightning.measure.sparse_record import SparseRecord
from ssl_lightning.report.run_report import check_counts
from ssl_lightning.suggest import shortened
from ssl_lightning.zoo.claims import (
    check_latency,
    check_layer_macs,
    check_paper,
    check_speedups,
    check_word,
)
from ssl_lightning.zoo.records import (
    Control,
    DataSet,
    Latency,
    SeedResult,
    Size,
    StepCost,
    StoredFile,
    Weights,
    check_percent,
    check_seeds,
    median_result,
)

SCHEMA = 4
CARD = "card.json"
CONFIG = "config.yaml"
GOLDEN = "golden.safetensors"
PAGE = "README.md"
CURVES, CURVES_PICTURE = "curves.csv", "curves.png"
FILTERS_PICTURE = "filters.png"
MODEL = "model.safetensors"
REQUIRED = (MODEL, "plan.json", CONFIG, GOLDEN, PAGE)
OF_WEIGHTS = (MODEL, GOLDEN)
"""Files that an entry has only if its weights are stored."""
CALIBRATION, CORRUPTION, PROBE, FINETUNE = EVALUATIONS = (
    "calibration.json",
    "corruption.json",
    "probe.json",
    "finetune.json",
)
"""What `evaluate` measured of an entry, where that was added to it."""
OPTIONAL = (CURVES, CURVES_PICTURE, FILTERS_PICTURE, *EVALUATIONS)
FILES = (*REQUIRED, *OPTIONAL)
"""What an entry may consist of, apart from its card; no other file is ever read."""

MAY_MISS = ("training_seconds", "latency", "step_cost", "controls")
"""Fields that may be null or empty; ``unmeasured`` says why, and so it does for the curves."""


@dataclass(frozen=True)
class Card:
    """All that is published about one compact network.

    Attributes:
        name: of the entry, which is also its folder's.
        backbone: name of the backbone it was compacted from.
        arguments: of that backbone.
        data: what it was trained and measured on.
        validation_error: percent, of the compact network on the held-out training images.
        test_error: percent, of the compact network on the official test split.
        seed: of the published run, whose validation error is the median of all seeds'.
        seeds: the results of all runs that differ in their seed alone.
        epochs: trained, all stages together.
        training_seconds: wall time of the published run, validation included.
        optimizer: of the run's config.
        lr_scheduler: of the run's config.
        penalties: those of the run's config, with their strengths and schedules.
        budget: the arguments of the run's :class:`~ssl_lightning.callbacks.Budget`, or None.
        teacher: that the run was distilled from, or None.
        groups: layer -> ``"filters"``, ``"channels"``, ``"columns"`` -> [of the compact network,
            of the dense one].
        layer_macs: layer -> multiply-adds of one image in the [compact, dense] network.
        dense: size of the backbone.
        compact: size of the published network.
        latency: one record per batch size.
        step_cost: what the penalties add to a training step.
        controls: what other methods reach within the same budget, and the dense network.
        layer_speedups: the layers of the paper's Table 4 at this network's sparsities against the
            fastest dense engine, if that was asked for; its configurations 1 and 4 are of single
            zeros.
        weights: how the weights are stored, or that they are not.
        licence: of the weights, as an SPDX identifier.
        paper: the published row it is compared with, or None.
        remark: what a reader must know, such as a goal that was missed, or None.
        unmeasured: field -> why it is null; ``"curves"`` if there are no curves.
        files: all other files of the entry.
        schema: version of this format.

    Raises:
        ValueError: if the schema is unknown or a value is impossible.
    """

    name: str
    backbone: str
    arguments: dict[str, Any]
    data: DataSet
    validation_error: float
    test_error: float
    seed: int
    seeds: tuple[SeedResult, ...]
    epochs: int
    training_seconds: float | None
    optimizer: Any
    lr_scheduler: Any
    penalties: tuple[dict[str, Any], ...]
    budget: dict[str, Any] | None
    teacher: str | None
    groups: dict[str, dict[str, list[int]]]
    layer_macs: dict[str, list[int]]
    dense: Size
    compact: Size
    latency: tuple[Latency, ...]
    step_cost: StepCost | None
    controls: tuple[Control, ...]
    layer_speedups: SparseRecord | None
    weights: Weights
    licence: str
    paper: dict[str, Any] | None
    remark: str | None
    unmeasured: dict[str, str]
    files: dict[str, StoredFile]
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        check_schema(self.schema)
        check_name(self.name)
        check_percent("card.validation_error", self.validation_error)
        check_percent("card.test_error", self.test_error)
        check_seeds("card.seeds", self.seeds)
        self._check_median()
        for layer, kinds in self.groups.items():
            for kind, counts in kinds.items():
                check_counts(f"card.groups.{layer}", kind, counts)
        self._check_claims()
        self._check_files()
        self._check_unmeasured()

    def control_errors(self) -> dict[str, float]:
        """Return kind of control -> test error in percent of its median seed."""
        return {c.kind: median_result(c.seeds).test_error for c in self.controls}

    def _check_claims(self) -> None:
        check_word("card.backbone", self.backbone)
        check_word("card.data.name", self.data.name)
        check_word("card.licence", self.licence)
        check_layer_macs(self.layer_macs)
        check_latency(self.latency)
        check_speedups(self.layer_speedups)
        check_paper(self.paper)

    def _check_median(self) -> None:
        """Make sure that the published run is the one with the median validation error."""
        expected, size = median_result(self.seeds), self.compact
        found = SeedResult(
            self.seed, self.validation_error, self.test_error, size.macs, size.num_parameters
        )
        if found != expected:
            raise ValueError(
                "card.seed: expected the figures of the run with the median validation error, "
                f"{expected}, got {found}. Publish the runs again."
            )

    def _check_files(self) -> None:
        absent = () if self.weights.unstored is None else OF_WEIGHTS
        required = [file for file in REQUIRED if file not in absent]
        missing = [file for file in required if file not in self.files]
        unknown = [file for file in self.files if file not in FILES or file in absent]
        if missing or unknown:
            raise ValueError(
                f"card.files: expected {', '.join(required)} and perhaps {', '.join(OPTIONAL)}, "
                f"got {', '.join(self.files) or 'none'}. Publish the run again."
            )

    def _check_unmeasured(self) -> None:
        """Make sure that what is not there is accounted for, and nothing else."""
        absent = {field for field in MAY_MISS if getattr(self, field) in (None, ())}
        absent |= set() if CURVES in self.files else {"curves"}
        if set(self.unmeasured) != absent:
            raise ValueError(
                f"card.unmeasured: expected a reason for {', '.join(sorted(absent)) or 'nothing'}, "
                f"got {', '.join(sorted(self.unmeasured)) or 'none'}. Publish the run again."
            )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold: schema first, a digest of all others last."""
        data = dataclasses.asdict(self)
        data = {"schema": data.pop("schema"), **data}
        return {**data, "digest": digest(data)}

    def to_bytes(self) -> bytes:
        """Return the content of ``card.json``."""
        return serial(self.to_dict())

    @classmethod
    def from_dict(cls, data: Any) -> Card:
        """Build a card from :meth:`to_dict`.

        Raises:
            ValueError: if the schema is unknown; a field is missing, unknown, of another type or
                impossible; or the digest is not that of the other fields.
        """
        check_schema(data.get("schema") if isinstance(data, dict) else None)
        fields = {key: value for key, value in data.items() if key != "digest"}
        card = decode(cls, fields, "card")
        if data.get("digest") != digest(fields):
            raise ValueError(
                "card.digest: does not belong to the other fields, so the card was edited or "
                "damaged. Get the entry again; figures come from `zoo publish` only."
            )
        return card

    @classmethod
    def read(cls, path: str | Path) -> Card:
        """Read ``card.json``, every byte of which must be as :meth:`to_bytes` gave it.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: as :meth:`from_dict`, or if it is not JSON.
        """
        content = Path(path).read_bytes()
        try:
            data = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{path} is damaged or was edited: {error} Get the entry again."
            ) from error
        if isinstance(data, dict) and "schema" in data:
            check_schema(data["schema"], f"{path}: ")
        try:
            card = cls.from_dict(data)
            if card.to_bytes() != content:
                raise ValueError("it was edited, though no value changed.")
        except ValueError as error:
            raise ValueError(
                f"{path} is damaged or was edited: {error} Get the entry again."
            ) from error
        return card


def serial(data: Any) -> bytes:
    """Return the one JSON text of plain values that cards are stored as."""
    return (json.dumps(data, indent=2, allow_nan=False) + "\n").encode()


def digest(fields: dict[str, Any]) -> str:
    """Return the sha256 of a card's fields, in hexadecimal."""
    return hashlib.sha256(serial(fields)).hexdigest()


def check_schema(schema: Any, where: str = "") -> None:
    """Reject cards of another version.

    Raises:
        ValueError: naming both versions.
    """
    if schema is None:
        raise ValueError(f"{where}card.schema: expected {SCHEMA}, got none: this is no card.")
    if schema != SCHEMA or isinstance(schema, bool):
        raise ValueError(
            f"{where}card.schema: expected {SCHEMA}, got {shortened(schema)}. Read it with the "
            "version of ssl_lightning that wrote it."
        )


def check_name(name: str) -> str:
    """Return the name of an entry if it can be the name of its folder.

    Raises:
        ValueError: if it is a path, or has other characters.

    Example:
        >>> check_name("lenet_mnist_shape")
        'lenet_mnist_shape'
        >>> check_name("../secret")
        Traceback (most recent call last):
        ...
        ValueError: Cannot be the name of a zoo entry: '../secret'...
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}", name) or name == PAGE:
        raise ValueError(
            f"Cannot be the name of a zoo entry: {shortened(name)}. Expected letters, "
            f"digits, `_`, `-` and `.`, no path, and not {PAGE}; "
            "`root` (`--root`) says where entries are."
        )
    return name
