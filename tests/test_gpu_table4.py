"""The stages of the GPU script that time layers, on the CPU with tiny sizes."""

from __future__ import annotations

import json
import sys
import weakref

import pytest
import torch

from conftest import ROOT
from test_gpu_script import context

sys.path.append(str(ROOT / "tools" / "gpu"))

import candidates
import layers
import measuring
import stages
import table4
import timing

CPU = torch.device("cpu")
CASE = layers.Case("conv3", 1, "float32")


pytestmark = pytest.mark.usefixtures("own_switches")


def test_all_candidates_are_checked_and_timed_in_a_dry_run(script, tmp_path):
    pytest.importorskip("triton")
    run = script("table4", "--dry-run", "--minutes", "6", "--out", str(tmp_path))
    assert run.returncode == 0, run.stderr
    record = json.loads((tmp_path / "table4.json").read_text())
    assert record["error"] is None
    assert record["dry_run"]
    rows = record["result"]["cases"]
    assert [row["layer"] for row in rows] == [*table4.LAYERS, "conv part"] * 2
    found = [one for row in rows for one in row["candidates"]]
    assert [one for one in found if one["failure"]] == []
    assert min(one["ms"] for one in found) > 0
    assert max(one["difference"] for one in found) < timing.TOLERANCE["bfloat16"]
    assert {one["configuration"] for one in found if one["name"] == "columns"} == {2, 5}
    assert f"{len(rows)} cases" in run.stdout


def test_limits_are_those_of_the_paper():
    found = [
        layers.operations(layers.Case(layer, 1, "float32"), False)
        / layers.operations(layers.Case(layer, 1, "float32"), False, 2)
        for layer in (*table4.LAYERS, "conv part")
    ]
    assert found == pytest.approx([1.10, 3.12, 7.29, 12.31, 5.18, 3.15], rel=0.01)


def failing(setting):
    def broken():
        raise RuntimeError("no such engine\nand more")

    def wrong():
        one = candidates.dense(setting)
        return candidates.Candidate(lambda x: one.compute(x) + 1, one.inputs, one.exact, 10)

    yield "broken", 0, broken
    yield "wrong", 0, wrong
    yield "cudnn", 0, lambda: candidates.dense(setting)


@torch.no_grad()
def test_a_candidate_that_fails_or_is_wrong_does_not_stop_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(measuring, "candidates", failing)
    now = context(tmp_path, dry_run=True)
    ceilings = {"bytes_per_s": 1e9, "launch_ms": 0.0, "operations_per_s": {"float32": 1e9}}
    result = {"ceilings": {"interpreter": ceilings}, "cases": []}
    measuring.measure(CASE, CPU, now, result)
    broken, wrong, dense = now.earlier("table4")["cases"][0]["candidates"]
    assert broken["failure"] == "RuntimeError: no such engine"
    assert "relative difference" in wrong["failure"]
    assert broken["ms"] is None is wrong["ms"]
    assert dense["ms"] > 0
    assert dense["speedup"] == 1
    assert dense["floor_ms"] == pytest.approx(layers.operations(CASE, True) / 1e6)


@torch.no_grad()
def test_a_case_that_fails_is_written_down(tmp_path, monkeypatch):
    def full(*_):
        raise MemoryError("9 GB")

    monkeypatch.setattr(measuring, "make_setting", full)
    now, result = context(tmp_path, dry_run=True), {"ceilings": {"interpreter": {}}, "cases": []}
    measuring.measure(CASE, CPU, now, result)
    (row,) = now.earlier("table4")["cases"]
    assert (row["layer"], row["failure"]) == ("conv3", "MemoryError: 9 GB")
    assert table4.headline(result) == "1 cases"


def test_cases_are_open_until_measured_with_the_present_tiles_on_this_device():
    everything = layers.cases(True)
    assert measuring.open_cases([], CPU, True) == everything
    rows = [
        {**vars(case), "device": "interpreter", "tiles": measuring.tiles_now(case, CPU, True)}
        for case in everything
    ]
    assert measuring.open_cases(rows, CPU, True) == []
    rows[0]["device"] = "another"
    rows[3]["tiles"]["conv4 #2"]["rows"] = 256
    assert measuring.open_cases(rows, CPU, True) == [everything[0], everything[3]]


def test_nothing_is_begun_after_the_deadline(tmp_path):
    now = context(tmp_path, dry_run=True, deadline=0.0)
    with pytest.raises(stages.NoTimeError, match="no time: none of 12 open cases was measured"):
        measuring.measure_cases(now)
    assert now.earlier("table4")["cases"] == []
    assert now.earlier("table4")["ceilings"]["interpreter"]["bytes_per_s"] > 0


@pytest.mark.parametrize("mode", timing.MODES)
def test_modes_set_all_switches(mode):
    timing.set_mode(mode)
    expected = mode == "tf32"
    assert torch.backends.cudnn.allow_tf32 == expected
    assert (torch.backends.cudnn.conv.fp32_precision == "tf32") == expected
    assert torch.backends.cuda.matmul.allow_tf32 == expected


def test_a_prepared_computation_holds_what_a_graph_reads():
    x = torch.ones(3)
    kept = weakref.ref(x)
    ready = timing.prepare(lambda x: x + 1, [x], lambda x: x + 1, 0.0)
    del x
    assert kept() is not None
    assert ready.outputs[0].tolist() == [2, 2, 2]


def test_the_clock_adds_up_what_passes_between_events(monkeypatch):
    times = iter([5.0, 7.0, 10.0])  # ms

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.at = next(times)

        def synchronize(self):
            self.done = True

        def elapsed_time(self, other):
            assert other.done
            return other.at - self.at

    monkeypatch.setattr(torch.cuda, "Event", Event)
    clock = timing.EventClock()
    assert [clock(), clock()] == pytest.approx([0.002, 0.005])


def test_a_floor_is_the_largest_of_launch_bytes_and_operations():
    ceilings = {"bytes_per_s": 1e9, "launch_ms": 2.0, "operations_per_s": {"tf32": 1e12}}
    assert timing.floor_ms(ceilings, "tf32", 1e9, 1e6) == 2
    assert timing.floor_ms(ceilings, "tf32", 1e9, 5e6) == 5
    assert timing.floor_ms(ceilings, "tf32", 9e9, 5e6) == 9
