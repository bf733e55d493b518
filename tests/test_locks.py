"""Locks and files: what is locked stays zero, through plain state; files are whole or untouched."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ssl_lightning.files import replacing
from ssl_lightning.groups import GroupSet, Member
from ssl_lightning.locks import GroupLocks

ROWS = GroupSet("fc", "filter", (Member("w", (3, 2), (0,)),), (Member("b", (3,), (0,)),))
COLUMNS = GroupSet("fc", "channel", (Member("w", (3, 2), (1,)),))
GROUPED = GroupSet("conv", "channel", (Member("v", (2, 2, 3, 1, 1), (0, 2)),))


def tensors() -> dict[str, torch.Tensor]:
    return {"w": torch.ones(3, 2), "b": torch.ones(3), "v": torch.ones(4, 3, 1, 1)}


def locked() -> GroupLocks:
    locks = GroupLocks()
    assert locks.lock(ROWS, torch.tensor([True, False, False])) == 1
    assert locks.lock(ROWS, torch.tensor([False, False, True])) == 1
    assert locks.lock(ROWS, torch.tensor([True, False, False])) == 0
    assert locks.lock(COLUMNS, torch.tensor([False, False])) == 0
    assert locks.lock(GROUPED, torch.tensor([0, 0, 0, 0, 1, 0], dtype=torch.bool)) == 1
    return locks


def test_locks_add_up_and_zero_companions() -> None:
    locks, found = locked(), tensors()
    assert len(locks) == 3
    locks.enforce_(found)
    assert found["w"].tolist() == [[0, 0], [1, 1], [0, 0]]
    assert found["b"].tolist() == [0, 1, 0]
    assert found["v"].flatten(1).tolist() == [[1, 1, 1], [1, 1, 1], [1, 0, 1], [1, 0, 1]]
    assert locks.mask(ROWS).tolist() == [True, False, True]
    assert locks.mask(COLUMNS).tolist() == [False, False]


def test_state_survives_a_file_that_holds_only_plain_values(tmp_path: Path) -> None:
    torch.save(locked().state_dict(), tmp_path / "locks.pt")
    again = GroupLocks()
    again.lock(COLUMNS, torch.tensor([True, True]))
    again.load_state_dict(torch.load(tmp_path / "locks.pt", weights_only=True))
    assert again.state_dict() == locked().state_dict()
    expected, found = tensors(), tensors()
    locked().enforce_(expected)
    again.enforce_(found)
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor)
    assert again.lock(ROWS, torch.tensor([True, True, True])) == 1


def test_prefix_chooses_the_tensors() -> None:
    found = {f"backbone.{name}": tensor for name, tensor in tensors().items()} | {
        "metrics_.w": torch.ones(3, 2)
    }
    locked().enforce_(found, prefix="backbone.")
    assert found["backbone.w"].sum() == 2
    assert found["metrics_.w"].sum() == 6


def test_no_locks_do_nothing() -> None:
    locks = GroupLocks()
    locks.enforce_({})
    assert len(locks) == 0
    assert locks.state_dict() == []


# --- files -------------------------------------------------------------------------------------


def test_replacing_makes_folders_and_replaces(tmp_path: Path) -> None:
    target = tmp_path / "new" / "file.txt"
    for text in ("one", "two"):
        with replacing(target) as temporary:
            assert temporary.parent == target.parent
            assert temporary.suffix == ".txt"
            temporary.write_text(text)
        assert target.read_text() == text
    assert [p.name for p in target.parent.iterdir()] == ["file.txt"]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    target.write_text("old")

    def fail() -> None:
        with replacing(target) as temporary:
            temporary.write_text("half")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]
