"""Every Python block of the README runs, in order, in one namespace; commands and files exist."""

from __future__ import annotations

import re

import pytest
import torch

from conftest import ROOT
from ssl_lightning import count_macs, create_backbone
from ssl_lightning.cli import COMMANDS
from ssl_lightning.graph.layers import OWN_LAYERS
from ssl_lightning.graph.operations import REGISTERED, RULES

README = (ROOT / "README.md").read_text()
CONFIGS = (ROOT / "docs" / "configs.md").read_text()


@pytest.mark.filterwarnings("ignore:The number of training batches")
def test_python_blocks_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) >= 2
    namespace: dict = {}
    tables = [(table, dict(table)) for table in (RULES, REGISTERED, OWN_LAYERS)]
    try:
        for block in blocks:
            exec(compile(block, "README.md", "exec"), namespace)
    finally:  # what README registers is not for the tests that follow
        for table, before in tables:
            table.clear()
            table.update(before)
    trainer, small = namespace["trainer"], namespace["small"]
    assert trainer.callback_metrics["val/error"] < 10  # 90 without learning
    assert trainer.callback_metrics["macs/left"] <= 30
    assert count_macs(small, namespace["x"]) <= 0.5 * count_macs(
        create_backbone("resnet20"), namespace["x"]
    )


def test_commands_and_configs_exist():
    for command in re.findall(r"(?:python cli\.py|ssl-lightning) ([a-z]\w*)", README):
        assert command in COMMANDS
    for config in re.findall(r"configs/[\w/]+\.yaml", README):
        assert (ROOT / config).is_file(), config
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for target in re.findall(r"^make (\w+)", README, re.MULTILINE):
        assert target in targets


def test_every_config_is_listed():
    def expand(text: str) -> list[str]:
        found = re.match(r"(.*?)\{([^}]*)\}(.*)", text)
        if not found:
            return [text]
        return [n for part in found[2].split(",") for n in expand(found[1] + part + found[3])]

    listed = {
        name
        for cell in re.findall(r"^\| `([^`]+)` \|", CONFIGS, re.MULTILINE)
        for name in expand(cell)
    }
    folder = ROOT / "configs"
    for path in folder.rglob("*.yaml"):
        assert str(path.relative_to(folder).with_suffix("")) in listed, path
