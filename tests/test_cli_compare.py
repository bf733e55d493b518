"""The command `compare`: every way to a budget, each a card, and the same command continues."""

from __future__ import annotations

import dataclasses
import json
import os
import pydoc
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from ssl_lightning import count_macs, zoo
from ssl_lightning.cli import main
from ssl_lightning.cli.compare import (
    Job,
    card_of,
    differing,
    jobs_of,
    make_parser,
    sparse_macs,
    without_defaults,
)
from ssl_lightning.cli.training import resolved
from ssl_lightning.cli.ways import ALTERNATIVES, without_budget
from ssl_lightning.report.compared import Comparison, comparison_table

DATA = {"source": "bundled", "batch_size": 32, "num_validation": 2000}
CONFIG = {
    "model": {
        "backbone": "zoo:lenet_mnist_dense",
        "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.02}},
    },
    "data": {"class_path": "MNISTDataModule", "init_args": DATA},
    "trainer": {
        "limit_train_batches": 30,
        "limit_val_batches": 1,
        "logger": False,
        "accelerator": "cpu",
        "enable_progress_bar": False,
        "enable_model_summary": False,
    },
}
COMMAND = ["compare", "config.yaml", "--budget.macs=0.3", "--epochs=3"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a config."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    return tmp_path


def test_every_way_is_a_card_and_the_table_is_what_cards_say(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ways = ["random", "magnitude", "slimming"]
    command = [*COMMAND, "--jobs=2", "--output=out", "--seeds", "0", "1", "--ways", *ways]
    assert main(command) == 1  # LeNet has no batch norm to slim
    said, out = capsys.readouterr().out, folder / "out"
    found = Comparison.load(out / "comparison.json")
    assert list(found.refused) == ["slimming"]
    assert "bn_scale" in found.refused["slimming"]
    assert "not run: network slimming: " in said
    assert not (out / "slimming/seed1").exists()
    assert sorted(row.name for row in found.rows) == ["magnitude", "random"]
    errors = [row.validation for row in found.rows]
    assert errors == sorted(errors)
    for row in found.rows:
        card = zoo.card(row.name, out / "cards")
        assert (row.seeds, card.epochs) == (2, 3)
        assert row.validation == statistics.mean(s.validation_error for s in card.seeds)
        assert row.test == statistics.mean(s.test_error for s in card.seeds)
        small = zoo.load(row.name, out / "cards")
        assert count_macs(small, torch.zeros(1, 1, 28, 28)) == card.compact.macs
        assert 0 < row.macs_left <= 30
        assert row.seconds > 0
        assert row.label in said
    table = (out / "comparison.md").read_text()
    assert table == comparison_table(found.rows)
    assert table.count("\n") == 4
    assert (out / "comparison.png").read_bytes().startswith(b"\x89PNG")
    runs = sorted(out.glob("*/seed*/run.json"))
    assert len(runs) == 4
    before = [path.stat().st_mtime_ns for path in runs]
    assert main(command) == 1
    assert [path.stat().st_mtime_ns for path in runs] == before
    again = Comparison.load(out / "comparison.json")
    assert again == found
    fewer = [text for text in command if text != "0"]  # of one of the seeds, without another run
    assert main(fewer) == 1
    assert [path.stat().st_mtime_ns for path in runs] == before
    (row,) = [r for r in Comparison.load(out / "comparison.json").rows if r.name == "random"]
    (seed,) = zoo.card("random", out / "cards").seeds
    assert (row.seeds, seed.seed, row.test) == (1, 1, seed.test_error)
    other = [text.replace("0.3", "0.5") for text in command]
    capsys.readouterr()
    assert main(other) == 1
    assert "out was begun with other settings: " in capsys.readouterr().err


def test_a_killed_command_loses_the_run_in_hand_at_most(folder: Path) -> None:
    program = [
        sys.executable,
        "-c",
        "from ssl_lightning.cli import main; import sys; main(sys.argv[1:])",
    ]
    command = [*COMMAND, "--output=out", "--ways", "random", "magnitude"]
    process = subprocess.Popen(program + command, start_new_session=True)
    first = folder / "out/random/seed0/run.json"
    begun = folder / "out/magnitude/seed0/output.txt"
    while process.poll() is None and not (first.exists() and begun.exists()):
        time.sleep(0.05)
    assert process.poll() is None
    os.kill(process.pid, signal.SIGKILL)  # its children end themselves
    process.wait()
    before = first.stat().st_mtime_ns
    assert main(command) == 0
    assert first.stat().st_mtime_ns == before
    found = Comparison.load(folder / "out/comparison.json")
    assert {row.name for row in found.rows} == {"random", "magnitude"}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """A resolved config with a budget."""
    path = tmp_path_factory.mktemp("config") / "config.yaml"
    path.write_text(yaml.safe_dump(CONFIG))
    return resolved("fit", [f"--config={path}", "--budget.macs=0.3", "--trainer.max_epochs=6"])[0]


@pytest.mark.parametrize("way", ALTERNATIVES)
def test_every_way_is_a_config_with_the_same_budget_and_epochs(config: dict, way: str) -> None:
    made = ALTERNATIVES[way][1](config)
    again = resolved("fit", content=made)[0]
    assert again["trainer"]["max_epochs"] == 6
    assert again["data"] == config["data"]
    assert again["model"]["optimizer"] == config["model"]["optimizer"]
    if way in ("dense", "tucker", "svd"):
        assert again["budget"] is None
        callbacks = [c["init_args"] for c in again["trainer"]["callbacks"] or []]
        assert [c["macs"] for c in callbacks] == ([] if way == "dense" else [0.3])
    elif way == "gbd":
        arguments = again["budget"]["init_args"]
        assert (arguments["sparse_macs"], arguments["macs"]) == (0.3, None)
    else:
        kind, arguments = again["budget"]["class_path"], again["budget"]["init_args"]
        assert arguments["macs"] == 0.3
        assert pydoc.locate(kind)(**arguments).end in (0, 2)
    assert config["model"]["penalties"] is None  # unchanged


def test_ways_differ_from_each_other(config: dict) -> None:
    made = [json.dumps(make(config)) for _, make in ALTERNATIVES.values()]
    assert len(set(made)) == len(made)


def test_penalties_of_the_config_are_not_those_of_the_ways(config: dict) -> None:
    given = json.loads(json.dumps(config))
    given["model"]["penalties"] = [{"kind": "depth", "strength": 0.1}]
    for way, (_, make) in ALTERNATIVES.items():
        kinds = [p["kind"] for p in make(given)["model"]["penalties"] or []]
        assert kinds == {
            "group_lasso": ["coupled"],
            "slimming": ["bn_scale"],
            "gbd": ["shape"],
        }.get(way, []), way


def test_lines_are_those_that_a_user_writes(config: dict) -> None:
    dense = without_defaults(without_budget(config))
    measured = without_defaults(ALTERNATIVES["measured"][1](config))
    assert differing(measured, dense) == ["budget:", "  macs: 0.3", "  end: 0"]
    assert differing(dense, dense) == []
    assert differing(without_defaults(ALTERNATIVES["pat"][1](config)), dense) == [
        "budget:",
        "  class_path: ssl_lightning.callbacks.peers.PATBudget",
        "  init_args:",
        "    macs: 0.3",
        "    end: 2",
    ]


def test_ways_that_act_in_a_window_need_one(config: dict) -> None:
    short = json.loads(json.dumps(config))
    short["trainer"]["max_epochs"] = 2
    own, _ = make_parser().parse_known_args(["--ways", *ALTERNATIVES])
    refused: dict[str, str] = {}
    jobs = jobs_of(short, own, Path("out"), refused)
    assert list(refused) == [
        "gradual",
        "fading",
        "group_lasso",
        "slimming",
        "gbd",
        "torch_pruning",
        "pat",
    ]
    assert all("expected at least 3 epochs" in reason for reason in refused.values())
    assert {job.way for job in jobs} == set(ALTERNATIVES) - set(refused)


def test_a_card_of_other_seeds_is_made_anew(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many, but others."""
    made: list[list[str]] = []

    def published(runs: list[Path], way: str, root: Path, **_: str) -> None:
        made.append([path.name for path in runs])
        shutil.copytree(zoo.entries.zoo_root(None) / "lenet_mnist_shape", root / way)

    card = zoo.card("lenet_mnist_shape")
    monkeypatch.setattr("ssl_lightning.cli.compare.publish", published)
    monkeypatch.setattr("ssl_lightning.cli.compare.zoo.card", lambda *_: card)
    own = [seed.seed for seed in card.seeds]
    for seeds in (own, own, [seed + 7 for seed in own]):
        jobs = [Job("random", s, folder / f"seed{s}", {}, 1) for s in seeds]
        card_of("random", jobs, folder)
    assert made == [[f"seed{s}" for s in own], [f"seed{s + 7}" for s in own]]


def test_runs_share_the_threads_and_the_first_seeds_go_first(config: dict) -> None:
    own, _ = make_parser().parse_known_args(
        ["--jobs", "2", "--seeds", "3", "4", "--ways", "random", "dense"]
    )
    refused: dict[str, str] = {}
    jobs = jobs_of(config, own, Path("out"), refused)
    assert not refused
    assert [(job.way, job.seed) for job in jobs] == [
        ("random", 3),
        ("dense", 3),
        ("random", 4),
        ("dense", 4),
    ]
    assert [job.config["seed_everything"] for job in jobs] == [3, 3, 4, 4]
    assert jobs[0].threads == max((os.cpu_count() or 1) // 2, 1)


def test_a_way_that_has_no_such_budget_says_so(config: dict) -> None:
    other = json.loads(json.dumps(config))
    other["budget"]["init_args"] |= {"macs": None, "parameters": 0.5}
    own, _ = make_parser().parse_known_args(["--ways", "random", "gbd"])
    refused: dict[str, str] = {}
    jobs = jobs_of(other, own, Path("out"), refused)
    assert [job.way for job in jobs] == ["random"]
    assert "expected a budget in macs alone, got parameters" in refused["gbd"]


def test_multiply_adds_of_a_card_leave_zero_columns_out_and_count_factors(folder: Path) -> None:
    card = zoo.card("lenet_mnist_shape")
    conv1, conv2 = (card.groups[layer] for layer in ("conv1", "conv2"))
    expected = card.compact.macs - sum(card.layer_macs[layer][0] for layer in ("conv1", "conv2"))
    for layer, kinds in (("conv1", conv1), ("conv2", conv2)):
        (filters, of), (columns, all_columns) = kinds["filters"], kinds["columns"]
        expected += card.layer_macs[layer][1] * filters / of * columns / all_columns
    assert sparse_macs(card) == pytest.approx(expected, abs=1)
    assert sparse_macs(card) < card.compact.macs
    factors = dataclasses.replace(card, layer_macs={"conv1": [10, 100]}, groups={"conv1": WHOLE})
    assert sparse_macs(factors) == 10


WHOLE = {"filters": [20, 20], "channels": [1, 1], "columns": [25, 25]}
OWN = ["--model.backbone.class_path=torch.nn.Identity", "--model.num_classes=10"]
REFUSED = {
    "no budget": (["compare", "--config=config.yaml", "--epochs=1"], "expected a budget, got none"),
    "an unknown way": ([*COMMAND, "--ways", "magnitud"], "Unknown way 'magnitud'. Did you mean"),
    "a seed twice": ([*COMMAND, "--seeds", "1", "1"], "expected different seeds"),
    "no jobs": ([*COMMAND, "--jobs", "0"], "at least one job"),
    "no epochs": ([*COMMAND[:3], "--epochs=0"], "expected a number of epochs"),
    "a class": ([*COMMAND, *OWN], "expected a backbone by its name"),
    "an impossible target": ([*COMMAND[:2], "--epochs=1", "--budget.macs=-1"], "macs"),
    "data of one's own": ([*COMMAND, "--data=SyntheticDataModule"], "data modules of sets held in"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_compared_is_refused_and_nothing_is_left(
    folder: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    command, message = REFUSED[case]
    try:
        status = main(command)
    except SystemExit as error:
        status = error.code
    assert status in (1, 2)
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in folder.iterdir()) == ["config.yaml"]


def test_help_shows_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["compare", "--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert "ssl-lightning compare --model.backbone lenet" in said
    assert all(way in said for way in ALTERNATIVES)
