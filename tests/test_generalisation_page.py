"""The tables of docs/generalisation.md are those of the stored records, and its code runs."""

from __future__ import annotations

import json
import re
import shlex
from itertools import pairwise
from statistics import fmean, stdev
from typing import Any

import pytest

from conftest import ROOT
from ssl_lightning.cli import calibration, corruption, transfer

PAGE = ROOT / "docs" / "generalisation.md"
FOLDER = ROOT / "docs" / "generalisation"
TEXT = PAGE.read_text(encoding="utf-8")
TABLE = re.compile(r"<!-- (\w+) (\w+) -->\n(.*?)<!-- end -->", re.DOTALL)
TABLES = {(record, name): text for record, name, text in TABLE.findall(TEXT)}
RECORDS = {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}
COMMANDS = {
    "calibration": calibration.calibration,
    "corruption": corruption.corruption,
    "transfer": transfer.transfer,
}


def cells(record: str, table: str) -> list[list[str]]:
    lines = TABLES[record, table].strip().splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def shown(estimate: dict[str, float], places: int = 2, sign: str = "") -> str:
    return f"{estimate['value']:{sign}.{places}f} ± {estimate['se']:.{places}f}"


def of_images(values: list[float], scale: float, places: int, sign: str = "") -> str:
    """A mean of one value per image, and its standard error."""
    se = stdev(values) / len(values) ** 0.5
    return shown({"value": scale * fmean(values), "se": scale * se}, places, sign)


def names(kind: str) -> list[str]:
    return [name for name in RECORDS if name.startswith(kind)]


def test_every_record_has_its_tables_and_its_command():
    assert {record for record, _ in TABLES} == set(RECORDS)
    assert all(text.strip() for text in TABLES.values())
    blocks = re.findall(r"```\n(ssl-lightning evaluate .*?)```", TEXT, re.DOTALL)
    given = [shlex.split(block.replace("\\\n", " ")) for block in blocks if "--output" in block]
    outputs = {words[words.index("--output") + 1]: words for words in given}
    assert set(outputs) == {f"docs/generalisation/{name}.json" for name in RECORDS}
    for file, words in outputs.items():
        record = RECORDS[file.rpartition("/")[2].removesuffix(".json")]
        named = {word.removeprefix("zoo:") for word in words if word.startswith("zoo:")}
        assert named == {row["network"] for row in record["rows"]}
        options = dict(pairwise(words))
        assert options["--title"] == record["title"]
        assert options.get("--dense", "zoo:").removeprefix("zoo:") == (record["dense"] or "")
        assert record["split"] == "test"
        assert {"calibration", "corruption", "transfer"} & {words[2]}
        if "--limit" in options:
            assert int(options["--limit"]) == record["images"]
        if "--num_train" in options:
            assert int(options["--num_train"]) == record["trained"]


@pytest.mark.parametrize("name", names("calibration"))
def test_the_tables_of_calibration_are_those_of_the_record(name):
    record: dict[str, Any] = RECORDS[name]
    for row, found in zip(record["rows"], cells(name, "networks"), strict=True):
        assert [found[0], *found[2:]] == [
            row["network"],
            shown(row["error"]),
            shown(row["nll"], 3),
            shown(row["ece"]),
            f"{row['temperature']:.2f}",
            shown(row["scaled_nll"], 3),
            shown(row["scaled_ece"]),
        ]
    compared = [row for row in record["rows"] if row["against"]]
    if not compared:
        return
    for row, found in zip(compared, cells(name, "against"), strict=True):
        against = row["against"]
        assert found == [
            row["network"],
            shown(against["error"], 2, "+"),
            shown(against["nll"], 3, "+"),
            shown(against["ece"], 2, "+"),
            shown(against["disagreement"]),
        ]
    dense = record["rows"][0]["class_errors"]
    for (label, error), found in zip(dense.items(), cells(name, "classes"), strict=True):
        losses = [row["against"]["classes"][label] for row in compared]
        assert found[:3] == [label, str(record["class_images"][label]), f"{error:.1f}"]
        assert [text.removesuffix(" *") for text in found[3:]] == [
            shown(loss, 1, "+") for loss in losses
        ]
        limit = {10: 2.807, 30: 3.144}[len(dense) * len(compared)]  # of the normal distribution
        assert [text.endswith("*") for text in found[3:]] == [
            abs(loss["value"]) > limit * loss["se"] for loss in losses
        ]


@pytest.mark.parametrize("name", names("corruption"))
def test_the_tables_of_corruptions_are_those_of_the_record(name):
    record: dict[str, Any] = RECORDS[name]
    dense, *others = record["rows"]
    assert dense["network"] == record["dense"]
    kinds = list(dense["corruptions"])
    assert len(kinds) == 15

    def wrong(row: dict[str, Any], kind: str) -> list[int]:
        return [int(digit) for digit in row["corruptions"][kind]["wrong"]]

    def total(row: dict[str, Any]) -> list[int]:
        return [sum(one) for one in zip(*(wrong(row, kind) for kind in kinds), strict=True)]

    for row, found in zip(record["rows"], cells(name, "summary"), strict=True):
        loss = [a - b for a, b in zip(total(row), total(dense), strict=True)]
        sums = {k: [sum(r["corruptions"][k]["errors"]) for r in (row, dense)] for k in kinds}
        rises = {
            k: [a - 5 * row["clean"]["value"], b - 5 * dense["clean"]["value"]]
            for k, (a, b) in sums.items()
        }
        assert [found[0], *found[2:]] == [
            row["network"],
            shown(row["clean"]),
            of_images(total(row), 100 / 75, 2),
            "-" if row is dense else of_images(loss, 100 / 75, 2, "+"),
            f"{100 * fmean(a / b for a, b in sums.values()):.1f}",
            f"{100 * fmean(a / b for a, b in rises.values()):.1f}",
        ]
    for kind, found in zip(kinds, cells(name, "corruptions"), strict=True):
        means = [f"{fmean(row['corruptions'][kind]['errors']):.1f}" for row in record["rows"]]
        pairs = [zip(wrong(row, kind), wrong(dense, kind), strict=True) for row in others]
        losses = [of_images([a - b for a, b in pair], 20, 1, "+") for pair in pairs]
        assert found == [kind.replace("_", " "), *means, *losses]
        for row in record["rows"]:
            of_images_too = 20 * fmean(wrong(row, kind))
            assert fmean(row["corruptions"][kind]["errors"]) == pytest.approx(of_images_too)


@pytest.mark.parametrize("name", [*names("probe"), *names("finetune")])
def test_the_tables_of_transfer_are_those_of_the_record(name):
    record: dict[str, Any] = RECORDS[name]
    dense = record["rows"][0]
    seeds = len(record["seeds"])
    for row, found in zip(record["rows"], cells(name, "transfer"), strict=True):
        wrong, other = ([int(digit) for digit in r["wrong"]] for r in (row, dense))
        loss = [a - b for a, b in zip(wrong, other, strict=True)]
        by_seed = [f"{a - b:+.2f}" for a, b in zip(row["errors"], dense["errors"], strict=True)]
        assert [found[0], *found[2:]] == [
            row["network"],
            str(row["features"]),
            of_images(wrong, 100 / seeds, 2),
            " ".join(f"{error:.2f}" for error in row["errors"]),
            "-" if row is dense else of_images(loss, 100 / seeds, 2, "+"),
            "-" if row is dense else " ".join(by_seed),
        ]


def test_its_python_runs_and_its_links_lead_to_files(capsys):
    for block in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL):
        exec(compile(block, str(PAGE), "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out.startswith("Estimate(")
    for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", TEXT):
        if "://" not in link:
            assert (PAGE.parent / link).exists(), link


def test_its_commands_have_options_that_exist():
    from inspect import signature

    for what, options in re.findall(r"ssl-lightning evaluate (\w+) (.*?)```", TEXT, re.DOTALL):
        known = set(signature(COMMANDS[what]).parameters)
        first = options.split("\nssl-lightning")[0]
        assert set(re.findall(r"--(\w+)", first)) <= known
