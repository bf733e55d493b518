"""Sweeps: spaces, fronts, stopping, trials that run again, kills, shared studies, W&B files.

``SSL_KILLS=20`` kills a sweep 20 times instead of a few.
"""

from __future__ import annotations

import copy
import csv
import os
import random
import re
import shutil
import sqlite3
import statistics
import subprocess

import optuna
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.storages import RDBStorage

from conftest import ROOT
from ssl_lightning import suggest
from ssl_lightning.cli import main, sweep
from ssl_lightning.cli.training import resolved
from ssl_lightning.sweep.front import front
from ssl_lightning.sweep.places import places
from ssl_lightning.sweep.processes import in_processes
from ssl_lightning.sweep.pruning import STARTUP, worth_stopping
from ssl_lightning.sweep.space import Space, with_values
from ssl_lightning.sweep.study import SharedStudy
from swept import (
    CONFIG,
    SPACE,
    carried_out,
    killed,
    results_of,
    started,
    state_of,
    weights_of,
    written,
)

COMPLETE, FAIL = optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.FAIL
STRENGTH = "model.penalties.0.strength"
TRIALS = 3
KILLS = int(os.environ.get("SSL_KILLS", "4"))

WRONG = {
    "nothing": ({}, "expected keys of the config"),
    "no mapping": ({STRENGTH: 3}, "expected one of {log:"),
    "two kinds": ({STRENGTH: {"log": [1, 2], "int": [1, 2]}}, "expected one of {log:"),
    "unknown kind": ({STRENGTH: {"logg": [1, 2]}}, "no distribution 'logg'. Did you mean log?"),
    "no list": ({STRENGTH: {"log": 3}}, r"expected {log: \[low, high\]}, got"),
    "three numbers": ({STRENGTH: {"log": [1, 2, 3]}}, "expected two finite numbers"),
    "no numbers": ({STRENGTH: {"uniform": ["a", "b"]}}, "expected two finite numbers"),
    "booleans": ({STRENGTH: {"uniform": [False, True]}}, "expected two finite numbers"),
    "endless": ({STRENGTH: {"uniform": [0, float("inf")]}}, "expected two finite numbers"),
    "no whole numbers": ({STRENGTH: {"int": [1, 2.5]}}, "expected two whole numbers"),
    "exchanged": ({STRENGTH: {"uniform": [2, 1]}}, r"expected low < high, got \[2, 1\]"),
    "equal": ({STRENGTH: {"int": [2, 2]}}, "expected low < high"),
    "log of nothing": ({STRENGTH: {"log": [0, 1]}}, "expected 0 < low for `log`"),
    "one choice": ({STRENGTH: {"choice": [1]}}, "two or more different"),
    "same choices": ({STRENGTH: {"choice": [1, True]}}, "two or more different"),
    "lists": ({STRENGTH: {"choice": [[1], [2]]}}, "two or more different"),
    "a part of another": (
        {"model.lr": {"log": [1, 2]}, "model": {"choice": [1, 2]}},
        "`model.lr` is a part of `model`",
    ),
}
ABSENT = {
    "key": ("model.penalty", "no `model.penalty` in the config. Did you mean model.penalties"),
    "section": ("modle.backbone", "no `modle` in the config. Did you mean model"),
    "item": ("model.penalties.1.strength", "`model.penalties` has the item 0"),
    "items": ("trainer.callbacks.7.init_args", "`trainer.callbacks` has the items 0 to 1"),
    "word": ("model.penalties.first.strength", "no `model.penalties.first`"),
    "below a value": ("trainer.max_epochs.0", "`trainer.max_epochs` is 3"),
    "unwritten": ("model.penalties.0.mode", "no `model.penalties.0.mode`"),
}


@pytest.mark.parametrize(("data", "message"), WRONG.values(), ids=WRONG)
def test_a_space_that_is_none_is_refused(data, message):
    with pytest.raises(ValueError, match=message):
        Space.from_data(data, "space.yaml")


@pytest.mark.parametrize(("key", "message"), ABSENT.values(), ids=ABSENT)
def test_what_is_not_in_the_config_is_refused(key, message, tmp_path, capsys):
    space = {key: {"uniform": [0, 1]}}
    assert main(["sweep", *written(tmp_path, space=space), "--output", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path}/space.yaml: There is no `{key[:5]}")
    assert message in error
    assert not (tmp_path / "out").exists()


REFUSED = {
    "of another type": ({"trainer.max_epochs": {"choice": [1, "many"]}}, [], "expected int"),
    "without a seed": ({"seed_everything": {"choice": [True, False]}}, [], "to be a number"),
    "on the test split": (SPACE, ["--error", "test/error"], "must choose nothing"),
    "less than none": (SPACE, ["--trials", "-1"], "--trials: expected 0 or more"),
    "no URL": (SPACE, ["--storage", "study.db"], "expected a URL such as sqlite:///"),
    "in memory": (SPACE, ["--storage", "sqlite://"], "is lost with the process"),
    "no driver": (SPACE, ["--storage", "mysql+none://me:word@host/x"], "cannot open mysql"),
}


@pytest.mark.parametrize(("space", "more", "message"), REFUSED.values(), ids=REFUSED)
def test_a_sweep_that_cannot_run_is_refused_before_a_trial(space, more, message, tmp_path, capsys):
    arguments = [*written(tmp_path, space=space), "--output", str(tmp_path / "out"), *more]
    assert main(["sweep", *arguments]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "word" not in error
    assert not list(tmp_path.glob("out/trial-*"))


def test_what_is_missing_is_named(tmp_path, monkeypatch, capsys):
    assert main(["sweep", "--output", str(tmp_path / "out"), "--trials", "0"]) == 1
    assert f"No study at {tmp_path}/out/study.db" in capsys.readouterr().err
    assert main(["sweep", "--output", str(tmp_path / "out")]) == 1
    assert "expected --config FILE.yaml and --space SPACE.yaml, got neither" in (
        capsys.readouterr().err
    )
    monkeypatch.setattr(suggest, "find_spec", lambda name: None)
    assert main(["sweep", "--output", str(tmp_path / "out")]) == 1
    assert "pip install 'ssl-lightning[sweep]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["quickstart", "lenet_mnist_filter_channel"])
def test_the_shipped_space_fits_and_trials_write_to_their_own_folders(name):
    config, _ = resolved("fit", ["--config", str(ROOT / "configs" / f"{name}.yaml")])
    space = Space.from_file(ROOT / "configs" / "sweep" / "lenet_strength.yaml")
    space.check(config, "space")
    for corner in space.corners():
        sweep.checked(with_values(config, corner))
    moved = with_values(config, places(config, "new"))
    text = yaml.safe_dump(moved)
    assert text.count("new") == 3  # run, logs and checkpoints
    assert "runs" not in text


POINTS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=12)


@given(POINTS)
def test_the_front_is_what_no_other_beats(points):
    beaten = {
        b
        for b in range(len(points))
        for a in range(len(points))
        if (all(x <= y for x, y in zip(points[a], points[b], strict=True)))
        and (points[a] != points[b] or a < b)
    }
    found = front(points)
    assert set(found) == set(range(len(points))) - beaten
    assert [points[i][1] for i in found] == sorted(points[i][1] for i in found)


CURVES = st.lists(
    st.dictionaries(st.integers(0, 3), st.tuples(st.integers(0, 9), st.integers(0, 3)), min_size=1),
    max_size=12,
)


@given(CURVES, CURVES.map(lambda found: found[:1]), st.integers(0, 2))
@settings(max_examples=100, deadline=None)
def test_trials_are_stopped_above_the_median_of_those_no_more_costly(finished, own, warmup):
    for curve in own:
        last = max(curve)
        peers = [c[last][0] for c in finished if last in c and c[last][1] <= curve[last][1]]
        lowest = min(error for error, _ in curve.values())
        enough = len(peers) >= STARTUP and last >= warmup
        wanted = enough and lowest > statistics.median(peers)
        assert worth_stopping(curve, finished, warmup) is wanted


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Folder of a sweep that nothing interrupted."""
    place = tmp_path_factory.mktemp("whole")
    arguments = ["sweep", *written(place), "--trials", str(TRIALS), "--output", str(place / "out")]
    assert carried_out(place / "log.txt", *arguments) == 0, (place / "log.txt").read_text()
    return place / "out"


def test_trials_have_results_and_the_front_is_written(whole, capsys):
    results = results_of(whole)
    assert list(results) == list(range(TRIALS))
    assert {state for state, *_ in results.values()} == {"finished"}
    points = [(float(error), float(cost)) for _, error, cost, *_ in results.values()]
    assert len({cost for _, cost in points}) == TRIALS
    with (whole / "front.csv").open() as file:
        assert [int(row["trial"]) for row in csv.DictReader(file)] == front(points)
    assert (whole / "front.png").read_bytes().startswith(b"\x89PNG")
    for number in range(TRIALS):
        config = yaml.safe_load((whole / f"trial-{number:04d}" / "config.yaml").read_text())
        values = [config["model"]["penalties"][0]["strength"]]
        values += [config["trainer"]["callbacks"][0]["init_args"]["fraction"]]
        assert [float(value) for value in results[number][3:]] == values
        assert not (whole / f"trial-{number:04d}" / "resume").exists()
    before = {p.name: p.read_bytes() for p in whole.glob("*.csv")}
    assert main(["sweep", "--trials", "0", "--output", str(whole)]) == 0
    assert before == {p.name: p.read_bytes() for p in whole.glob("*.csv")}
    assert f"{TRIALS} trials: {TRIALS} finished." in capsys.readouterr().out


def test_the_config_of_a_trial_repeats_it(whole):
    folder = whole / "trial-0001"
    before, text = weights_of(folder), (folder / "config.yaml").read_text()
    (folder / "checkpoints" / "last.ckpt").unlink()
    assert carried_out(whole / "log.txt", "fit", "--config", str(folder / "config.yaml")) == 0
    assert_equal(weights_of(folder), before)
    assert yaml.safe_load((folder / "config.yaml").read_text()) == yaml.safe_load(text)
    with (folder / "logs" / "tiny" / "version_1" / "metrics.csv").open() as file:
        logged = [row["val/error"] for row in csv.DictReader(file) if row["val/error"]]
    assert logged[-1] == results_of(whole)[1][1]


def test_a_sweep_that_is_killed_again_and_again_becomes_the_whole_one(whole, tmp_path):
    out, log = tmp_path / "out", tmp_path / "log.txt"
    arguments = ["sweep", *written(tmp_path), "--trials", str(TRIALS), "--output", str(out)]
    draws = random.Random(0)
    moments = [
        (out / "study.db").exists,
        (out / "trial-0000" / "resume" / "last.ckpt").exists,
        (out / "trial-0001" / "checkpoints" / "last.ckpt").exists,
        *[lambda: draws.random() < 0.004] * (KILLS - 3),
    ]
    running = 0
    for moment in moments:
        killed(started(log, *arguments), moment)
        running += "RUNNING" in state_of(out).values()
    assert running >= 2
    assert carried_out(log, *arguments) == 0, log.read_text()
    assert results_of(out) == results_of(whole)
    for number in range(TRIALS):
        name = f"trial-{number:04d}"
        assert_equal(weights_of(out / name), weights_of(whole / name))
    assert "Restored all states from the checkpoint" in (out / "trial-0000/output.txt").read_text()


def assert_equal(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_processes_that_share_a_study_run_each_trial_once(tmp_path):
    storage = f"sqlite:///{tmp_path}/shared.db"
    arguments = ["sweep", *written(tmp_path), "--trials", "4", "--storage", storage]
    processes = [
        started(tmp_path / f"{i}.txt", *arguments, "--study", "s", "--output", str(tmp_path / out))
        for i, out in enumerate(["one", "one", "two"])
    ]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    study = optuna.load_study(study_name="s", storage=storage)
    assert [t.state.name for t in study.trials] == ["COMPLETE"] * 4
    folders = sorted(tmp_path.glob("*/trial-*"), key=lambda folder: folder.name)
    assert [folder.name for folder in folders] == [f"trial-{n:04d}" for n in range(4)]
    for folder in folders:
        assert (folder / "output.txt").read_text().count("Seed set") == 1
    assert len({tuple(t.params.values()) for t in study.trials}) == 4


def test_a_study_is_under_its_name_once_it_is_whole(tmp_path, monkeypatch):
    """Without the index that Optuna makes last, a later process would begin the study twice."""

    class Killed(RDBStorage):
        def __init__(self, *arguments, **named):
            super().__init__(*arguments, **named)
            raise KeyboardInterrupt

    url = f"sqlite:///{tmp_path}/study.db"
    with monkeypatch.context() as patch:
        patch.setattr("ssl_lightning.sweep.study.RDBStorage", Killed)
        with pytest.raises(KeyboardInterrupt):
            SharedStudy(url, "s", tmp_path / "out")
    assert not list(tmp_path.rglob("*.db"))
    SharedStudy(url, "s", tmp_path / "out")
    with sqlite3.connect(tmp_path / "study.db") as file:
        indices = file.execute("select sql from sqlite_master where tbl_name = 'studies'")
        assert any(str(sql).startswith("CREATE UNIQUE INDEX") for (sql,) in indices)


def test_a_trial_of_a_living_process_is_not_taken(tmp_path):
    url = f"sqlite:///{tmp_path}/study.db"
    mine = SharedStudy(url, "s", tmp_path / "out")
    mine.agree({})
    other = SharedStudy(url, "s", tmp_path / "out")
    elsewhere = SharedStudy(url, "s", tmp_path / "elsewhere")
    claimed = mine.next(1, 0)
    assert not claimed.begun
    assert other.next(1, 0) is None
    assert elsewhere.next(1, 0) is None
    claimed.lock.release()  # as where the process is killed
    assert elsewhere.next(1, 0) is None
    again = other.next(1, 0)
    assert (again.trial.number, again.begun) == (0, True)


def test_a_trial_of_a_machine_without_signs_of_life_is_replaced(tmp_path):
    url = f"sqlite:///{tmp_path}/study.db"
    gone = SharedStudy(url, "s", tmp_path / "gone")
    gone.agree({})
    lost = gone.next(1, 0)
    with sqlite3.connect(tmp_path / "study.db") as connection:
        connection.execute("UPDATE trial_heartbeats SET heartbeat = datetime('now', '-1 hour')")
    other = SharedStudy(url, "s", tmp_path / "other")
    new = other.next(1, 0)
    assert (lost.trial.number, new.trial.number, new.begun) == (0, 1, False)
    assert [trial.number for trial in other.trials()] == [1]
    assert other.next(1, 0) is None
    assert SharedStudy(url, "s", tmp_path / "gone").next(1, 0) is None
    assert not gone.tell(0, FAIL, None, "late")
    assert not gone.tell(0, COMPLETE, (1.0, 2.0))
    assert other.tell(1, COMPLETE, (1.0, 2.0))


def test_folders_and_settings_of_another_study_are_refused(whole, tmp_path, capsys):
    arguments = ["sweep", *written(tmp_path), "--output", str(whole), "--trials", str(TRIALS)]
    changed = copy.deepcopy(CONFIG)
    changed["model"]["penalties"][0]["layers"] = "fc2"
    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump(changed))
    assert main([*arguments, "--config", str(other)]) == 1
    assert "`config.model.penalties[0].layers` (fc1 and fc2)" in capsys.readouterr().err
    assert main(["sweep", "--trials", "0", "--output", str(whole), "--study", "outt"]) == 1
    assert "there is no study 'outt'" in capsys.readouterr().err
    with pytest.raises(ValueError, match="holds the trials of the study 'out'"):
        SharedStudy(f"sqlite:///{whole}/study.db", "another", whole)
    with pytest.raises(ValueError, match="knows of no run in"):
        SharedStudy(f"sqlite:///{tmp_path}/new.db", "out", whole)
    optuna.create_study(storage=f"sqlite:///{tmp_path}/old.db", study_name="out")
    with pytest.raises(ValueError, match="was not begun by"):
        SharedStudy(f"sqlite:///{tmp_path}/old.db", "out", tmp_path / "out")


def test_a_trial_that_is_not_worth_finishing_is_stopped(whole, tmp_path):
    out, log = tmp_path / "out", tmp_path / "log.txt"
    shutil.copytree(whole, out)
    study = optuna.load_study(study_name="out", storage=f"sqlite:///{out}/study.db")
    better = {"curve": {"1": [-1.0, 0.0]}, "host": "elsewhere", "config": "a/config.yaml"}
    for _ in range(STARTUP):
        study.add_trial(optuna.trial.create_trial(values=[-1.0, 0.0], user_attrs=better))
    total = str(TRIALS + STARTUP + 1)
    arguments = ["sweep", *written(tmp_path), "--warmup", "1", "--trials", total]
    assert carried_out(log, *arguments, "--output", str(out)) == 0, log.read_text()
    state, *_ = results_of(out)[TRIALS + STARTUP]
    assert state == "stopped"
    assert "when it was stopped after epoch 1" in log.read_text()
    with (out / "front.csv").open() as file:
        assert [row["config"] for row in csv.DictReader(file)] == ["elsewhere:a/config.yaml"]


def test_the_wandb_file_runs_the_same_fit(tmp_path):
    from wandb.sdk.launch.sweeps import utils

    space = {
        **SPACE,
        "trainer.max_epochs": {"int": [2, 5]},
        "model.backbone": {"choice": ["mlp", "lenet"]},
    }
    file, output = tmp_path / "sweep.yaml", tmp_path / "a folder"
    arguments = [*written(tmp_path, space=space), "--output", str(output)]
    assert main(["sweep", *arguments, "--wandb_file", str(file)]) == 0
    assert not output.exists()
    content = yaml.safe_load(file.read_text())
    assert {key: content[key] for key in ("method", "metric")} == {
        "method": "bayes",
        "metric": {"name": "val/error", "goal": "minimize"},
    }
    assert content["parameters"] == {
        STRENGTH: {"distribution": "log_uniform_values", "min": 1e-4, "max": 1e-2},
        "trainer.callbacks.0.init_args.fraction": {
            "distribution": "uniform",
            "min": 0.0,
            "max": 0.95,
        },
        "trainer.max_epochs": {"distribution": "int_uniform", "min": 2, "max": 5},
        "model.backbone": {"distribution": "categorical", "values": ["mlp", "lenet"]},
    }
    values = {STRENGTH: 2e-05, "trainer.max_epochs": 4, "model.backbone": "lenet"}
    replaced = utils.create_sweep_command_args(
        {"args": {k: {"value": v} for k, v in values.items()}}
    )
    words = [
        word
        for part in utils.create_sweep_command(content["command"])
        for word in (replaced["args"] if part == "${args}" else [part])
    ]
    program = tmp_path / "bin" / "ssl-lightning"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    program.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "WANDB_RUN_ID": "x1",
    }
    run = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    name, *given = run.stdout.splitlines()
    assert name == "fit"
    config, _ = resolved("fit", given)
    base, _ = resolved("fit", ["--config", str(tmp_path / "config.yaml")])
    place = str(output / "wandb-x1")
    assert config["trainer"]["logger"]["class_path"].endswith("WandbLogger")
    assert config["trainer"]["logger"]["init_args"]["save_dir"] == f"{place}/logs"
    config["trainer"]["logger"] = base["trainer"]["logger"]
    wanted = with_values(base, {**values, **places(base, place)})
    wanted["trainer"]["logger"] = base["trainer"]["logger"]
    assert config == wanted


def test_arguments_may_name_items_of_lists(tmp_path, capsys):
    files = ["--config", str(ROOT / "configs" / "quickstart.yaml")]
    before, _ = resolved("fit", files)
    changes = {"model.penalties.1.strength": 1e-05, "trainer.callbacks.0.init_args.start": 9}
    given = [f"--{path}={value}" for path, value in changes.items()]
    after, _ = resolved("fit", [*files, *given])
    assert after == with_values(before, changes)
    with pytest.raises(ValueError, match=r"no `model.penalties.9`.*has the items 0 to 2"):
        resolved("fit", [*files, "--model.penalties.9.strength=1"])
    with pytest.raises(SystemExit):
        resolved("fit", [*files, "--trainer.callbacks.0.init_args.start", "soon"])
    assert "ThresholdPruning" in capsys.readouterr().err
    assert resolved("fit", files)[0] == before


def test_failed_and_diverged_trials_are_recorded_and_the_sweep_goes_on(tmp_path):
    config = copy.deepcopy(CONFIG)
    config["import"] = "swept"
    config["trainer"]["callbacks"].append({"class_path": "swept.Mishap", "init_args": {}})
    hows = ["well", "error", "signal", "nan"]
    arguments = written(tmp_path, config, {"trainer.callbacks.2.init_args.how": {"choice": hows}})
    out, log = tmp_path / "out", tmp_path / "log.txt"
    arguments += ["--trials", "4", "--seed", "50", "--cost", "parameters", "--output", str(out)]
    assert carried_out(log, "sweep", *arguments) == 0, log.read_text()
    with (out / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    reasons = {
        "well": "",
        "error": "As told",
        "signal": "ended by SIGKILL, as where memory runs out",
        "nan": "The training loss is nan in epoch 1, batch 0",
    }
    assert {row["trainer.callbacks.2.init_args.how"] for row in rows} == set(hows)
    for row in rows:
        how = row["trainer.callbacks.2.init_args.how"]
        assert (row["state"] == "finished") == (how == "well")
        assert row["reason"][: len(reasons[how])] == reasons[how]
        assert (0 < float(row["cost"] or 0) < 100) == (how == "well")


def test_processes_of_new_interpreters_tell_how_they_ended():
    ended: list[tuple[int, int]] = []
    calls = [(0,), (3,), (0,)]
    found = in_processes("spawn", os._exit, calls, 2, lambda *each: ended.append(each))
    assert found == [0, 3, 0]
    assert sorted(ended) == [(0, 0), (1, 3), (2, 0)]


def test_the_page_names_options_and_files_that_exist(capsys):
    page = (ROOT / "docs" / "sweep.md").read_text()
    with pytest.raises(SystemExit):
        main(["sweep", "--help"])
    known = set(re.findall(r"--\w+", capsys.readouterr().out))
    used = set(re.findall(r"--[a-z_]+", page))
    assert len(used) >= 8
    assert used <= known
    assert all((ROOT / path).is_file() for path in re.findall(r"configs/[\w/]+\.yaml", page))
