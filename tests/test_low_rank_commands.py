"""Low rank factors in configs, commands and the zoo."""

from __future__ import annotations

import json

import pytest
import torch

from ssl_lightning import (
    count_macs,
    create_backbone,
    kept_groups,
    load_backbone,
    load_compact,
    publishing,
    zoo,
)
from ssl_lightning.cli import main
from ssl_lightning.compaction.equality import difference
from ssl_lightning.compaction.factors import product
from zoo_runs import LOG, TIMER, train

pytestmark = [
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
]
RANKS = {"conv1": 3, "conv2": [12, 6], "fc1": 25}
PENALTIES = [{"kind": "coupled", "layers": ["conv2.0", "fc1.0"], "strength": 1e-4}]
X = torch.zeros(1, 1, 28, 28)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A finished run of two short epochs of a LeNet with factors, given in the config."""
    from test_cli import short_run

    place = tmp_path_factory.mktemp("low_rank")
    low_rank = {"class_path": "LowRank", "init_args": {"ranks": RANKS}}
    extra = [f"--trainer.callbacks+={each}" for each in (json.dumps(low_rank), TIMER)]
    return train(short_run(place, "--model.penalties", json.dumps(PENALTIES), *LOG, *extra), place)


@pytest.fixture(scope="module")
def checkpoint(folder):
    return str(folder / "checkpoints" / "last.ckpt")


def test_the_run_stores_the_factors(folder, checkpoint):
    trained = load_backbone(checkpoint)
    assert list(trained.plans[0].factors) == list(RANKS)
    small = load_compact(folder / "compact")
    assert type(small.fc1) is torch.nn.Sequential
    x = torch.randn(2, 1, 28, 28)
    assert difference(trained.model(x).detach(), small(x).detach()) < 1e-5
    masked = trained.masked()
    assert str(masked) == str(create_backbone("lenet"))
    assert difference(trained.model(x).detach(), masked(x).detach()) < 1e-4


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_test_compact_and_resume(folder, checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # the config's logger writes there
    config = f"--config={folder / 'config.yaml'}"
    assert main(["test", config, f"--ckpt_path={checkpoint}"]) == 0
    assert "test/error" in capsys.readouterr().out
    assert main(["compact", checkpoint, "--output", str(tmp_path / "small")]) == 0
    again = load_compact(tmp_path / "small")
    assert str(again) == str(load_compact(folder / "compact"))
    kept = {"class_path": "ModelCheckpoint", "init_args": {"dirpath": str(tmp_path / "kept")}}
    low_rank = {"class_path": "LowRank", "init_args": {"ranks": RANKS}}
    more = ["--trainer.max_epochs=3", f"--ckpt_path={checkpoint}", "--trainer.callbacks"]
    more += [json.dumps([low_rank, kept]), f"--trainer.default_root_dir={tmp_path / 'more'}"]
    assert main(["fit", config, *more]) == 0
    assert len(list((tmp_path / "kept").glob("*.ckpt"))) == 1


def test_benchmark_has_one_row_for_each_layer_of_the_dense_network(checkpoint, tmp_path):
    report = tmp_path / "report.json"
    arguments = ["--data=none", "--repeats=2", "--per_layer=true", f"--output={report}"]
    assert main(["benchmark", checkpoint, "--engines=eager", *arguments]) == 0
    data = json.loads(report.read_text())
    text = json.dumps(data)
    assert "conv2.0" not in text
    assert data["layers"]["fc1"]["filters"] == [500, 500]


@pytest.mark.parametrize("source", ["checkpoint", "compact"])
def test_prune_and_export_go_on_from_there(folder, checkpoint, source, tmp_path):
    given = checkpoint if source == "checkpoint" else str(folder / "compact")
    output = tmp_path / "pruned"
    assert main(["prune", given, "--macs", "0.7", "--output", str(output)]) == 0
    less = load_compact(output)
    assert count_macs(less, X) <= 0.71 * count_macs(load_compact(folder / "compact"), X)
    torch.testing.assert_close(less(X), less(X))
    file = tmp_path / "small.pt2"
    assert main(["export", str(output), "--format=torch_export", f"--output={file}"]) == 0
    assert file.is_file()


def test_a_card_is_published_and_verified_with_figures_that_are_right(folder, tmp_path):
    root = tmp_path / "zoo"
    publishing.publish(str(folder), "low_rank", root)
    card = zoo.card("low_rank", root)
    small, dense = load_compact(folder / "compact"), create_backbone("lenet")
    own, before = (count_macs(net, X, per_layer=True) for net in (small, dense))
    for name in ("conv1", "conv2", "fc1", "fc2"):
        inside = sum(n for path, n in own.items() if path.split(".")[0] == name)
        assert card.layer_macs[name] == [inside, before[name]]
    assert card.compact.macs == sum(n for n, _ in card.layer_macs.values()) == count_macs(small, X)
    assert card.dense.macs == 2293000
    kernel = product(load_backbone(str(folder / "checkpoints" / "last.ckpt")).model.conv2)
    filters = int(kernel.flatten(1).any(1).sum())
    assert card.groups["conv2"]["filters"] == [filters, 50]
    assert card.groups.keys() == kept_groups(dense).keys()
    checks = publishing.verify("low_rank", root, latency=False)
    assert [check.what for check in checks if not check.ok] == []
    x = torch.randn(2, 1, 28, 28)
    assert difference(zoo.load("low_rank", root=root)(x).detach(), small(x).detach()) == 0


def test_a_wrong_argument_in_a_config_is_named(tmp_path, capsys):
    from test_cli import short_run

    low_rank = json.dumps({"class_path": "LowRank", "init_args": {"mac": 0.5}})
    with pytest.raises(SystemExit):
        main(short_run(tmp_path, f"--trainer.callbacks+={low_rank}"))
    assert "mac" in capsys.readouterr().err
