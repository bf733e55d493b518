"""Damage to entries, file by file and byte by byte: found before anything is parsed."""

from __future__ import annotations

import json
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conftest import ROOT
from ssl_lightning import zoo
from ssl_lightning.cli import main
from ssl_lightning.zoo.cards import CARD, EVALUATIONS, FILES, PAGE, digest, serial
from ssl_lightning.zoo.entries import checked_entry, checked_file

ZOO = ROOT / "zoo"
NAME = "mlp_mnist_neuron"  # has all files but a picture of filters
OTHER = "lenet_mnist_filter_channel"
EVALUATED = "mobilenetv3_small_imagenette_half"  # has all records of `evaluate`
FULL = 6000
"""Bytes of a file of which each is flipped; of larger ones every k-th, so many in all."""
PAIRS = [(name, file) for name in (NAME, OTHER) for file in FILES if (ZOO / name / file).exists()]
PAIRS += [(EVALUATED, file) for file in EVALUATIONS]


@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    """A zoo of its own; every test leaves it as it was."""
    root = tmp_path_factory.mktemp("zoo")
    for name in (NAME, OTHER, EVALUATED):
        shutil.copytree(ZOO / name, root / name)
    return root


def flips(whole: bytes):
    """Every k-th byte with one bit flipped, first and last bytes always, as whole contents."""
    step = max(1, len(whole) // FULL) if len(whole) < 100_000 else len(whole) // 500
    for place in sorted({*range(0, len(whole), step), len(whole) - 1}):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        yield flipped


def test_every_file_of_the_format_is_among_the_damaged():
    assert {file for _, file in PAIRS} == set(FILES)


@pytest.mark.parametrize(("name", "file"), PAIRS)
def test_every_flipped_byte_of_a_file_is_found(copied, name, file):
    path, stored = copied / name / file, zoo.card(name, copied).files[file]
    whole = path.read_bytes()
    for number, flipped in enumerate(flips(whole)):
        path.write_bytes(flipped)
        with pytest.raises(ValueError, match=f"{file} is damaged or another file"):
            checked_file(path, stored)
        if number % 200 == 0:
            with pytest.raises(ValueError, match=f"{file} is damaged or another file"):
                checked_entry(name, copied)
    path.write_bytes(whole)
    checked_entry(name, copied)


def test_every_flipped_byte_of_a_card_is_found(copied):
    path = copied / OTHER / CARD
    whole = path.read_bytes()
    for place in range(len(whole)):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        with pytest.raises(ValueError, match=r"card\.(json is damaged|schema: expected)"):
            zoo.card(OTHER, copied)
    path.write_bytes(whole)
    zoo.card(OTHER, copied)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(start=st.integers(0, 6000), length=st.integers(0, 300), new=st.binary(max_size=40))
def test_every_edit_of_a_card_is_found(copied, start, length, new):
    path = copied / OTHER / CARD
    whole = (ZOO / OTHER / CARD).read_bytes()
    edited = whole[:start] + new + whole[start + length :]
    path.write_bytes(edited)
    try:
        if edited == whole:
            zoo.card(OTHER, copied)
        else:
            with pytest.raises(ValueError, match=r"card\.(json is damaged|schema: expected)"):
                zoo.card(OTHER, copied)
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize(("name", "file"), PAIRS)
def test_truncated_grown_swapped_and_missing_files_are_named(copied, name, file):
    path = copied / name / file
    whole = path.read_bytes()
    for content in (b"", whole[:1], whole[:-1], whole + b"\0"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"{file} has {len(content)} bytes, but {len(whole)}"):
            zoo.load(name, root=copied)
    for other in {f for n, f in PAIRS if n == name} - {file}:
        shutil.copy(ZOO / name / other, path)
        with pytest.raises(ValueError, match=f"{file} (has|is damaged or another file)"):
            zoo.load(name, root=copied)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=f"{file} is missing"):
        zoo.load(name, root=copied)
    path.mkdir()
    with pytest.raises(FileNotFoundError, match=f"{file} is missing"):
        zoo.load(name, root=copied)
    path.rmdir()
    path.write_bytes(whole)
    zoo.load(name, root=copied)


def test_swapped_cards_are_named(copied):
    whole = (copied / NAME / CARD).read_bytes()
    shutil.copy(copied / OTHER / CARD, copied / NAME / CARD)
    with pytest.raises(ValueError, match=f"is the card of '{OTHER}', not of '{NAME}'"):
        zoo.load(NAME, root=copied)
    (copied / NAME / CARD).write_bytes(whole)


def sealed(change) -> bytes:
    """The bytes of a card with a change, under a digest that belongs to it."""
    fields = json.loads((ZOO / OTHER / CARD).read_bytes())
    del fields["digest"]
    change(fields)
    return serial({**fields, "digest": digest(fields)})


def outside(path):
    return lambda fields: fields["files"].update({path: fields["files"].pop(PAGE)})


BAD = {
    "a path upwards": (outside(f"../{PAGE}"), r"card\.files: expected"),
    "an absolute path": (outside("/etc/hostname"), r"card\.files: expected"),
    "a path below": (outside(f"a/{PAGE}"), r"card\.files: expected"),
    "a Windows path": (outside(f"..\\{PAGE}"), r"card\.files: expected"),
    "a pickle": (outside("model.pt"), r"card\.files: expected"),
    "a name upwards": (lambda f: f.update(name="../x"), "Cannot be the name of a zoo entry"),
    "another name": (lambda f: f.update(name="x"), "is the card of 'x', not of"),
    "a newer schema": (lambda f: f.update(schema=5), "expected 4, got 5. Read it with the version"),
    "no number": (lambda f: f.update(schema=True), "expected 4, got True"),
    "an older schema": (lambda f: f.update(schema=1), "expected 4, got 1. Read it with the vers"),
    "an unknown field": (lambda f: f.update(code="import os"), "unknown: code"),
    "a missing field": (lambda f: f.pop("seeds"), "missing: seeds"),
    "a negative size": (lambda f: f["files"][PAGE].update(num_bytes=-1), f"{PAGE} has"),
    "no hash": (lambda f: f["files"][PAGE].update(sha256=""), f"{PAGE} is damaged or another"),
    "a hidden gap": (lambda f: f.update(controls=[], unmeasured={}), "expected a reason for"),
}


@pytest.mark.parametrize("case", BAD)
def test_forged_cards_are_refused_in_one_sentence(copied, case):
    change, message = BAD[case]
    path = copied / OTHER / CARD
    path.write_bytes(sealed(change))
    with pytest.raises(ValueError, match=message) as caught:
        zoo.load(OTHER, root=copied)
    assert "\n" not in str(caught.value)
    shutil.copy(ZOO / OTHER / CARD, path)


def test_a_damaged_card_does_not_hide_the_other_entries(copied, capsys):
    path = copied / NAME / CARD
    whole = path.read_bytes()
    path.write_bytes(whole[:-3])
    try:
        assert main(["zoo", "list", "--root", str(copied)]) == 1
    finally:
        path.write_bytes(whole)
    said = capsys.readouterr()
    assert OTHER in said.out
    assert NAME not in said.out
    assert f"error: {NAME}: {path} is damaged or was edited" in said.err
    assert main(["zoo", "list", "--root", str(copied)]) == 0
    assert NAME in capsys.readouterr().out
