"""The help of every command: two screens, with an example that is accepted, and mostly run."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT
from ssl_lightning.cli import COMMANDS, benchmark, evaluate, examples, fit_help, main, zoo
from ssl_lightning.cli import parse as parse_room
from ssl_lightning.cli import training as training_room

SCREEN = 48
SUBCOMMANDS = {"benchmark": benchmark.COMMANDS, "evaluate": evaluate.COMMANDS, "zoo": zoo.ACTIONS}
ALL = [*COMMANDS, *(f"{name} {sub}" for name, subs in SUBCOMMANDS.items() for sub in subs)]


def words_of(command: str) -> list[str]:
    """The example as a shell splits it."""
    return shlex.split(examples.EXAMPLES[command].replace("\\\n", " "))


def help_of(command: str, capsys) -> str:
    with pytest.raises(SystemExit) as stop:
        main([*command.split(), "--help"])
    assert stop.value.code in (0, None)
    return capsys.readouterr().out


def test_every_command_has_an_example():
    assert set(examples.EXAMPLES) == set(ALL)


@pytest.mark.parametrize("columns", [100, 80])
@pytest.mark.parametrize("command", ALL)
def test_help_fits_two_screens_and_shows_the_example(command, columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = help_of(command, capsys).splitlines()
    assert len(lines) <= 2 * SCREEN
    first = examples.EXAMPLES[command].splitlines()[0]
    assert f"  ssl-lightning {first}" in lines
    example = lines.index("example:")
    assert max(map(len, lines[:example])) <= columns
    assert words_of(command)[: len(command.split())] == command.split() or command in (
        "zoo",
        "evaluate",
    )


def test_what_is_shown_can_be_copied_from_a_checkout(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["cli.py", "compact", "--help"])
    assert "  python cli.py compact runs/default" in help_of("compact", capsys)
    assert main(["--help"]) == 0
    assert "  python cli.py fit --data MNISTDataModule" in capsys.readouterr().out
    monkeypatch.setattr(sys, "prefix", str(tmp_path / ".venv"))  # its own, not activated
    assert "  .venv/bin/python cli.py compact runs/default" in help_of("compact", capsys)


def test_a_python_without_the_library_is_told_of_the_one_that_has_it(tmp_path):
    ran = subprocess.run(
        [sys.executable, "-I", "-S", str(ROOT / "cli.py"), "--help"], capture_output=True, text=True
    )
    assert ran.returncode == 1
    assert ran.stderr.startswith("cli.py: this Python has no ssl_lightning. `make environment`")


class ParsedError(BaseException):
    """The parser took all arguments."""


def is_accepted(arguments: list[str], monkeypatch) -> bool:
    """Whether a command gets as far as importing what the user names, before it runs."""

    def stop(_):
        raise ParsedError

    monkeypatch.setattr(parse_room, "import_modules", stop)
    monkeypatch.setattr(training_room, "import_modules", stop)
    try:
        main(arguments)
    except ParsedError:
        return True
    except SystemExit:
        return False
    return False


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A working folder with the repository's configs and the config of a run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    run = tmp_path / "runs/default"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.yaml").write_text("data: {class_path: MNISTDataModule}\n")
    (run / "checkpoints/last.ckpt").touch()
    return tmp_path


@pytest.mark.parametrize("command", ALL)
def test_examples_are_accepted(command, checkout, monkeypatch, capsys):
    assert is_accepted(words_of(command), monkeypatch), capsys.readouterr().err
    assert not is_accepted([*words_of(command), "--no.such.option=1"], monkeypatch)


SHORTENED = {
    "fit": "--trainer.limit_train_batches=40 --trainer.limit_val_batches=1 --trainer.max_epochs=2 "
    "--trainer.logger=false --trainer.enable_progress_bar=false",
    "validate": "--trainer.limit_val_batches=1",
    "test": "--trainer.limit_test_batches=1",
    "predict": "--trainer.limit_predict_batches=1",
    "compact": "",
    "benchmark": "--repeats=2 --threads=1",
    "report": "--figure=false",
    "sensitivity": "--images=100 --shares=[0.5]",
    "prune": "",
    "evaluate calibration": "--limit=200",
    "benchmark break-even": "--repeats=2 --engines=eager --sparsities=[0.5]",
    "benchmark training": "--steps=3 --batch_size=2",
    "zoo list": "",
    "zoo show": "",
}
"""Command -> what makes its example short. They are run in this order, each on what was there."""


@pytest.mark.filterwarnings("ignore:The number of training batches")
def test_examples_run_one_after_the_other(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SSL_DATA_DIR", str(tmp_path))  # nothing but what ships
    for command, more in SHORTENED.items():
        assert main([*words_of(command), *more.split()]) == 0, command
    capsys.readouterr()
    run = Path("runs/default")
    assert {"checkpoints", "compact", "config.yaml", "report.json"} <= {
        path.name for path in run.iterdir()
    }


def test_the_short_help_of_fit_names_options_that_there_are(capsys):
    from ssl_lightning.cli.training import ParsedOnly, carry_out

    parser = carry_out(
        "fit", ["--data=MNISTDataModule"], ParsedOnly
    )._parser("fit")  # fmt: skip
    known = {action.dest for action in parser._actions}
    for rows in fit_help.OPTIONS.values():
        for option, _, text in rows:
            name = option.removesuffix("+")
            assert name in known or name.rpartition(".")[0] in known, option
            if "(default: " in text and name in known and "SGD" not in text:
                said = text.rpartition("(default: ")[2].removesuffix(")")
                (action,) = [a for a in parser._actions if a.dest == name]
                assert said in (str(action.default), "32-true"), option


def test_the_whole_help_is_there(capsys):
    with pytest.raises(SystemExit):
        main(["fit", "--help-all"])
    out = capsys.readouterr().out
    assert len(out.splitlines()) > 1000
    assert "--trainer.reload_dataloaders_every_n_epochs" in out
