"""Records of `evaluate` among an entry's files, and their figures on its page."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest

from conftest import ROOT
from ssl_lightning import publishing, zoo
from ssl_lightning.cli import main
from ssl_lightning.publishing.evaluations import KINDS, evaluated, read_evaluation
from ssl_lightning.publishing.pages import entry_page
from ssl_lightning.publishing.rewriting import rewrite
from ssl_lightning.zoo.cards import CARD, EVALUATIONS, PAGE
from ssl_lightning.zoo.entries import checked_entry

ZOO, RECORDS = ROOT / "zoo", ROOT / "docs" / "generalisation"
NAME, DENSE = "resnet20_cifar10_channel", "resnet20_cifar10_dense"
EVALUATED = [
    (n, f) for n in zoo.list_models(ZOO) for f in EVALUATIONS if f in zoo.card(n, ZOO).files
]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A zoo of one entry as it was published, without evaluations."""
    shutil.copytree(ZOO / NAME, tmp_path / "zoo" / NAME)
    card = zoo.card(NAME, tmp_path / "zoo")
    files = {file: stored for file, stored in card.files.items() if file not in EVALUATIONS}
    for file in EVALUATIONS:
        (tmp_path / "zoo" / NAME / file).unlink(missing_ok=True)
    bare = dataclasses.replace(card, files=files)
    (tmp_path / "zoo" / NAME / CARD).write_bytes(bare.to_bytes())
    rewrite(tmp_path / "zoo" / NAME, bare)
    return tmp_path / "zoo"


def source(name: str, file: str) -> Path:
    """The record in docs that an entry's is a part of."""
    return RECORDS / f"{Path(file).stem}_{name.split('_')[0]}.json"


def test_the_zoo_has_all_kinds() -> None:
    assert {file for _, file in EVALUATED} == set(EVALUATIONS)


@pytest.mark.parametrize(("name", "file"), EVALUATED)
def test_those_of_the_zoo_are_those_of_the_page_on_generalisation(name: str, file: str) -> None:
    if not (whole := source(name, file)).exists():
        whole = RECORDS / f"{Path(file).stem}_mobilenetv3.json"
    found, expected = (KINDS[file].load(path) for path in (ZOO / name / file, whole))
    rows = {row.network: row for row in expected.rows}
    assert [row.network for row in found.rows] == [n for n in rows if n in (name, found.dense)]
    assert all(row == rows[row.network] for row in found.rows)
    page, card = (ZOO / name / PAGE).read_text(), zoo.card(name, ZOO)
    for row in evaluated(card, ZOO / name).rows:
        assert f"| {' | '.join(map(str, row))} |" in page


def test_what_was_added_is_on_the_page_and_all_else_is_unchanged(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, page = checked_entry(NAME, root), (root / NAME / PAGE).read_text()
    assert "Beyond the test error" not in page
    command = ["zoo", "evaluation", NAME, str(source(NAME, "calibration.json"))]
    assert main([*command, "--root", str(root)]) == 0
    assert f"Wrote {root / NAME}" in capsys.readouterr().out
    publishing.add_evaluations(NAME, [source(NAME, "corruption.json")], root)
    card, files = checked_entry(NAME, root)
    assert set(files) - set(before[1]) == {"calibration.json", "corruption.json"}
    assert all(files[file] == content for file, content in before[1].items() if file != PAGE)
    assert dataclasses.replace(card, files=before[0].files) == before[0]
    after = files[PAGE].decode()
    table = after.partition("## Beyond the test error")[2].partition("\n## ")[0]
    lines = [line for line in table.splitlines() if line.startswith("| ")]
    assert lines[1:3] == [
        "| expected calibration error, % (10,000 test images) | 5.46 ± 0.21 | 5.98 ± 0.21 | "
        "+0.52 ± 0.23 |",
        "| negative log-likelihood (10,000 test images) | 0.313 ± 0.007 | 0.314 ± 0.007 | "
        "+0.001 ± 0.005 |",
    ]
    assert "Measured by `ssl-lightning evaluate` beside `resnet20_cifar10_dense`; ±" in after
    assert after == entry_page(card, evaluated(card, root / NAME))
    assert after.replace(f"\n## Beyond the test error{table}", "") == page
    again = files
    publishing.add_evaluations(NAME, [source(NAME, "calibration.json")], root)
    assert checked_entry(NAME, root)[1] == again


def test_the_entry_itself_may_be_the_dense_network(tmp_path: Path) -> None:
    shutil.copytree(ZOO / DENSE, tmp_path / "zoo" / DENSE)
    publishing.add_evaluations(DENSE, [source(DENSE, "probe.json")], tmp_path / "zoo")
    card = zoo.card(DENSE, tmp_path / "zoo")
    found = evaluated(card, tmp_path / "zoo" / DENSE)
    assert all(row[1] == row[3] == "-" for row in found.rows)
    assert found.dense == ()


def changed(path: Path, change: object, target: Path) -> Path:
    """A record with other values."""
    data = json.loads(path.read_text())
    change(data)
    target.write_text(json.dumps(data))
    return target


def smaller(data: dict) -> None:
    data["rows"][1]["macs"] -= 1


def worse(data: dict) -> None:
    data["rows"][1]["error"]["value"] += 0.1


def without_dense(data: dict) -> None:
    data["rows"].pop(0)


def a_path(data: dict) -> None:
    data["dense"] = data["rows"][0]["network"] = "runs/dense/last.ckpt"


def other_data(data: dict) -> None:
    data["data"] = "MNIST"


def other_dense(data: dict) -> None:
    data["rows"][0]["parameters"] += 1


def other_form(data: dict) -> None:
    data["schema"] = 7


REFUSED = {
    "another network": (lambda data: data["rows"].pop(1), f"expected {NAME} among the networks"),
    "another size": (
        smaller,
        "28,505,707 multiply-adds and 211,090 parameters there, and 28,505,708",
    ),
    "another error": (worse, r"an error of 8.55 % on the test images there, and of 8.45 %"),
    "a path as dense network": (a_path, "expected an entry of a zoo as the dense network"),
    "no dense network": (without_dense, "expected an entry of a zoo as the dense network, got"),
    "another dense network": (other_dense, "resnet20_cifar10_dense has 40,551,040 multiply-adds"),
    "other data": (other_data, "expected images of CIFAR10, which the entry was trained with"),
    "another version": (other_form, "calibration.schema: expected 1, got 7"),
    "another file": (lambda data: data.pop("rows"), "expected what `evaluate calibration`"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_records_of_others_are_refused_and_nothing_changes(
    root: Path, tmp_path: Path, case: str
) -> None:
    change, message = REFUSED[case]
    before = checked_entry(NAME, root)[1]
    wrong = changed(source(NAME, "calibration.json"), change, tmp_path / "wrong.json")
    with pytest.raises(ValueError, match=re.escape(message)):
        publishing.add_evaluations(NAME, [source(NAME, "probe.json"), wrong], root)
    assert checked_entry(NAME, root)[1] == before
    assert {path.name for path in (root / NAME).iterdir()} == {CARD, *before}


def test_two_records_of_a_kind_are_refused(root: Path) -> None:
    file = source(NAME, "probe.json")
    with pytest.raises(ValueError, match=r"one record of each kind, got probe\.json, probe\.json"):
        publishing.add_evaluations(NAME, [file, file], root)


def test_a_damaged_card_of_another_entry_is_found_before(root: Path) -> None:
    shutil.copytree(ZOO / DENSE, root / DENSE)
    (root / DENSE / CARD).write_text("{}")
    before = checked_entry(NAME, root)[1]
    with pytest.raises(ValueError, match=DENSE):
        publishing.add_evaluations(NAME, [source(NAME, "probe.json")], root)
    assert checked_entry(NAME, root)[1] == before


def test_the_site_has_them_too(root: Path, tmp_path: Path) -> None:
    publishing.add_evaluations(NAME, [source(NAME, "calibration.json")], root)
    page = publishing.write_site(tmp_path / "zoo.html", root).read_text()
    assert "Beyond the test error" in page
    assert "5.98 ± 0.21" in page
    (root / NAME / "calibration.json").write_text("{}")
    with pytest.raises(ValueError, match=r"calibration\.json has 2 bytes"):
        publishing.write_site(tmp_path / "zoo.html", root)


def test_what_is_no_record_is_refused(root: Path, tmp_path: Path) -> None:
    for text in ("[]", "{}", "no JSON"):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(ValueError, match=r"a\.json"):
            read_evaluation(tmp_path / "a.json")
    with pytest.raises(FileNotFoundError):
        publishing.add_evaluations(NAME, [tmp_path / "none.json"], root)


def test_a_record_that_was_changed_afterwards_is_found(root: Path) -> None:
    publishing.add_evaluations(NAME, [source(NAME, "probe.json")], root)
    path = root / NAME / "probe.json"
    path.write_text(path.read_text().replace("40", "20", 1))
    with pytest.raises(ValueError, match=r"probe\.json is damaged or another file"):
        checked_entry(NAME, root)
