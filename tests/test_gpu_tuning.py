"""The search for tiles of the GPU kernel, on the CPU with tiny sizes."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from conftest import ROOT
from ssl_lightning.kernels import tiles
from ssl_lightning.kernels.tiles import ALLOWED, Problem, Tile
from test_gpu_script import context

sys.path.append(str(ROOT / "tools" / "gpu"))

import layers
import measuring
import stages
import tune
import tuning

CPU = torch.device("cpu")
TASK = tuning.tasks(True)[0]
LARGE = Problem("float32", False, 3025, 96, 363, 1)


pytestmark = pytest.mark.usefixtures("own_switches")


@pytest.fixture(autouse=True)
def _tiles():
    yield
    tiles.use(None)


def test_a_dry_run_tunes_and_the_kernel_reads_what_it_found(script, tmp_path):
    pytest.importorskip("triton")
    run = script("tune", "--dry-run", "--minutes", "6", "--out", str(tmp_path))
    assert run.returncode == 0, run.stderr
    record = json.loads((tmp_path / "tune.json").read_text())
    assert record["error"] is None
    tried = [one["tried"] for one in record["result"]["tasks"]["interpreter"].values()]
    assert [len(one) for one in tried] == [4, 4]
    assert all(isinstance(ms, float) for one in tried for ms in one.values())
    table = tiles.from_json(record["result"]["tiles"])
    tiles.use(table)
    for problem, tile in table["interpreter"].items():
        assert tiles.choose(problem, "interpreter", 4) == tile
    assert "8 tiles tried for 2 problems" in run.stdout


def test_the_next_stage_takes_tuned_tiles(tmp_path):
    now = context(tmp_path, dry_run=True)
    case = layers.Case("conv2", 1, "float32")
    before = layers.chosen_tiles(case, CPU, True)["conv2 #2"]
    mine = Tile(16, 256, 128, 12, 8, 6, "tf32x3")
    assert before != mine
    now.save("tune", {"tiles": tiles.to_json({"interpreter": {TASK.problem(True): mine}})})
    measuring.use_tuned(now)
    assert layers.chosen_tiles(case, CPU, True)["conv2 #2"] == mine


def test_proposals_begin_with_the_rule_and_are_never_repeated():
    known, seen = {}, []
    rule = tiles.default_tile(TASK.problem(True), 4)
    while proposed := tuning.propose(TASK, known, CPU, True):
        assert not set(proposed) & set(seen)
        seen += proposed[:3]
        row = known.setdefault(str(TASK), tuning.new_row(TASK.problem(True)))
        row["tried"] |= {tuning.name_of(tile): 1.0 for tile in proposed[:3]}
        tuning.update(row, seen[0], dict.fromkeys((seen[0], *proposed[:3]), 1.0))
    assert seen[0] == rule
    assert len(seen) > 6
    assert row["idle"] > 0


def test_the_best_tile_of_the_same_layer_is_proposed():
    good = Tile(16, 32, 64, warps=2)
    other = tuning.new_row(TASK.problem(True)) | {"tile": vars(good)}
    mine = tuning.new_row(TASK.problem(True)) | {"tried": {"16 32 32 1 4 3 ieee": "failed"}}
    known = {str(TASK): mine, str(tuning.tasks(True)[1]): other}
    assert good in tuning.propose(TASK, known, CPU, True)


def test_neighbours_are_what_the_kernel_allows():
    found = list(tuning.neighbours(Tile(16, 256, 128, 16, 8, 6, "tf32x3")))
    assert len(found) == len(ALLOWED)
    assert all(
        getattr(tile, name) in allowed for tile in found for name, allowed in ALLOWED.items()
    )


@pytest.mark.parametrize(
    ("tile", "sensible"),
    [
        (Tile(32, 64), True),
        (Tile(256, 64), False),  # 96 rows
        (Tile(128, 256, 16), False),  # 256 sums in a thread
        (Tile(128, 128, 64, warps=8, stages=4), False),  # 256 KB in flight
        (Tile(32, 64, 64, splits=8), False),  # 6 steps
        (Tile(32, 64, precision="tf32x3"), True),
    ],
)
def test_tiles_that_cannot_run_are_left_out(tile, sensible):
    assert tuning.is_sensible(tile, LARGE) is sensible


def test_a_precision_that_is_not_read_is_not_tried():
    problem = Problem("bfloat16", False, 3025, 96, 363, 1)
    assert not tuning.is_sensible(Tile(32, 64, precision="tf32x3"), problem)


def test_a_tile_replaces_the_best_only_if_clearly_faster():
    best, other = Tile(32, 64), Tile(64, 64)
    row = tuning.new_row(LARGE)
    tuning.update(row, None, {best: 1.0})
    assert (row["tile"], row["ms"], row["idle"]) == (vars(best), 1.0, 0)
    tuning.update(row, best, {best: 1.1, other: 1.09})
    assert (row["tile"], row["ms"], row["idle"]) == (vars(best), 1.1, 1)
    tuning.update(row, best, {})
    assert row["idle"] == 2
    tuning.update(row, best, {best: 1.1, other: 1.0})
    assert (row["tile"], row["ms"], row["idle"]) == (vars(other), 1.0, 0)


def test_problems_with_more_to_gain_come_first():
    far, near, stuck = (
        {"ms": ms, "floor_ms": 1.0, "idle": idle} for ms, idle in ((9, 0), (2, 0), (9, 5))
    )
    gains = [tuning.to_gain(row) for row in (None, far, near, stuck)]
    assert gains == sorted(gains, reverse=True)
    assert len(set(gains)) == 4


def test_what_is_not_compiled_in_time_is_left_out(tmp_path):
    now = context(tmp_path, dry_run=True, deadline=0.0)
    with tuning.Ahead(now) as ahead:
        found = ahead.compile({TASK: [Tile(16, 16)]})
        assert ahead.pool is None  # it may be stuck
    assert found == {TASK: {Tile(16, 16): "not compiled within 0 s"}}


@torch.no_grad()
def test_tiles_that_fail_are_written_down(tmp_path):
    now = context(tmp_path, dry_run=True)
    row = tuning.new_row(TASK.problem(True))
    tuning.try_tiles(TASK, {Tile(16, 16): "too slow"}, row, {}, now)
    assert row["tried"] == {tuning.name_of(Tile(16, 16)): "RuntimeError: too slow"}
    assert row["tile"] is None
    result = {"tasks": {"a GPU": {str(TASK): row}}}
    tuning.save(now, result)
    assert now.earlier("tune")["tiles"] == {"a GPU": []}
    assert tune.headline(result) == "1 tiles tried for 1 problems"


@torch.no_grad()
def test_a_problem_that_fails_does_not_stop_the_others(tmp_path, monkeypatch):
    make = tuning.make_setting

    def full(case, *rest):
        if case.mode == "float32":
            raise MemoryError("9 GB")
        return make(case, *rest)

    monkeypatch.setattr(tuning, "make_setting", full)
    compiled = {task: {Tile(16, 16): "too slow"} for task in tuning.tasks(True)}
    known = {}
    tuning.try_all(compiled, known, {}, context(tmp_path, dry_run=True))
    assert [next(iter(row["tried"].values())) for row in known.values()] == [
        "MemoryError: 9 GB",
        "RuntimeError: too slow",
    ]
    late = context(tmp_path, dry_run=True, deadline=0.0)
    none = {}
    tuning.try_all(compiled, none, {}, late)
    assert none == {}


@pytest.mark.parametrize("left", [True, False])
def test_a_search_that_tried_nothing_had_no_time_unless_nothing_is_left(
    tmp_path, monkeypatch, left
):
    monkeypatch.setattr(tuning.gpu, "is_available", lambda: True)
    monkeypatch.setattr(tuning, "next_tiles", lambda *_: {TASK: [Tile(16, 16)]} if left else {})
    late = context(tmp_path, dry_run=True, deadline=0.0)
    if left:
        with pytest.raises(stages.NoTimeError, match="no time: no tile was tried"):
            tuning.tune(late)
    else:
        tuning.tune(late)
    assert late.earlier("tune")["tiles"] == {"interpreter": []}


def test_without_triton_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(tuning.gpu, "is_available", lambda: False)
    now = context(tmp_path, dry_run=True)
    tuning.tune(now)
    assert tune.headline(now.earlier("tune")) == "Triton is not installed"
    with pytest.raises(RuntimeError, match="Triton is not installed"):
        tuning.columns(tuning.make_setting(TASK.case, CPU, True), 2)
