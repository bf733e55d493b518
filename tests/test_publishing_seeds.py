"""Several seeds and controls in one entry."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch

from ssl_lightning import publishing, zoo
from ssl_lightning.cli import main
from ssl_lightning.compaction import load_compact
from ssl_lightning.data import MNISTDataModule
from ssl_lightning.publishing.measuring import measure_error
from zoo_runs import edit_config

pytestmark = pytest.mark.filterwarnings("ignore:The number of training batches")


def test_the_median_seed_is_published(seeds, published):
    card = zoo.card("both", published)
    data = MNISTDataModule(num_validation=2000)
    errors = [measure_error(load_compact(run / "compact"), data.val_dataloader()) for run in seeds]
    assert [result.validation_error for result in card.seeds] == errors
    assert card.validation_error == sorted(errors)[1]
    assert card.seed == errors.index(sorted(errors)[1])
    model = zoo.load("both", root=published)
    assert card.test_error == measure_error(model, data.test_dataloader())
    assert {c.kind: [r.seed for r in c.seeds] for c in card.controls} == {
        "magnitude": [1, 2],
        "small_dense": [0],
    }
    assert card.controls[1].seeds == card.seeds[:1]
    assert card.training_seconds > 0
    assert card.step_cost.batch_size == 64
    assert [record.batch_size for record in card.latency] == [1, 64]


def set_strength(folder: Path, old: float, new: float) -> None:
    """Let a run's config and checkpoint tell of another strength."""
    edit_config(folder, f"strength: {old}", f"strength: {new}")
    path = folder / "checkpoints" / "last.ckpt"
    content = torch.load(path, weights_only=True)
    content["hyper_parameters"]["penalties"][0]["strength"] = new
    torch.save(content, path)


def test_runs_that_do_not_belong_together_are_refused(seeds, tmp_path):
    root = tmp_path / "new"
    with pytest.raises(ValueError, match=r"different seeds, got the seeds \[0, 0\]"):
        publishing.publish([seeds[0], seeds[0]], "x", root)
    other = Path(shutil.copytree(seeds[1], tmp_path / "other"))
    edit_config(other, str(seeds[1]), "runs/x")
    set_strength(other, 0.001, 0.002)
    with pytest.raises(
        ValueError,
        match=r"differ in `model\.penalties\[0\]\.strength` \(0\.001 and 0\.002\)\. Only seeds",
    ):
        publishing.publish([seeds[0], other], "x", root)
    set_strength(other, 0.002, 0.001)
    edit_config(other, "threshold: 0.95", "threshold: 0.9")
    with pytest.raises(ValueError, match=r"`trainer\..*threshold` \(0\.95 and 0\.9\)\. Only"):
        publishing.publish([seeds[0], other], "x", root)
    edit_config(other, "num_validation: 2000", "num_validation: 1000")
    with pytest.raises(ValueError, match=r"`data\..*num_validation` \(1000 and 2000\)\. Train"):
        publishing.publish(seeds[0], "x", root, controls={"random": [other]})
    with pytest.raises(ValueError, match="Unknown kind of control 'luck'"):
        publishing.publish(seeds[0], "x", root, controls={"luck": [seeds[0]]})
    with pytest.raises(ValueError, match=r"different seeds, got the seeds \[\]"):
        publishing.publish(seeds[0], "x", root, controls={"random": []})
    assert not root.exists() or not list(root.iterdir())


def test_publish_takes_runs_and_controls_on_the_command_line(seeds, tmp_path, capsys):
    runs = [str(run) for run in seeds]
    arguments = ["--name", "cli", "--root", str(tmp_path / "zoo")]
    controls = ["--controls", f"magnitude={runs[1]},{runs[2]}", f"random={runs[0]}"]
    assert main(["zoo", "publish", *runs, *arguments, *controls]) == 0
    assert "control, random, seed 0" in capsys.readouterr().out
    assert main(["zoo", "publish", *runs, *arguments]) == 1
    assert "exists already" in capsys.readouterr().err
    assert main(["zoo", "publish", *runs, *arguments, "--controls", "random"]) == 1
    assert "expected KIND=RUN,RUN" in capsys.readouterr().err


def test_controls_are_added_to_a_published_entry(seeds, published, tmp_path, capsys):
    root = tmp_path / "zoo"
    shutil.copytree(published, root)
    before, runs = zoo.card("both", root), [str(run) for run in seeds]
    given = [f"random={runs[0]},{runs[2]}", f"magnitude={runs[0]}"]
    assert main(["zoo", "control", "both", *given, "--root", str(root)]) == 0
    assert "control, random, seed 2" in capsys.readouterr().out
    after = zoo.card("both", root)
    assert {c.kind: [r.seed for r in c.seeds] for c in after.controls} == {
        "small_dense": [0],  # as it was
        "random": [0, 2],  # new
        "magnitude": [0],  # in place of the old ones
    }
    assert after.controls[1].seeds[1] in before.seeds
    changed = {file for file in after.files if after.files[file] != before.files[file]}
    assert changed == {"README.md"}
    assert "random groups" in (root / "both" / "README.md").read_text().lower()
    same = dataclasses.replace(after, controls=before.controls, files=before.files)
    assert same == before
    more = [*given[1:], "--root", str(root), "--remark", "It was late."]
    assert main(["zoo", "control", "both", *more]) == 0
    assert zoo.card("both", root).remark == "It was late."
    assert "\nIt was late.\n" in (root / "both" / "README.md").read_text()
    assert not [path for path in root.iterdir() if path.name.startswith(".")]


def test_controls_that_do_not_fit_leave_the_entry(seeds, published, spoilt, run, tmp_path):
    root = tmp_path / "zoo"
    shutil.copytree(published, root)
    before = (root / "both" / "card.json").read_bytes()
    edit_config(spoilt, str(run), "runs/x")
    edit_config(spoilt, "num_validation: 2000", "num_validation: 1000")
    for controls, message in [
        ({"random": [spoilt]}, "Cannot compare .* with both: their configs differ in `data"),
        ({"luck": seeds[:1]}, "Unknown kind of control 'luck'"),
        ({}, "expected runs of controls for both, got none"),
    ]:
        with pytest.raises(ValueError, match=message):
            publishing.add_controls("both", controls, root)
    with pytest.raises(ValueError, match="Unknown zoo entry 'bith'"):
        publishing.add_controls("bith", {"random": seeds[:1]}, root)
    assert (root / "both" / "card.json").read_bytes() == before


def test_configs_without_a_younger_option_are_compared_by_its_default(
    seeds, published, spoilt, run, tmp_path
):
    root = tmp_path / "zoo"
    shutil.copytree(published, root)
    edit_config(spoilt, str(run), "runs/x")
    edit_config(spoilt, "cutout: 0", "num_workers: 0")  # said twice, so `cutout` not at all
    assert "cutout" not in (spoilt / "config.yaml").read_text()
    publishing.add_controls("both", {"random": [spoilt]}, root)
    other = Path(shutil.copytree(seeds[1], tmp_path / "other"))
    edit_config(other, str(seeds[1]), "runs/x")
    edit_config(other, "cutout: 0", "num_workers: 0")
    publishing.publish([seeds[0], other], "together", root)
    edit_config(spoilt, "augment: true", "augment: true\n    cutout: 2")
    with pytest.raises(ValueError, match=r"differ in `data\.init_args\.cutout` \(2 and 0\)\."):
        publishing.add_controls("both", {"random": [spoilt]}, root)


def test_each_seed_may_start_from_the_dense_run_of_its_own(seeds, tmp_path):
    runs = [Path(shutil.copytree(seed, tmp_path / seed.name)) for seed in seeds[:2]]
    for run, seed in zip(runs, seeds, strict=False):
        edit_config(run, str(seed), f"runs/{run.name}")
        edit_config(run, "model:\n", f"model:\n  init_from: runs/dense-{run.name}/last.ckpt\n")
    publishing.publish(runs, "both", tmp_path / "zoo")
    assert [result.seed for result in zoo.card("both", tmp_path / "zoo").seeds] == [0, 1]
