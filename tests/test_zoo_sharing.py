"""Entries elsewhere: in a wheel, through torch.hub, and on a model hub (a stand-in, no network)."""

from __future__ import annotations

import json
import runpy
import shutil
import subprocess
import sys
import zipfile

import pytest
import torch

from conftest import ROOT
from hub_server import running_hub
from ssl_lightning import publishing, zoo
from ssl_lightning.cli import main
from ssl_lightning.zoo import pulling
from ssl_lightning.zoo.cards import CARD, CONFIG, GOLDEN, PAGE, REQUIRED, Card, digest, serial

ZOO = ROOT / "zoo"
NAME = "lenet_mnist_filter_channel"
REPOSITORY = "somebody/lenet"
MODEL = "model.safetensors"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub, and nothing of the user's own: no token, no cache, no proxy."""
    from huggingface_hub import HfApi

    for variable in ("HF_TOKEN", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    with running_hub() as server:
        server.api = HfApi(endpoint=server.endpoint, token=False)
        yield server


def pushed(hub):
    """Upload the entry and return the files of the repository, to be damaged."""
    publishing.push(NAME, REPOSITORY, ZOO, hub=hub.api)
    return hub.repositories[REPOSITORY]


def test_an_entry_survives_the_trip(hub, tmp_path):
    url = publishing.push(NAME, REPOSITORY, ZOO, hub=hub.api)
    assert url.startswith(f"{hub.endpoint}/{REPOSITORY}/commit/")
    assert publishing.push(NAME, REPOSITORY, ZOO, hub=hub.api)  # again: the repository exists
    folder = zoo.pull(REPOSITORY, tmp_path / "zoo", hub=hub.api)
    here = {path.name: path.read_bytes() for path in (ZOO / NAME).iterdir()}
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == here
    assert hub.repositories[REPOSITORY] == here
    assert sorted(path.name for path in folder.parent.iterdir()) == [PAGE, NAME]
    assert all(check.ok for check in publishing.verify(NAME, tmp_path / "zoo", latency=False))
    with pytest.raises(FileExistsError, match="not overwritten"):
        zoo.pull(REPOSITORY, tmp_path / "zoo", hub=hub.api)


def test_on_the_command_line(hub, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: hub.api)
    root = ["--root", str(ZOO)]
    assert main(["zoo", "push", NAME, REPOSITORY, *root]) == 0
    assert main(["zoo", "pull", REPOSITORY, str(tmp_path / "zoo")]) == 0
    assert f"Wrote {tmp_path / 'zoo' / NAME}" in capsys.readouterr().out.replace("\n", "")
    assert main(["zoo", "pull", "nobody/nothing", str(tmp_path)]) == 1
    assert "Cannot download card.json of nobody/nothing" in capsys.readouterr().err
    hub.read_only = True
    assert main(["zoo", "push", NAME, "other/lenet", *root]) == 1
    assert "Cannot upload to other/lenet" in capsys.readouterr().err


@pytest.mark.parametrize("file", [CARD, *REQUIRED])
def test_what_was_damaged_on_the_hub_or_on_the_way_is_refused(hub, tmp_path, file, monkeypatch):
    def parse(*_, **__):
        raise AssertionError("nothing may be parsed")

    monkeypatch.setattr("ssl_lightning.zoo.loading.read_compact", parse)
    files = pushed(hub)
    whole = files[file]
    for damaged in (whole[:-1], whole[:-2] + b"\x00" + whole[-1:], b""):
        files[file] = damaged
        with pytest.raises(ValueError, match=f"{file}.*(damaged|edited|bytes)"):
            zoo.pull(REPOSITORY, tmp_path / "zoo", hub=hub.api)
    del files[file]
    with pytest.raises(FileNotFoundError, match=f"Cannot download {file} of {REPOSITORY}"):
        zoo.pull(REPOSITORY, tmp_path / "zoo", hub=hub.api)
    assert not (tmp_path / "zoo").exists() or not list((tmp_path / "zoo").iterdir())


def test_only_the_files_of_an_entry_are_asked_for(hub, tmp_path):
    files = pushed(hub)
    files["pytorch_model.bin"] = b"never"
    fields = json.loads(files[CARD])
    del fields["digest"]
    fields["files"]["../../x"] = fields["files"][CONFIG]
    files[CARD] = serial({**fields, "digest": digest(fields)})
    with pytest.raises(ValueError, match=r"card\.files: expected"):
        zoo.pull(REPOSITORY, tmp_path / "zoo", hub=hub.api)
    assert set(hub.asked) == {f"HEAD {CARD}", f"GET {CARD}"}
    files[CARD] = (ZOO / NAME / CARD).read_bytes()
    zoo.pull(REPOSITORY, tmp_path / "zoo", hub=hub.api)
    assert not [asked for asked in hub.asked if "pytorch_model" in asked]


def test_a_card_under_another_name_is_refused(hub, tmp_path):
    files = pushed(hub)
    fields = json.loads(files[CARD])
    del fields["digest"]
    fields["name"] = "../outside"
    files[CARD] = serial({**fields, "digest": digest(fields)})
    with pytest.raises(ValueError, match="Cannot be the name of a zoo entry"):
        zoo.pull(REPOSITORY, tmp_path / "zoo", hub=hub.api)
    assert list(tmp_path.glob("outside*")) == []


def test_a_damaged_entry_is_not_pushed(hub, tmp_path):
    shutil.copytree(ZOO / NAME, tmp_path / NAME)
    (tmp_path / NAME / GOLDEN).write_bytes(b"")
    with pytest.raises(ValueError, match=f"{GOLDEN} has 0 bytes"):
        publishing.push(NAME, REPOSITORY, tmp_path, hub=hub.api)
    assert hub.repositories == {}


def test_branches_that_do_not_exist_are_named(hub, tmp_path):
    pushed(hub)
    with pytest.raises(FileNotFoundError, match="Check the name, the revision"):
        zoo.pull(REPOSITORY, tmp_path / "zoo", revision="v9", hub=hub.api)
    with pytest.raises(FileNotFoundError, match="Cannot download"):
        pulling.fetch(hub.api, REPOSITORY, MODEL, "v9", str(tmp_path))


# torch.hub


def test_torch_hub_finds_every_entry():
    hubconf = runpy.run_path(str(ROOT / "hubconf.py"))
    for name in zoo.list_models(ZOO):
        assert f"entry {name};" in hubconf[name].__doc__
    model = torch.hub.load(str(ROOT), NAME, source="local")
    torch.testing.assert_close(model.conv1.weight, zoo.load(NAME, root=ZOO).conv1.weight)
    fresh = torch.hub.load(str(ROOT), "load", NAME, pretrained=False, source="local")
    assert str(fresh) == str(model)
    assert not torch.equal(fresh.conv1.weight, model.conv1.weight)


# An installed wheel


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The files of a wheel, unpacked as an installer does."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    for name in ("src", "zoo"):
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    large = source / "zoo" / "large"
    shutil.copytree(ZOO / NAME, large)
    (large / MODEL).write_bytes(bytes(2_100_000))
    build = "from setuptools import build_meta; print(build_meta.build_wheel('dist'))"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    (wheel,) = (source / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    return target


def test_a_wheel_brings_the_small_entries(installed, tmp_path):
    code = (
        f"import sys; sys.path.insert(0, {str(installed)!r})\n"
        "from ssl_lightning import publishing, zoo\n"
        "from ssl_lightning.publishing.pages import entry_page\n"
        "print(zoo.__file__); print(' '.join(zoo.list_models()))\n"
        f"print(zoo.load({NAME!r}).conv1.out_channels)\n"
        f"print(all(c.ok for c in publishing.verify({NAME!r}, latency=False)))\n"
        f"print(len(entry_page(zoo.card({NAME!r}))))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    place, names, width, verified, page = run.stdout.splitlines()
    assert int(page) == len((ZOO / NAME / PAGE).read_text())
    assert place.startswith(str(installed))
    sizes = {
        entry: sum(path.stat().st_size for path in (ZOO / entry).iterdir())
        for entry in zoo.list_models(ZOO)
    }
    assert names.split() == [entry for entry, size in sizes.items() if size <= 2_000_000]
    assert (width, verified) == (str(zoo.load(NAME, root=ZOO).conv1.out_channels), "True")
    card = installed / "ssl_lightning" / "zoo" / "models" / NAME / CARD
    assert Card.read(card) == zoo.card(NAME, ZOO)
