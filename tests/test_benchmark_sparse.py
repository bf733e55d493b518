"""Sparse layers against dense engines: engines, cases, records, tables, pictures, commands."""

from __future__ import annotations

import io
import json
import subprocess
import sys

import pytest
import torch
from rich.console import Console
from torch import nn

from conftest import ROOT
from ssl_lightning import suggest
from ssl_lightning.cli import main
from ssl_lightning.compaction.equality import tensors_of
from ssl_lightning.kernels import ColumnSparseConv2d
from ssl_lightning.measure import sparse
from ssl_lightning.measure.csr import CsrConv2d
from ssl_lightning.measure.engines import ENGINES, installed_engines, prepare
from ssl_lightning.measure.record import Machine
from ssl_lightning.measure.sparse_record import SparseRecord, SparseRow
from ssl_lightning.report import break_even_chart, sparse_table, speedup_chart

ISSUE_FIELDS = {
    "configuration",
    "layer",
    "batch_size",
    "threads",
    "dense_engine",
    "dense_ms",
    "sparse_ms",
    "speedup",
    "limit",
}


def row(**changes: object) -> SparseRow:
    values: dict = {
        "configuration": 2,
        "layer": "conv4",
        "form": "columns",
        "row_sparsity": 0.469,
        "column_sparsity": 0.847,
        "batch_size": 1,
        "threads": 1,
        "dense_engine": "openvino",
        "dense_ms": 0.9,
        "sparse_ms": 0.1,
        "speedup": 9.0,
        "speedup_iqr": 0.1,
        "limit": 12.31,
        "paper": 9.73,
        "engines_ms": {"eager": 1.0, "openvino": 0.9},
        "workspace_bytes": 102400,
        "lowering_bytes": 2336256,
    }
    return SparseRow(**{**values, **changes})


def record(*rows: SparseRow) -> SparseRecord:
    place = Machine("a processor", 2, "cpu", "3.11", "2.9")
    return SparseRecord("a title", "float32", place, "avx512", {"torch": "2.9"}, rows)


@pytest.mark.filterwarnings("ignore")  # of exporters and compilers
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_engine_computes_the_same(engine, dtype):
    if not ENGINES[engine].available:
        pytest.skip(f"{engine} is not installed")
    if engine == "onnxruntime" and dtype == torch.bfloat16:
        with pytest.raises(ValueError, match="float32 only"):
            prepare(engine, nn.Conv2d(1, 1, 1).to(dtype), torch.zeros(1, 1, 1, 1).to(dtype))
        return
    conv = nn.Conv2d(4, 6, 3, padding=1, groups=2).to(dtype).eval()
    x = torch.randn(2, 4, 9, 7).to(dtype)
    with torch.inference_mode():
        (output,) = tensors_of(prepare(engine, conv, x)())
        tolerance = 1e-5 if dtype == torch.float32 else 3e-2
        torch.testing.assert_close(output.float(), conv(x).float(), atol=tolerance, rtol=tolerance)


def test_an_engine_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(suggest, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"'openvino' needs openvino.*ssl-lightning\[engines\]"):
        prepare("openvino", nn.Conv2d(1, 1, 1), torch.zeros(1, 1, 1, 1))
    assert installed_engines() == ["eager", "compile"]


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("make", [CsrConv2d, ColumnSparseConv2d.from_conv])
def test_exporters_do_not_know_sparse_operators(engine, make, monkeypatch):
    monkeypatch.setattr(suggest, "find_spec", lambda name: True)
    layer = make(nn.Conv2d(1, 2, 1)).eval()
    with pytest.raises(ValueError, match=rf"does not know the operators of {type(layer).__name__}"):
        prepare(engine, nn.Sequential(layer), torch.zeros(1, 1, 2, 2))


def test_unknown_engine():
    with pytest.raises(ValueError, match="Did you mean openvino"):
        prepare("openvin", nn.Conv2d(1, 1, 1), torch.zeros(1, 1, 1, 1))


@pytest.mark.parametrize("groups", [1, 2])
def test_csr_equals_dense(groups):
    conv = nn.Conv2d(4, 6, (3, 2), (2, 1), (1, 0), (1, 2), groups, bias=groups == 1)
    sparse.zero_(conv, 0.0, 0.7, single=True)
    x = torch.randn(3, 4, 9, 8)
    torch.testing.assert_close(CsrConv2d(conv)(x), conv(x).detach())


def test_zeros_are_as_many_as_the_paper_has():
    for case in sparse.table4_cases([2], list(sparse.LAYERS)):
        conv = sparse.convolution(case.layer)
        sparse.zero_(conv, case.row_sparsity, case.column_sparsity)
        layer = ColumnSparseConv2d.from_conv(conv)
        assert abs(layer.rows.numel() / conv.out_channels - (1 - case.row_sparsity)) < 0.01
        columns = layer.geometry.num_columns
        assert abs(layer.columns.numel() / columns - (1 - case.column_sparsity)) < 0.01


def test_cases_of_the_paper():
    assert len(sparse.table4_cases(list(sparse.TABLE4), list(sparse.LAYERS))) == 20
    limits = [
        1 / ((1 - case.row_sparsity) * (1 - case.column_sparsity))
        for case in sparse.table4_cases([2], list(sparse.LAYERS))
    ]
    assert [round(limit, 2) for limit in limits] == [1.10, 3.12, 7.29, 12.31, 5.18]
    with pytest.raises(ValueError, match="Unknown configuration '3'"):
        sparse.table4_cases([3], ["conv1"])
    with pytest.raises(ValueError, match="Unknown layer 'fc6'"):
        sparse.table4_cases([2], ["fc6"])
    with pytest.raises(ValueError, match="from 0 to below 1, got 50"):
        sparse.break_even_cases("conv3", [50])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_measured_record(dtype, monkeypatch, tmp_path):
    monkeypatch.setattr(sparse, "MIN_RUN_TIME", 1e-5)
    cases = [*sparse.table4_cases([1, 2], ["conv4"]), *sparse.break_even_cases("conv5", [0.9])]
    seen: list[SparseRow] = []
    found = sparse.measure_sparse(
        "test",
        cases,
        batch_sizes=[1, 2],
        engines=["eager"],
        dtype=dtype,
        repeats=2,
        progress=seen.append,
    )
    assert list(found.rows) == seen
    assert len(seen) == (8 if dtype == "float32" else 4)  # CSR has no bfloat16
    for measured in seen:
        assert measured.dense_engine == "eager"
        assert measured.sparse_ms > 0
        assert measured.speedup > 0
        if measured.form == "columns" and found.instruction_set != "none":
            assert 0 < measured.workspace_bytes < measured.lowering_bytes
    found.save(tmp_path / "a.json")
    assert SparseRecord.load(tmp_path / "a.json") == found
    assert set(json.loads((tmp_path / "a.json").read_text())["rows"][0]) >= ISSUE_FIELDS


def test_the_conv_part_is_measured_as_a_whole(monkeypatch):
    monkeypatch.setattr(sparse, "MIN_RUN_TIME", 1e-5)
    cases = sparse.table4_cases([1, 2], ["conv part"])
    assert [(case.configuration, case.form) for case in cases] == [(2, "columns")]
    assert not sparse.measure_sparse("test", cases, engines=["eager"], dtype="bfloat16").rows
    (found,) = sparse.measure_sparse("test", cases, engines=["eager"], repeats=1).rows
    assert found.paper is None
    kept = [  # multiply-adds: pixels x weights of a filter x filters x shares that are left
        (55 * 55 * 363 * 96, 0.906, 1.0),
        (27 * 27 * 1200 * 256, 0.871, 0.368),
        (13 * 13 * 2304 * 384, 0.594, 0.231),
        (13 * 13 * 1728 * 384, 0.531, 0.153),
        (13 * 13 * 1728 * 256, 1.0, 0.193),
    ]
    limit = sum(macs for macs, _, _ in kept) / sum(macs * r * c for macs, r, c in kept)
    assert found.limit == pytest.approx(limit)
    assert found.workspace_bytes < found.lowering_bytes


def test_a_wrong_layer_is_not_timed():
    conv = sparse.convolution("conv5")
    x = sparse.images("conv5", 1)
    sparse.zero_(conv, 0, 0.8)
    layer = ColumnSparseConv2d.from_conv(conv)
    with torch.no_grad():
        layer.values[0] += 1
    with pytest.raises(ValueError, match="Do not use these timings"):
        sparse.check_equal(layer, conv, x)


def text(table: object) -> str:
    console = Console(width=150, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


def test_table_shows_every_row_and_the_mean():
    shown = text(sparse_table(record(row(), row(layer="conv1", speedup=0.5, limit=5.17))))
    for part in ("2 SSL", "conv4", "46.9", "84.7", "openvino", "0.900", "12.31", "9.00 ± 0.10"):
        assert part in shown
    (mean,) = (line.split() for line in shown.splitlines() if " mean  " in line)
    assert mean[-2:] == ["8.74", "5.00"]


def test_the_conv_part_is_not_in_the_mean():
    part = row(layer="conv part", paper=None, speedup=3.0, limit=3.15)
    lines = text(sparse_table(record(part, row(), row(layer="conv1", speedup=1.0)))).splitlines()
    mean = next(i for i, line in enumerate(lines) if " mean  " in line)
    assert lines[mean].split()[-3:] == ["9.73", "12.31", "5.00"]
    assert "conv part" in lines[mean + 1]
    assert " mean  " not in text(sparse_table(record(part)))


@pytest.mark.parametrize("draw", [speedup_chart, break_even_chart])
def test_pictures_are_drawn(draw, tmp_path):
    rows = [
        row(layer=layer, threads=threads, form=form, limit=limit, paper=None)
        for layer, limit in (("conv1", 1.1), ("conv2", 3.0))
        for threads in (1, 2)
        for form in ("columns", "csr")
    ]
    draw(record(*rows), tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    draw(record(rows[0]), tmp_path / "b.png")


def test_command_writes_the_record_and_the_picture(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sparse, "MIN_RUN_TIME", 1e-5)
    path = tmp_path / "t4.json"
    arguments = ["--configurations", "2", "--layers", "conv5", "--batch_size", "1"]
    arguments += ["--threads", "1", "--engines", "eager", "--repeats", "2", "--output", str(path)]
    assert main(["benchmark", "paper-table4", *arguments]) == 0
    (found,) = SparseRecord.load(path).rows
    assert (found.layer, found.configuration, found.threads) == ("conv5", 2, 1)
    assert path.with_suffix(".png").is_file()
    assert "4.93" in capsys.readouterr().out
    arguments = ["--layer", "conv5", "--sparsities", "[0.0, 0.9]", "--engines", "eager"]
    assert main(["benchmark", "break-even", *arguments, "--repeats", "2"]) == 0
    assert "20.0" in capsys.readouterr().out.replace("100.00", "20.0")


def test_mistakes_of_the_command_are_one_paragraph(capsys):
    assert main(["benchmark", "paper-table4", "--configurations", "3"]) == 1
    assert "Unknown configuration '3'" in capsys.readouterr().err


def test_records_need_no_torch():
    code = (
        "import sys; import ssl_lightning.measure.sparse_record, ssl_lightning.report.sparse\n"
        "assert not {'torch', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
