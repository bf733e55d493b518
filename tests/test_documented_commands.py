"""Every command that README or the documentation shows is accepted by the parser, up to running."""

from __future__ import annotations

import re
import shlex

import pytest

from conftest import ROOT
from test_command_help import checkout, is_accepted  # noqa: F401 - a fixture
from test_site import PAGES

COMMAND = re.compile(r"^(?:\$ )?(?:ssl-lightning|python cli\.py) (.+)$")
PLACES = {  # what a page leaves to the reader -> something of that sort
    "CONFIG": "configs/quickstart.yaml",
    "NETWORK": "zoo:lenet_mnist_dense",
    "USER/REPOSITORY": "somebody/networks",
    "my_package.MyNetwork": "torch.nn.Identity",
}


def commands_of(text: str) -> list[str]:
    """The commands in the code blocks of a page, continued lines joined, without remarks."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    shell = [block for language, block in blocks if language in ("", "console", "sh")]
    lines = "\n".join(shell).replace("\\\n", " ").splitlines()
    return [found[1] for line in lines if (found := COMMAND.match(line))]


SHOWN = sorted({command for page in PAGES for command in commands_of(page.read_text())})


def words_of(command: str) -> list[str]:
    """A command as a shell splits it, with something in the place of what the reader chooses."""
    command = re.sub(r" \[\w+ \.\.\.\]", "", command)
    for place, something in PLACES.items():
        command = re.sub(rf"(?<![\w/]){re.escape(place)}(?!\w)", something, command)
    return shlex.split(command, comments=True)


def test_there_are_commands():
    assert len(SHOWN) > 40


@pytest.mark.parametrize("command", [c for c in SHOWN if " ... " not in c])
def test_a_command_of_the_documentation_is_accepted(command, checkout, monkeypatch, capsys):  # noqa: F811
    monkeypatch.setenv("HOSTNAME", "here")
    for run in ("NAME", "mine", "quickstart", "dense", "half/result"):
        (checkout / "runs" / run / "checkpoints").mkdir(parents=True, exist_ok=True)
        (checkout / "runs" / run / "config.yaml").write_text(
            "data: {class_path: MNISTDataModule}\n"
        )
        (checkout / "runs" / run / "checkpoints/last.ckpt").touch()
        (checkout / "runs" / run / "checkpoints/epoch-7.ckpt").touch()
    (checkout / "zoo").symlink_to(ROOT / "zoo")
    assert is_accepted(words_of(command), monkeypatch), capsys.readouterr().err
