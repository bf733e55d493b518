"""The page of GPU results, generated from what the stages of the GPU script save."""

from __future__ import annotations

import json
import sys

import pytest

from conftest import ROOT
from ssl_lightning.kernels import tiles
from ssl_lightning.kernels.tiles import Problem, Tile

sys.path.append(str(ROOT / "tools" / "gpu"))

import page
import stages
import table4

GPU = "NVIDIA H100"
SPEEDUPS = {2: (1.0, 2.1, 4.2, 5.3, 2.9), 5: (1.0, 1.1, 1.2, 1.3, 1.4)}


def save(folder, name, result, **changes):
    record = {"result": result, "device": GPU, "torch": "2.11", "date": "2026-12-01"}
    record = {**record, "dry_run": False, "error": None, **changes}
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(record))


def one(name, number, **fields):
    empty = dict.fromkeys(("ms", "ms_iqr", "speedup", "speedup_iqr", "floor_ms", "limit"))
    return {"name": name, "configuration": number, **empty, "failure": None, **fields}


def case(layer, i, batch=1):
    sparse = [
        one("columns", n, ms=0.02 / s[i], floor_ms=0.0031, speedup=s[i], limit=7.0 + n)
        for n, s in SPEEDUPS.items()
    ]
    failed = one("compile", 0, failure="RuntimeError: no | such kernel")
    dense = one("cudnn", 0, ms=0.02, floor_ms=0.0044, speedup=1.0, limit=1.0)
    row = {"layer": layer, "batch": batch, "mode": "float32", "device": GPU, "fastest": "cudnn"}
    return {**row, "failure": None, "candidates": [dense, failed, *sparse]}


def cases(layers=table4.LAYERS):
    return {"ceilings": {}, "cases": [case(layer, i) for i, layer in enumerate(layers)]}


def cell(text, line, column):
    """Return a cell of the last line that begins so."""
    found = [row for row in text.splitlines() if row.startswith(f"| {line} |")]
    return found[-1].split("|")[column + 1].strip()


def test_the_committed_page_is_what_the_results_give():
    assert (ROOT / page.PAGE).read_text() == page.page(ROOT / stages.RESULTS)


def test_without_results_it_says_so(tmp_path):
    assert page.page(tmp_path).count("Not measured on a GPU.") == len(page.SECTIONS)


def test_table4_shows_ratios_floors_and_means(tmp_path):
    save(tmp_path, "table4", cases())
    text = page.page(tmp_path)
    assert f"### {GPU}, float32, batch 1" in text
    assert [cell(text, "#2 column-sparse", i) for i in range(1, 8)] == [
        *("1.00", "2.10", "4.20", "5.30", "2.90"),
        *("3.10", "-"),
    ]
    assert cell(text, "#2 column-sparse, ms (floor)", 4) == "0.0038 (0.0031)"
    assert cell(text, "its ms (floor)", 1) == "0.0200 (0.0044)"
    assert cell(text, "#2 the paper, product alone", 6) == "3.08"
    assert cell(text, "#5 limit", 6) == "12.00"
    assert f"| #2 column-sparse | {GPU} | float32 | 1 | 3.10 | 9.00 | 3.08 |" in text
    assert "| conv1, batch 1, float32 | compile | RuntimeError: no \\| such kernel |" in text


def test_a_mean_needs_all_five_layers(tmp_path):
    result = cases(table4.LAYERS[:4])
    result["cases"][3]["failure"] = "OutOfMemoryError: 9 GB"
    save(tmp_path, "table4", result)
    text = page.page(tmp_path)
    assert cell(text, "#2 column-sparse", 5) == "-"
    assert cell(text, "#2 column-sparse", 6) == "-"
    assert f"| #2 column-sparse | {GPU}" not in text
    assert "| conv4, batch 1, float32 | the case | OutOfMemoryError: 9 GB |" in text
    assert "product alone, ms" not in text


def test_checks_are_counted_and_failures_named(tmp_path):
    rows = [
        {"name": "kernel a", "ok": True, "figure": 1e-6, "error": None},
        {"name": "kernel b", "ok": False, "figure": None, "error": "AssertionError: output"},
        {"name": "fit 32-true", "ok": True, "figure": 0.5, "error": None},
    ]
    save(tmp_path, "check", rows, error="check: it was stopped\nand more")
    text = page.page(tmp_path)
    assert "2 of 3 hold" in text
    assert "| Triton kernel, relative error | 1 | 2 | 1e-06 |" in text
    assert "| kernel b | AssertionError: output |" in text
    assert "ended early: check: it was stopped\n" in text


def test_training_runs_are_listed(tmp_path):
    run = {"name": "dense-0", "seed": 0, "epochs": 150, "of": 200, "images_per_s": 12345.6}
    other = {"name": "dense-1", "seed": 1, "epochs": 200, "of": 200, "test_error": 8.123}
    save(tmp_path, "cifar", {"runs": [run, other | {"error": "stopped"}], "images_per_s": 99999.9})
    text = page.page(tmp_path)
    assert "100,000 images/s" in text
    assert "| dense-0 | 0 | 150 of 200 | 12,346 | - | - | - |" in text
    assert "| dense-1 | 1 | 200 of 200 | - | - | 8.12 | stopped |" in text


@pytest.mark.parametrize("name", page.SECTIONS)
def test_results_of_a_dry_run_are_refused(tmp_path, name):
    save(tmp_path, name, {"tiles": {}}, dry_run=True)
    with pytest.raises(ValueError, match=rf"{name}\.json`: expected results of a GPU"):
        page.page(tmp_path)


@pytest.mark.parametrize("name", page.SECTIONS)
def test_a_file_that_holds_only_an_error_is_refused(tmp_path, name):
    save(tmp_path, name, None, error="RuntimeError: no CUDA device was found.\nand more")
    with pytest.raises(ValueError, match=rf"{name}\.json`: .*got only this: .*no CUDA device"):
        page.page(tmp_path)


def test_a_page_is_not_written_from_an_error(tmp_path, monkeypatch, capsys):
    save(tmp_path / "results", "check", None, error="no time: no check was begun.")
    monkeypatch.setattr(page, "ROOT", tmp_path)
    monkeypatch.setattr(page, "RESULTS", "results")
    (tmp_path / "docs").mkdir()
    assert page.main([]) == 1
    assert "got only this: no time: no check was begun. Delete" in capsys.readouterr().err
    assert not (tmp_path / page.PAGE).exists()


def test_tuned_tiles_are_put_in_place_beside_those_of_other_devices(tmp_path):
    problem, file = Problem("float32", True, 1, 2, 3, 1), tmp_path / "tiles.json"
    tiles.write_tiles({"another": {problem: Tile(16, 16)}, GPU: {problem: Tile(16, 32)}}, file)
    mine = {GPU: {problem: Tile(64, 64)}}
    tried = {"tried": {"a": 0.2, "b": 0.1}, "ms": 0.1}
    save(tmp_path, "tune", {"tiles": tiles.to_json(mine), "tasks": {GPU: {"a layer": tried}}})
    assert page.put_tiles(tmp_path, file) == 1
    assert tiles.read_tiles(file) == {"another": {problem: Tile(16, 16)}, **mine}
    assert "2.00 times as fast as by the rule" in page.page(tmp_path)


@pytest.mark.parametrize("dry_run", [None, True])
def test_no_tiles_without_results_of_a_gpu(tmp_path, dry_run):
    if dry_run:
        save(tmp_path, "tune", {"tiles": {}, "tasks": {}}, dry_run=True)
    with pytest.raises(ValueError, match="tune"):
        page.put_tiles(tmp_path, tmp_path / "tiles.json")
    assert not (tmp_path / "tiles.json").exists()
