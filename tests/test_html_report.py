"""A run's report as one HTML file: its figures are the record's, and nothing in it is code."""

from __future__ import annotations

import dataclasses
import json
import re
import tomllib
from pathlib import Path

import pytest
from PIL import Image

from conftest import ROOT
from html_pages import (
    HOSTILE,
    by_id,
    check_page,
    contrast,
    read,
    table_rows,
    text_of,
    titles,
)
from ssl_lightning import suggest
from ssl_lightning.cli import main
from ssl_lightning.measure import Fastest
from ssl_lightning.report.html import Table, page, picture, write_run_page
from ssl_lightning.report.html.plots import Bar, Point, bars_plot, lines_plot, points_plot
from test_report import make_record, make_report

LOG = (
    "epoch,step,train/loss,val/loss,val/error,macs/left,sparsity/conv1/filters,"
    "sparsity/fc/filters\n"
)


def write_run(folder, report=None, rows=("0,9,2.5,2.25,12.5,100,0,0", "1,19,0.5,,3.5,40,75,0")):
    """A folder as `fit`, `compact` and `benchmark` leave it."""
    (folder / "version_0").mkdir(parents=True)
    (folder / "compact").mkdir()
    (report or make_report()).save(folder / "report.json")
    (folder / "version_0" / "metrics.csv").write_text(LOG + "\n".join(rows) + "\n")
    (folder / "config.yaml").write_text("seed_everything: 7\n")
    plan = {"notes": ["conv9 feeds a sum"], "checks": ["size 7 was refused"]}
    (folder / "compact" / "plan.json").write_text(json.dumps({"backbone": "x", "plan": plan}))
    Image.new("RGB", (1440, 700), "black").save(folder / "filters.png")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = write_run(tmp_path_factory.mktemp("runs") / "quick")
    assert main(["report", str(found), "--html"]) == 0
    return found


@pytest.fixture(scope="module")
def tree(folder):
    return check_page(folder / "report.html")


def table_of(tree, caption):
    """The table whose words above it begin so."""
    (label,) = [
        e.get("id") for e in tree.iter("p") if e.get("class") == "caption"
        and text_of(e).startswith(caption)
    ]  # fmt: skip
    (table,) = [e for e in tree.iter("table") if e.get("aria-labelledby") == label]
    return table_rows(table)


def test_the_summary_is_that_of_the_record(folder, tree):
    data = json.loads((folder / "report.json").read_text())
    record = data["benchmark"]
    timings = record["runs"][0]["engines"]["eager"]
    rows = {row["network"]: row for row in table_of(tree, "The whole network")}
    assert list(rows) == ["dense", "masked", "compact"]
    for model, row in rows.items():
        assert row["multiply-adds"] == f"{record['models'][model]['macs']:,}"
        assert row["parameters"] == f"{record['models'][model]['num_parameters']:,}"
        assert row["size, MB"] == f"{record['models'][model]['num_bytes'] / 1e6:.3g}"
        time = timings[model]
        assert row["latency, ms ± IQR"] == f"{time['median_ms']:.3f} ± {time['iqr_ms']:.3f}"
        assert row["ratio to dense ± IQR"].startswith(f"{time['ratio']:.3f} ±")
    assert rows["dense"]["error, %"] == "0.90"
    assert rows["masked"]["error, %"].startswith("not measured: ")
    assert rows["compact"]["error, %"] == "0.85"
    assert rows["compact"]["of dense"] == "25 %"
    assert "its error is 0.85 % against 0.90 %" in text_of(next(tree.iter("header")))


def test_layers_have_groups_multiply_adds_and_times(tree):
    rows = {row["layer"]: row for row in table_rows(by_id(tree, "layers"))}
    assert list(rows) == ["conv1", "conv2", "fc"]
    conv1, conv2, fc = rows.values()
    assert conv1["filters left"] == "5 of 20"
    assert conv1["filter size left"] == "21 of 25"
    assert conv2["channels left"] == "no groups of this kind"
    assert conv1["multiply-adds, compact"] == "250"
    assert conv1["ms, compact"] == "3.000"
    assert conv1["ms, masked"] == "not timed"
    assert fc["multiply-adds, compact"] == fc["ms, compact"] == "removed"


def test_marks_of_the_charts_say_layer_groups_and_cost(tree):
    said = titles(tree)
    assert (
        "compact, conv1: 250 multiply-adds, 3.000 ms; after pruning 5 of 20 filters left, "
        "1 of 1 channels left, 21 of 25 filter size left"
    ) in said
    assert "compact, whole network: error 0.85 %, 573,250 multiply-adds, 0.500 ± 0.050 ms" in said
    assert "masked, whole network: error not measured, 2,293,000 multiply-adds" in " ".join(said)
    assert "compact, fc: multiply-adds removed, time removed; after pruning groups not counted" in (
        said
    )
    assert "validation error, epoch 2: 3.5" in said
    assert not [words for words in said if words.startswith("validation loss, epoch 2")]


def test_the_log_is_drawn_and_written_down(tree):
    first, second = table_of(tree, "The same figures")
    assert first == {
        "epoch": "1", "training loss": "2.5", "validation loss": "2.25", "validation error": "12.5",
        "multiply-adds left, %": "100", "sparsity/conv1/filters": "0",
    }  # fmt: skip
    assert second["validation loss"] == "not logged"
    assert second["multiply-adds left, %"] == "40"
    labels = [svg.get("aria-label") for svg in tree.iter("svg")]
    assert (
        "Chart of loss over 2 epochs: training loss from 2.5 to 0.5; validation loss from 2.25 "
        "to 2.25."
    ) in labels


def test_machine_notes_config_and_commands(folder, tree):
    rows = {row["what"]: row["value"] for row in table_of(tree, "Processor")}
    assert rows["processor"] == "Some Processor, 8 logical cores"
    assert rows["torch"] == "2.14.0"
    assert rows["openvino"] == "2026.4"
    assert rows["settings"] == "float32, batch 4, 1 thread"
    whole = text_of(tree)
    assert "conv9 feeds a sum" in whole
    assert "size 7 was refused" in whole
    assert "seed_everything: 7" in whole
    last = f"{folder}/checkpoints/last.ckpt"
    assert f"ssl-lightning fit --config {folder}/config.yaml" in whole
    assert (
        f"ssl-lightning benchmark {last} --dense CHECKPOINT --forms '[dense,masked,compact]' "
        "--engines eager --batch_size 4 --dtype float32 --threads 1 --repeats 30 "
        "--title 'LeNet on MNIST'"
    ) in whole


def test_the_printed_benchmark_command_is_understood(tree, monkeypatch):
    """Its options are parsed as the command line parses them."""
    import shlex

    from ssl_lightning.cli import benchmark

    (line,) = [
        line for pre in tree.iter("pre") for line in "".join(pre.itertext()).splitlines()
        if "benchmark" in line
    ]  # fmt: skip
    given = {}

    def benchmark_checkpoint(checkpoint, **options):
        given.update(options)

    import functools

    original = benchmark.benchmark_checkpoint
    wrapped = functools.wraps(original)(lambda *a, **k: benchmark_checkpoint(**k))
    monkeypatch.setattr(benchmark, "benchmark_checkpoint", wrapped)
    assert main(shlex.split(line)[1:]) == 0
    assert given["forms"] == ["dense", "masked", "compact"]
    assert given["batch_size"] == 4
    assert given["repeats"] == 30
    assert given["title"] == "LeNet on MNIST"


def test_what_is_not_there_is_said(tmp_path):
    report = make_report(layers={}, errors={})
    record = dataclasses.replace(report.benchmark, layer_macs={})
    runs = tuple(dataclasses.replace(run, layers={}) for run in record.runs)
    record = dataclasses.replace(record, runs=runs)
    path = write_run_page(
        make_report(layers={}, errors={}, benchmark=record), tmp_path / "a.html", tmp_path
    )
    whole = text_of(check_page(path))
    for sentence in (
        "its error was not measured",
        "Layers were neither counted nor timed.",
        "no metrics.csv with figures lies in",
        "No picture of filters: no filters.png in",
        "`ssl-lightning compact` writes it",
        "No config.yaml in",
        "Other engines, batch sizes and types were not measured",
    ):
        assert sentence in whole, sentence


def test_commands_are_those_of_what_was_measured():
    from ssl_lightning.report.html.run import commands

    record = make_record(threads=(1, 2), engines=("eager", "openvino"))
    runs = tuple(dataclasses.replace(run, layers={}) for run in record.runs)
    report = make_report(errors={}, benchmark=dataclasses.replace(record, runs=runs))
    assert commands(report, Path("my run"), Path("my run/other.json")) == [
        "ssl-lightning benchmark 'my run/checkpoints/last.ckpt' --forms '[dense,masked,compact]' "
        "--engines '[eager,openvino]' --batch_size 4 --dtype float32 --threads '[1,2]' "
        "--repeats 30 --per_layer false --data none --title 'LeNet on MNIST' "
        "--output 'my run/other.json'",
        "ssl-lightning report 'my run/other.json' --html",
    ]
    models = {"small": next(iter(record.models.values()))}
    other = make_report(errors={}, benchmark=dataclasses.replace(record, models=models))
    assert commands(other, Path("a"), Path("a/report.json")) == ["ssl-lightning report a --html"]


def test_templates_are_part_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["ssl_lightning"]
    package = ROOT / "src" / "ssl_lightning"
    for folder in ("report", "publishing"):
        for file in (package / folder).rglob("*.*"):
            if file.suffix not in (".py", ".pyc"):
                name = file.relative_to(package)
                assert any(name.match(pattern) for pattern in patterns), name


def test_engines_and_what_was_left_out(tmp_path):
    why = {"compact, openvino": "It refused <that>."}
    record = make_record(threads=(1, 2), engines=("eager", "openvino"), why=why)
    first = record.runs[0]  # both runs hold the same dictionaries
    del first.engines["openvino"]["compact"]
    first.fastest["compact"] = Fastest("eager", 0.25, 0.01)
    path = write_run_page(make_report(benchmark=record), tmp_path / "a.html", tmp_path)
    tree = check_page(path)
    rows = table_rows(by_id(tree, "engines"))
    assert len(rows) == 2 * 2 * 3
    missing = [r for r in rows if r["engine"] == "openvino" and r["network"] == "compact"]
    assert [r["latency, ms ± IQR"] for r in missing] == ["not timed: It refused <that>."] * 2
    best = [r for r in rows if list(r.values())[-1].startswith("yes")]
    assert {(r["network"], r["engine"]) for r in best} == {
        ("dense", "openvino"), ("masked", "eager"), ("compact", "eager"),
    }  # fmt: skip
    assert "4.00 times as fast" in text_of(by_id(tree, "engines"))


def test_names_from_a_run_are_never_code(tmp_path):
    layers = {f"conv{HOSTILE}": {"filters": [1, 2]}}
    record = make_record(layers=(f"conv{HOSTILE}", f"fc\x00\ud800{HOSTILE}"))
    record.machine.__dict__["processor"] = HOSTILE
    models = {f"{name}{HOSTILE}": size for name, size in record.models.items()}
    runs = tuple(
        dataclasses.replace(
            run,
            engines={f"{e}{HOSTILE}": {f"{m}{HOSTILE}": t for m, t in found.items()}
                     for e, found in run.engines.items()},
            fastest={f"{m}{HOSTILE}": f for m, f in run.fastest.items()},
            left_out={HOSTILE: HOSTILE},
        )
        for run in record.runs
    )  # fmt: skip
    record = dataclasses.replace(
        record, models=models, runs=runs, versions={HOSTILE: HOSTILE}, memory_format=HOSTILE
    )
    report = make_report(title=HOSTILE, errors={}, layers=layers, benchmark=record)
    folder = tmp_path / "run"
    (folder / "compact").mkdir(parents=True)
    name = f"sparsity/{HOSTILE}/filters".replace('"', '""')
    (folder / "metrics.csv").write_text(
        f'epoch,val/error,train/loss,"{name}"\n0,1,x,1\n1,2,<b>,1\n'
    )
    (folder / "config.yaml").write_text(f"a: {HOSTILE}\n")
    plan = {"plan": [{"notes": [HOSTILE, 3], "checks": {}}, 4]}
    (folder / "compact" / "plan.json").write_text(json.dumps(plan))
    tree = check_page(write_run_page(report, folder / "report.html", folder))
    assert len(list(tree.iter("script"))) == 1
    assert not list(tree.iter("img"))
    assert text_of(next(tree.iter("h1"))) == " ".join(HOSTILE.split())
    assert sum(HOSTILE in words for words in titles(tree)) > 3
    assert HOSTILE in text_of(by_id(tree, "layers"))


def test_damaged_files_of_a_run_are_named(tmp_path):
    folder = write_run(tmp_path / "run")
    (folder / "filters.png").write_bytes(b"GIF89a no picture")
    with pytest.raises(ValueError, match=r"filters\.png is no picture that can be shown: expected"):
        write_run_page(make_report(), folder / "report.html", folder)
    (folder / "compact" / "plan.json").write_text("{")
    (folder / "filters.png").unlink()
    with pytest.raises(ValueError, match=r"plan\.json is damaged"):
        write_run_page(make_report(), folder / "report.html", folder)
    assert not (folder / "report.html").exists()


def test_a_picture_is_small_and_has_its_words(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (2000, 100), "red").save(path)
    found = picture(path.read_bytes(), 'a "red" <bar>', "a.png")
    assert 'alt="a &#34;red&#34; &lt;bar&gt;" width="720" height="36"' in found
    Image.new("1", (9000, 9000)).save(path)
    with pytest.raises(ValueError, match="9000 x 9000 pixels"):
        picture(path.read_bytes(), "huge", "a.png")


def test_long_runs_make_no_large_pages(tmp_path):
    rows = [f"{i},{i},{1 / (i + 1)},0.5,{50 / (i + 1)},50,{i / 5},{i / 5}" for i in range(500)]
    folder = write_run(tmp_path / "run", rows=rows)
    path = write_run_page(make_report(), tmp_path / "a.html", folder)
    marks = [words for words in titles(read(path)) if words.startswith("training loss")]
    assert len(marks) == 25
    assert path.stat().st_size < 1_000_000


def test_without_the_extra_the_command_says_what_to_install(folder, monkeypatch, capsys):
    real = suggest.find_spec
    monkeypatch.setattr(suggest, "find_spec", lambda n: None if n == "vl_convert" else real(n))
    (folder / "report.html").unlink(missing_ok=True)
    assert main(["report", str(folder), "--html"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: `report --html` needs vl_convert, not installed here.")
    assert "pip install 'ssl-lightning[html]'" in said
    assert not (folder / "report.html").exists()
    monkeypatch.undo()
    assert main(["report", str(folder), "--html"]) == 0


def test_tables_refuse_cells_that_say_nothing():
    with pytest.raises(ValueError, match="Say why there is no figure"):
        Table("a table", ("a", "b"), [["x", " "]]).cells()
    with pytest.raises(ValueError, match="expected 2 cells"):
        Table("a table", ("a", "b"), [["x"]]).cells()


# --- charts ---


def test_points_are_links_to_what_they_stand_for():
    points = [Point("net", 1, 3, "a: 3 %", "entry-a", "a"), Point("other", 2, 2, "b", "", "b")]
    svg = points_plot(points, "x", "y", "a chart")
    assert re.findall(r'href="([^"]*)"', svg) == ["#entry-a"]
    assert "http" not in svg
    assert 'role="group" aria-label="a chart"' in svg


def test_marks_of_different_series_differ_in_more_than_colour():
    points = [Point(name, i, i, name) for i, name in enumerate("abcd", 1)]
    paths = re.findall(r'd="([^"]+)"[^>]*><title>', points_plot(points, "x", "y", "a chart"))
    assert len(set(paths)) == 4
    lines = lines_plot({name: [1.0, 2.0] for name in "abcd"}, "y", "a chart")
    assert len(set(re.findall(r'stroke-dasharray="([^"]+)"', lines))) >= 3
    bars = bars_plot([Bar("g", name, 1.0, "1", name) for name in "ab"], "x", "a chart")
    assert "a 1</text>" in bars
    assert "b 1</text>" in bars


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_have_the_contrast_of_wcag_aa(scheme):
    blocks = re.findall(r":root \{(.*?)\}", page.asset("style.css"), flags=re.S)
    colors = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", blocks[scheme == "dark"]))
    for name in ("ink", "pale", "link"):
        for ground in ("paper", "raised"):
            assert contrast(colors[name], colors[ground]) >= 4.5, (name, ground)
    graphics = ["line", "focus", *(f"series-{i}" for i in range(1, 9))]
    for name in graphics:
        assert contrast(colors[name], colors["paper"]) >= 3, name
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)  # a known pair


def test_pages_are_valid_html(folder):
    html5lib = pytest.importorskip("html5lib", reason="html5lib is not installed")
    html5lib.HTMLParser(strict=True).parse((folder / "report.html").read_text())
