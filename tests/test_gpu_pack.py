"""What is sent to a machine with a GPU: parts, wheels and their sizes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bare_machine import PACKED
from conftest import ROOT

TOOLS = ROOT / "tools" / "gpu"
sys.path.append(str(TOOLS))

import pack  # noqa: E402


def test_the_wheels_are_those_of_the_modules_that_are_missing_there():
    assert {name.replace("-", "_") for name in pack.PACKAGES} == set(PACKED.split())


# Parts


@pytest.mark.parametrize(
    ("sizes", "room", "part"),
    [((81, 16), 52, 50), ((81, 16), 30, 50), ((81, 16), 98, 50), ((5, 5), 5, 5), ((7, 1), 3, 1)],
)
def test_calls_hold_every_byte_once_and_are_not_too_large(sizes, room, part):
    given = {f"file{i}": size for i, size in enumerate(sizes)}
    calls = pack.plan_calls(given, room, part)
    found = {name: [] for name in given}
    for pieces in calls:
        assert 0 < sum(length for *_, length in pieces) <= room
        for name, start, length in pieces:
            assert 0 < length <= part
            found[name] += range(start, start + length)
    assert found == {name: [*range(size)] for name, size in given.items()}
    assert len(calls) == -(-sum(sizes) // room)


def test_a_tree_that_is_too_large_is_refused():
    with pytest.raises(ValueError, match="take 1 bytes more than a call holds"):
        pack.plan_calls({"file": 1}, -1, 1)


@pytest.fixture
def tree(tmp_path, monkeypatch) -> tuple[Path, Path]:
    """A small repository and data, with limits to match."""
    root, data = tmp_path / "root", tmp_path / "data"
    (root / ".gpu" / "wheels").mkdir(parents=True)
    (root / ".gpu" / "wheels" / "a.whl").write_bytes(b"w" * 10)
    (root / "file.py").write_bytes(b"x" * 100)
    (root / ".gitignore").write_text(".gpu/\n")
    subprocess.run(["git", "init", "-q", str(root)], check=True)
    data.mkdir()
    rng = np.random.default_rng(0)
    for name, size in zip(pack.FILES, (816, 163), strict=True):
        (data / name).write_bytes(rng.integers(0, 256, size, np.uint8).tobytes())
    monkeypatch.setattr(pack, "LIMIT", 1800)
    monkeypatch.setattr(pack, "SPARE", 1100)
    monkeypatch.setattr(pack, "PART", 500)
    return root, data


def test_parts_are_joined_to_the_same_files_and_no_call_is_too_large(tree):
    root, data = tree
    calls = pack.make_parts(root, data)
    assert len(calls) == 2
    for i in (1, 2):
        files = (root / ".gpu" / f"call{i}").iterdir()
        assert all(path.stat().st_size <= 500 for path in files if path.name != pack.MANIFEST)
    lines = pack.say(root, calls)
    assert lines[0].startswith("call 1: the working tree, .gpu/wheels, .gpu/call1: ")
    assert lines[1] == "  python tools/gpu/pack.py join || true"
    assert "run.py cifar" in lines[3]
    assert pack.join(root) == root / ".gpu" / "data"
    for name in pack.FILES:
        assert (root / ".gpu" / "data" / name).read_bytes() == (data / name).read_bytes()
    for folder in ("call1", "call2"):  # joined before: no part is read again
        (root / ".gpu" / folder / "cifar10-train.npz.0").unlink(missing_ok=True)
    assert pack.join(root) == root / ".gpu" / "data"


def test_a_call_that_is_too_large_is_refused(tree, monkeypatch):
    root, data = tree
    calls = pack.make_parts(root, data)
    (root / "another").write_bytes(b"x" * 2000)
    with pytest.raises(ValueError, match=r"Call 1 would carry \d+ bytes, at most 1800"):
        pack.say(root, calls)
    with pytest.raises(ValueError, match="bytes more than a call holds"):
        pack.make_parts(root, data)


@pytest.mark.parametrize(
    ("call", "name"), [(1, pack.FILES[0]), (2, pack.FILES[0]), (2, pack.FILES[1])]
)
def test_a_missing_or_damaged_part_is_named(tree, call, name):
    root, data = tree
    pack.make_parts(root, data)
    parts = sorted((root / ".gpu" / f"call{call}").glob(f"{name}.*"))
    content = parts[0].read_bytes()
    parts[0].unlink()
    missing = f"part .gpu/call{call}/{parts[0].name} of CIFAR-10 is missing: send call {call}"
    with pytest.raises(ValueError, match=missing):
        pack.join(root)
    parts[0].write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ValueError, match=f"parts of {name} are damaged"):
        pack.join(root)
    assert not (root / ".gpu" / "data" / name).exists()
    assert not list((root / ".gpu" / "data").glob(".*"))
    parts[0].write_bytes(content)
    assert pack.join(root) is not None


def test_parts_of_two_packings_are_not_mixed(tree):
    root, data = tree
    pack.make_parts(root, data)
    (root / ".gpu" / "call1" / pack.MANIFEST).write_text("{}")
    with pytest.raises(ValueError, match="of different packings"):
        pack.join(root)


def test_without_parts_there_is_nothing_to_join(tmp_path, capsys):
    assert pack.join(tmp_path) is None
    assert pack.main(["make", "--data", str(tmp_path)]) == 1
    assert "No cifar10-train.npz and no cifar10-test.npz" in capsys.readouterr().err
