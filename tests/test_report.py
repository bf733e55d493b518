"""Reports: the file format, the table's cells, and pictures read back pixel by pixel."""

import dataclasses
import io
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from ssl_lightning.measure import BenchmarkResult, Fastest, Machine, ModelSize, Run, Timing
from ssl_lightning.report import (
    RunReport,
    bar_chart,
    comparison_table,
    curve_chart,
    engine_chart,
    engine_table,
    filter_grid,
    filter_picture,
    filter_pictures,
    has_engines,
    print_report,
)
from ssl_lightning.report.curves import round_values, sparsity_curves
from ssl_lightning.report.engines import reasons


def timing(ms, ratio):
    return Timing(ms, ms / 10, ratio, 0.01, 30, 2)


def make_record(threads=(1,), layers=("conv1", "conv2", "fc"), engines=("eager",), why=None):
    network = {
        "dense": timing(2.0, 1.0),
        "masked": timing(2.02, 1.01),
        "compact": timing(0.5, 0.25),
    }
    run = {
        "engines": {engine: dict(network) for engine in engines},
        "fastest": {
            "dense": Fastest(engines[-1], 1.0, 0.0),
            "masked": Fastest("eager", 1.02, 0.01),
            "compact": Fastest(engines[-1], 0.3, 0.01),
        },
        "left_out": why or {},
        "layers": {
            layer: {"dense": timing(12.0, 1.0), "compact": timing(3.0, 0.125)} for layer in layers
        },
    }
    del run["layers"][layers[-1]]["compact"]
    macs = {layer: {"dense": 2000, "masked": 2000, "compact": 250} for layer in layers}
    del macs[layers[-1]]["compact"]
    return BenchmarkResult(
        machine=Machine("Some Processor", 8, "cpu", "3.11.7", "2.14.0"),
        versions={"openvino": "2026.4", "torch": "2.14.0"},
        input_shape=(1, 28, 28),
        memory_format="contiguous",
        models={
            "dense": ModelSize(2_293_000, 431_080, 1_724_320),
            "masked": ModelSize(2_293_000, 431_080, 1_724_320),
            "compact": ModelSize(573_250, 100_000, 400_000),
        },
        layer_macs=macs,
        runs=tuple(Run("float32", 4, count, **run) for count in threads),
    )


def make_report(**changes):
    usual = {
        "title": "LeNet on MNIST",
        "errors": {"dense": 0.9, "compact": 0.85},
        "layers": {
            "conv1": {"filters": [5, 20], "channels": [1, 1], "columns": [21, 25]},
            "conv2": {"filters": [19, 50], "columns": [110, 500]},
        },
        "benchmark": make_record(),
    }
    return RunReport(**{**usual, **changes})


def rows_of(table):
    """The table as a list of dicts from column title to text."""
    titles = [str(column.header) for column in table.columns]
    cells = [[str(cell) for cell in column.cells] for column in table.columns]
    return [dict(zip(titles, row, strict=True)) for row in zip(*cells, strict=True)]


def rendered(table, width=120):
    console = Console(file=io.StringIO(), width=width)
    console.print(table)
    return console.file.getvalue()


# --- the file ---


def test_round_trip(tmp_path):
    report = make_report()
    report.save(tmp_path / "report.json")
    assert RunReport.load(tmp_path / "report.json") == report
    data = json.loads((tmp_path / "report.json").read_text())
    assert list(data) == ["schema", "title", "errors", "layers", "benchmark", "sources"]
    assert data["schema"] == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"title": None}, "report: .*missing: title"),
        ({"extra": 1}, "report: .*unknown: extra"),
        ({"schema": 3}, "report.schema: expected 2, got 3"),
        ({"schema": 1}, "report.schema: expected 2, got 1. .* or write it again"),
        ({"schema": None}, "expected a report of ssl_lightning, .* `schema`, got {'title'"),
        ({"errors": {"dense": "low"}}, "report.errors.dense: expected int or float, got 'low'"),
        ({"errors": {"dense": 101}}, "report.errors.dense: expected percent"),
        ({"errors": {"sparse": 1.0}}, "report.errors: expected measured models .*'sparse'"),
        ({"layers": {"a": {"rows": [1, 2]}}}, "report.layers.a: .*got 'rows'"),
        ({"layers": {"a": {"filters": [3, 2]}}}, r"report.layers.a.filters: .*got \[3, 2\]"),
        ({"layers": {"a": {"filters": [3]}}}, r"report.layers.a.filters: .*got \[3\]"),
        ({"layers": {"a": {"filters": 3}}}, "report.layers.a.filters: expected list or tuple"),
        ({"benchmark": {}}, "report.benchmark: .*missing"),
    ],
)
def test_malformed_reports_are_refused(change, message):
    data = {**make_report().to_dict(), **change}
    data = {key: value for key, value in data.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        RunReport.from_dict(data)


def test_what_is_no_report_is_refused(tmp_path):
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(ValueError, match=r"list.json: expected a report .* got \[\]"):
        RunReport.load(tmp_path / "list.json")


# --- the table ---


def test_whole_network_then_layers_with_one_row_per_model():
    rows = rows_of(comparison_table(make_report()))
    assert [row["layer"] for row in rows[::3]] == ["whole network", "conv1", "conv2", "fc"]
    assert [row["model"] for row in rows] == ["dense", "masked", "compact"] * 4
    assert all(not row["layer"] for i, row in enumerate(rows) if i % 3)


def test_cells():
    dense, masked, compact, conv1, *rest = rows_of(comparison_table(make_report()))
    assert dense["error %"] == "0.90"
    assert masked["error %"] == "-"
    assert (compact["MACs"], compact["% of dense"]) == ("573k", "25")
    assert (compact["latency ms"], compact["ratio"]) == ("0.500 ± 0.050", "0.25")
    assert [conv1[k] for k in ("filters", "channels", "filter size")] == ["5/20", "1/1", "21/25"]
    assert conv1["latency ms"] == "12.0 ± 1.200"
    masked_conv1, compact_conv1, conv2 = rest[:3]
    assert (masked_conv1["MACs"], masked_conv1["latency ms"]) == ("2k", "-")
    assert (compact_conv1["% of dense"], compact_conv1["ratio"]) == ("12.5", "0.12")
    assert (conv2["filters"], conv2["channels"]) == ("19/50", "-")
    removed = rest[-1]
    assert [removed[k] for k in ("MACs", "% of dense", "latency ms", "ratio")] == ["-"] * 4


def test_columns_of_kinds_that_nobody_knows_are_left_out():
    titles = [str(c.header) for c in comparison_table(make_report(layers={})).columns]
    assert titles == [
        "layer",
        "model",
        "error %",
        "MACs",
        "% of dense",
        "latency ms",
        "ratio",
    ]


def test_a_layer_known_only_by_its_groups_has_rows():
    report = make_report(layers={"gone": {"filters": [0, 8]}})
    row = next(row for row in rows_of(comparison_table(report)) if row["layer"] == "gone")
    assert (row["filters"], row["model"], row["MACs"]) == ("0/8", "", "")


def test_table_states_the_conditions():
    text = " ".join(rendered(comparison_table(make_report())).split())
    for part in ("LeNet on MNIST", "1 thread", "batch 4", "1x28x28 float32", "Some Processor"):
        assert part in text
    assert "…" not in text


def test_names_are_no_markup():
    report = make_report(layers={"[red]x[/red]": {"filters": [1, 2]}})
    assert "[red]x[/red]" in rendered(comparison_table(report))


def test_any_run_can_be_shown():
    report = make_report(benchmark=make_record(threads=(1, 4)))
    assert "1 thread," in rendered(comparison_table(report))
    assert "4 threads" in rendered(comparison_table(report, report.benchmark.run(threads=4)))


def test_further_runs_without_layers_are_in_the_table_of_engines_only(tmp_path, capsys):
    record = make_record(threads=(1, 4))
    runs = tuple(dataclasses.replace(run, layers={}) for run in record.runs)
    report = make_report(benchmark=dataclasses.replace(record, runs=runs, layer_macs={}))
    report.save(tmp_path / "report.json")
    print_report(tmp_path / "report.json")
    text = capsys.readouterr().out
    assert "1 thread," in text
    assert "4 threads," not in text
    assert "4 threads" in text


def test_print_report(tmp_path, capsys):
    path = tmp_path / "report.json"
    make_report(benchmark=make_record(threads=(1, 4))).save(path)
    print_report(path)
    text = capsys.readouterr().out
    assert "1 thread," in text
    assert "4 threads," in text
    console = Console(file=io.StringIO(), width=120)
    print_report(path, threads=4, console=console)
    assert "1 thread," not in console.file.getvalue()
    assert not capsys.readouterr().out
    with pytest.raises(ValueError, match=r"among \[\(1,\), \(4,\)\], got \(2,\)"):
        print_report(path, threads=2)


# --- the engines ---


def test_engine_table_fits_a_terminal():
    engines = ("eager", "compile", "onnxruntime", "openvino")
    report = make_report(benchmark=make_record(threads=(1, 4), engines=engines))
    rows = rows_of(engine_table(report))
    assert [row["engine"] for row in rows if row["engine"]] == [
        *("float32", *engines),
        *("float32", *engines),
    ]
    (compact,) = (row for row in rows[:13] if row["model"] == "compact" and row["speed-up"])
    assert (compact["latency ms"], compact["ratio"]) == ("0.500 ± 0.050", "0.250")
    assert (compact["speed-up"], compact["limit"]) == ("3.33x", "4.00x")
    assert list(rows[13].values())[:3] == ["float32", "batch 4", "4 threads"]
    text = rendered(engine_table(report), width=80)
    assert "…" not in text
    assert "openvino 2026.4" in " ".join(text.split())
    for cell in ("onnxruntime", "compact", "0.500 ± 0.050", "3.33x", "4.00x"):
        assert cell in text


def test_engines_are_shown_only_where_there_are_any(tmp_path):
    path = tmp_path / "report.json"
    for record, several in (
        (make_record(), False),
        (make_record(threads=(1, 2)), True),
        (make_record(engines=("eager", "compile")), True),
        (make_record(why={"compact, openvino": "no such operator"}), True),
    ):
        make_report(benchmark=record).save(path)
        console = Console(file=io.StringIO(), width=120)
        print_report(path, console=console)
        assert ("LeNet on MNIST: engines" in console.file.getvalue()) == several
        assert has_engines(record) == several


def test_reasons_are_told_once():
    why = {"masked, onnxruntime": "In float32 only.", "compact, onnxruntime": "In float32 only."}
    assert reasons(make_record(threads=(1, 2), why=why)) == [
        "Left out: masked, onnxruntime (float32); compact, onnxruntime (float32). In float32 only."
    ]


def test_engine_chart_has_a_panel_for_every_run(tmp_path, monkeypatch):
    path = tmp_path / "sub" / "engines.png"
    report = make_report(benchmark=make_record(threads=(1, 2, 4), engines=("eager", "openvino")))
    del report.benchmark.runs[0].engines["openvino"]["masked"]
    figure = drawn(lambda: engine_chart(report, path), monkeypatch)
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert len(panels) == 3
    widths = [p.get_width() for bars in panels[1].containers for p in getattr(bars, "patches", [])]
    assert widths == pytest.approx([2.0, 2.0, 2.02, 0.0, 0.5, 0.5])  # dense, masked, compact
    assert {"1.01", "0.25", "left out"} <= {text.get_text() for text in panels[1].texts}
    assert path.read_bytes().startswith(b"\x89PNG")


def test_without_timings_per_layer_there_are_no_rows_of_layers():
    record = make_record()
    runs = tuple(dataclasses.replace(run, layers={}) for run in record.runs)
    report = make_report(benchmark=dataclasses.replace(record, runs=runs, layer_macs={}))
    table = comparison_table(report)
    assert [row["layer"] for row in rows_of(table)] == ["whole network", "", ""]
    assert "filters" not in [str(column.header) for column in table.columns]


# --- the chart ---


@pytest.mark.parametrize("count", [16, 40])
def test_the_chart_says_which_layers_it_leaves_out(count, tmp_path, monkeypatch):
    record = make_record(layers=[f"conv{i}" for i in range(count)])
    macs = {name: {"dense": 100 + i} for i, name in enumerate(record.layer_macs)}
    report = make_report(benchmark=dataclasses.replace(record, layer_macs=macs), layers={})
    figure = drawn(lambda: bar_chart(report, tmp_path / "chart.png"), monkeypatch)
    below = figure.legends[0].get_title().get_text()
    if count == 16:
        assert "not shown" not in below
        return
    share = 100 * sum(100 + i for i in range(24)) / sum(100 + i for i in range(40))
    assert "not shown: 24 layers of 40, those with the fewest multiply-adds" in below
    assert f"({share:.2g} % of dense's)" in below


def drawn(draw, monkeypatch):
    """Draw, and return the figure."""
    from matplotlib.figure import Figure

    figures, save = [], Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *a, **k: (figures.append(self), save(self, *a, **k))
    )
    draw()
    return figures[0]


def bars_drawn(report, path, monkeypatch):
    """Draw, and return the bar widths and the texts of the figure."""
    figure = drawn(lambda: bar_chart(report, path), monkeypatch)
    widths = [[p.get_width() for c in a.containers for p in c.patches] for a in figure.axes]
    texts = [t.get_text() for a in figure.axes for t in (*a.texts, *a.get_yticklabels())]
    legend = [t.get_text() for t in figure.legends[0].get_texts()]
    return widths, texts, legend


def test_bar_chart_shows_the_record(tmp_path, monkeypatch):
    path = tmp_path / "sub" / "chart.png"
    widths, texts, legend = bars_drawn(make_report(), path, monkeypatch)
    macs, latency = widths
    assert macs == pytest.approx([100] * 4 + [100] * 4 + [25, 12.5, 12.5, 0])
    assert latency == pytest.approx([100] * 4 + [101, 0, 0, 0] + [25, 12.5, 12.5, 0])
    assert {"whole network", "conv1", "conv2", "fc", "12.5", "101", "removed"} <= set(texts)
    assert legend == ["dense (error 0.90%)", "masked", "compact (error 0.85%)"]
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.width == 1500


def test_deep_networks_show_their_largest_layers(tmp_path, monkeypatch):
    record = make_record(layers=[f"conv{i}" for i in range(40)])
    macs = {name: {"dense": 100 + i} for i, name in enumerate(record.layer_macs)}
    report = make_report(benchmark=dataclasses.replace(record, layer_macs=macs), layers={})
    _, texts, _ = bars_drawn(report, tmp_path / "chart.png", monkeypatch)
    shown = [text for text in texts if text.startswith("conv")]
    assert shown == [f"conv{i}" for i in range(24, 40)]


def test_chart_without_layers(tmp_path):
    record = make_record()
    runs = (dataclasses.replace(record.runs[0], layers={}),)
    record = dataclasses.replace(record, layer_macs={}, runs=runs)
    bar_chart(make_report(benchmark=record, layers={}), tmp_path / "chart.png")
    assert (tmp_path / "chart.png").stat().st_size > 1000


# --- filters ---


def test_grid_places_filters_row_by_row():
    weights = np.zeros((4, 1, 2, 2))
    weights[0], weights[1, 0, 0, 0], weights[3] = 1.0, 0.5, -1.0
    grid = filter_grid(weights, columns=2, scale=1)
    assert grid.dtype == np.uint8
    frame = grid[0, 0]
    expected = np.full((7, 7), frame)
    expected[1:3, 1:3] = 255  # the largest weight
    expected[1:3, 4:6] = [[192, 128], [128, 128]]  # half of it, and zeros of a living filter
    expected[4:6, 1:3] = 0  # a removed filter
    expected[4:6, 4:6] = 1  # the most negative weight, not quite black
    np.testing.assert_array_equal(grid, expected)
    assert 0 < frame < 128


def test_three_channels_are_colours():
    weights = np.zeros((1, 3, 1, 1))
    weights[0, :, 0, 0] = [1.0, 0.0, -1.0]
    grid = filter_grid(weights, scale=1)
    assert grid.shape == (3, 3, 3)
    assert grid[1, 1].tolist() == [255, 128, 1]


def test_a_filter_whose_channels_cancel_is_not_black():
    weights = np.zeros((2, 2, 1, 1))
    weights[0, :, 0, 0] = [1.0, -1.0]
    grid = filter_grid(weights, columns=2, scale=1)
    assert (grid[1, 1], grid[1, 3]) == (128, 0)


@pytest.mark.parametrize(("num_filters", "columns"), [(20, 5), (96, 12), (64, 8), (7, 3), (13, 4)])
def test_rows_are_full_where_possible(num_filters, columns):
    grid = filter_grid(np.ones((num_filters, 1, 1, 1)), scale=1)
    assert grid.shape == (2 * -(-num_filters // columns) + 1, 2 * columns + 1)


def test_scale_enlarges():
    grid = filter_grid(np.ones((1, 1, 5, 5), dtype=np.float32))
    assert grid.shape == (5 * 6 + 4, 5 * 6 + 4)


def test_all_zero_weights_are_all_black():
    grid = filter_grid(np.zeros((4, 3, 5, 5)))
    assert set(np.unique(grid)) == {0, 90}


@pytest.mark.parametrize("channels", [1, 3])
def test_filter_picture(tmp_path, channels):
    weights = np.random.default_rng(0).normal(size=(20, channels, 5, 5))
    weights[::2] = 0
    path = tmp_path / "sub" / "filters.png"
    filter_picture(weights, path, title="conv1")
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("L"))
    assert min(pixels.shape) > 200
    assert 0.3 < np.mean(pixels == 0) < 0.6  # half of the filters are black


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.zeros((3, 3)), r"expected weights \(O, C, H, W\), got the shape \(3, 3\)"),
        (np.zeros((0, 1, 3, 3)), "got the shape"),
        (np.full((1, 1, 2, 2), np.nan), "finite"),
    ],
)
def test_pictures_refuse_what_is_no_convolution(tmp_path, weights, message):
    with pytest.raises(ValueError, match=message):
        filter_grid(weights)
    with pytest.raises(ValueError, match=message):
        filter_picture(weights, tmp_path / "x.png")


def test_import_is_light():
    code = (
        "import sys, ssl_lightning.report\n"
        "heavy = {'torch', 'lightning', 'matplotlib', 'timm'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# Curves


def png_size(path):
    """Width and height in pixels."""
    with Image.open(path) as picture:
        return picture.size


def test_curves_draw_one_panel_or_two(tmp_path):
    errors = {"train/error": [5.0, 1.0, 0.0], "val/error": [4.0, float("nan"), 2.0]}
    curve_chart(errors, tmp_path / "one.png", "errors")
    both = {**errors, "sparsity/conv1/filters": [0.0, 50.0, 75.0]}
    curve_chart(both, tmp_path / "two.png", "errors and sparsity")
    (width, low), (same, high) = (png_size(tmp_path / f"{n}.png") for n in ("one", "two"))
    assert width == same
    assert high > low
    curve_chart({"val/error": [0.0, 0.0]}, tmp_path / "zero.png", "no error at all")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one.png", "two.png", "zero.png"]


@pytest.mark.parametrize("ratio", [1.5625, 4.0, 1000.0])
def test_an_axis_has_three_values_or_more_at_it(ratio):
    for low in np.geomspace(0.001, 1000 / ratio, 300):
        values = round_values(low, ratio * low)
        assert 3 <= len(values) <= 3 * 6
        assert values == sorted(values)
        assert low <= values[0] < values[-1] <= ratio * low


def test_constant_and_many_layers_are_summed_up():
    some = {f"sparsity/conv{i}/filters": [0.0, 10.0] for i in range(8)}
    idle = {"sparsity/fc/filters": [0.0, 0.0], "groups/filter": [20.0, 5.0]}
    assert list(sparsity_curves({**some, **idle})) == [f"conv{i} filters" for i in range(8)]
    more = {**some, **idle, "sparsity/fc/channels": [0.0, 1.0]}
    assert sparsity_curves(more) == {"filter, all layers": [0.0, 75.0]}
    singles = {"sparsity/conv0/weights": [0.0, 90.0], "sparsity/conv1/weights": [0.0, 80.0]}
    lines = {"conv0 weights": [0.0, 90.0], "conv1 weights": [0.0, 80.0]}
    assert sparsity_curves({**more, **singles}) == {"filter, all layers": [0.0, 75.0], **lines}


def test_curves_without_errors_are_refused(tmp_path):
    with pytest.raises(ValueError, match="expected train/error or val/error, got loss"):
        curve_chart({"loss": [1.0]}, tmp_path / "x.png", "x")
    assert list(tmp_path.iterdir()) == []


def test_filters_of_several_networks_stand_side_by_side(tmp_path):
    weights = np.random.default_rng(0).normal(size=(8, 1, 5, 5))
    filter_pictures({"dense": weights}, tmp_path / "one.png")
    filter_pictures({"dense": weights, "compact": weights * 0}, tmp_path / "two.png")
    assert png_size(tmp_path / "two.png")[0] > 1.5 * png_size(tmp_path / "one.png")[0]
    with pytest.raises(ValueError, match="at least one panel"):
        filter_pictures({}, tmp_path / "none.png")
