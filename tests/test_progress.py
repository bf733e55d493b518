"""Progress of long work, on a clock that the test turns."""

from __future__ import annotations

import io
import re

import pytest

from ssl_lightning import cli, progress
from ssl_lightning.progress import Display, shown, steps, track

CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f]")


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


def run(stream, seconds, number=10, bars=True, what="measuring"):
    """Work of so many pieces of so many seconds."""
    clock = Clock()
    with shown(Display(stream, bars, clock)):
        for _ in track(range(number), what):
            clock.now += seconds
    return stream.getvalue()


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_what_is_short_is_silent(stream):
    assert run(stream(), seconds=0.49) == ""


def test_a_log_gets_plain_lines_with_the_time_left():
    lines = run(io.StringIO(), seconds=10).splitlines()
    assert lines == [
        "measuring: 10 %, 10 s so far, about 1 min 30 s left",
        "measuring: 30 %, 30 s so far, about 1 min 10 s left",
        "measuring: 50 %, 50 s so far, about 50 s left",
        "measuring: 70 %, 1 min 10 s so far, about 30 s left",
        "measuring: 90 %, 1 min 30 s so far, about 10 s left",
    ]


def test_lines_are_at_least_fifteen_seconds_apart():
    lines = run(io.StringIO(), seconds=1, number=100).splitlines()
    said = [int(line.split(": ")[1].split(" %")[0]) for line in lines]
    assert said == [5, 20, 35, 50, 65, 80, 95]


@pytest.mark.parametrize(("bars", "term"), [(False, "xterm"), (True, "dumb")])
def test_terminals_without_bars_get_lines(bars, term, monkeypatch):
    monkeypatch.setenv("TERM", term)
    text = run(Terminal(), seconds=10, bars=bars)
    assert len(text.splitlines()) == 5
    assert not CONTROL.search(text)


def test_a_terminal_gets_a_bar_that_is_removed_at_the_end(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    text = run(Terminal(), seconds=10)
    assert "measuring" in text
    assert "1 min 10 s so far, about 30 s left" in text
    assert text.endswith("\x1b[?25h\r\x1b[1A\x1b[2K")  # the cursor is back, the line erased


def test_parts_inside_of_parts_count_as_shares_of_them():
    stream, clock = io.StringIO(), Clock()
    with shown(Display(stream, clock=clock)):
        for network in track(["dense", "compact"], "benchmark"):
            with steps(network, 4) as part:
                for _ in range(4):
                    clock.now += 20
                    part.advance()
    shares = [int(line.split(": ")[1].split(" %")[0]) for line in stream.getvalue().splitlines()]
    assert shares == sorted(shares)
    assert stream.getvalue().startswith(
        "benchmark, dense: 12 %, 20 s so far, about 2 min 20 s left\n"
    )
    assert "benchmark, compact: 62 %, 1 min 40 s so far, about 1 min left\n" in stream.getvalue()


def test_a_number_that_becomes_known_later():
    stream, clock = io.StringIO(), Clock()
    with shown(Display(stream, clock=clock)), steps("sensitivity", 1) as part:
        clock.now += 30
        part.reach(1, 4)
    assert stream.getvalue() == "sensitivity: 25 %, 30 s so far, about 1 min 30 s left\n"


def test_nothing_is_left_of_parts_that_were_broken_off():
    stream, clock = io.StringIO(), Clock()
    display = Display(stream, clock=clock)
    with shown(display):
        for _ in track(range(10), "first"):
            break

        def broken():
            with steps("second", 2):
                for _ in track(range(10), "inner"):
                    raise KeyError

        with pytest.raises(KeyError):
            broken()
        assert display.parts == []
        clock.now += 100
        for _ in track(range(2), "third"):
            clock.now += 30
    assert [line.split(":")[0] for line in stream.getvalue().splitlines()] == ["third", "third"]


def test_nothing_is_shown_unless_asked_for(capsys, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress.time, "monotonic", clock)
    for _ in track(range(3), "measuring"):
        clock.now += 100
    with steps("measuring", 3) as part:
        part.advance()
    assert not progress.is_shown()
    assert capsys.readouterr() == ("", "")


def test_items_without_a_length_are_passed_through():
    with shown(Display(io.StringIO())):
        assert list(track(iter([]), "none")) == []
        assert list(track((x for x in "ab"), "unknown")) == ["a", "b"]
        assert list(track((x for x in "ab"), "known", total=2)) == ["a", "b"]


ENTRIES = "zoo:lenet_mnist_filter_channel --dense zoo:lenet_mnist_dense --data mnist"
COMMANDS = {
    "sensitivity zoo:lenet_mnist_dense --data mnist --images 50 --shares [0.5]": "sensitivity",
    f"evaluate calibration {ENTRIES} --limit 500 --split test": "evaluate calibration",
    "evaluate transfer zoo:resnet20_cifar10_channel --to mnist --num_train 40 --limit 40 "
    "--seeds [0,1]": "evaluate transfer",
    "zoo verify lenet_mnist_filter_channel": "verifying lenet_mnist_filter_channel",
    "export zoo:lenet_mnist_filter_channel --format torch_export": "export",
    "benchmark break-even --repeats 2 --engines eager --sparsities [0.5]": "benchmark",
    "benchmark training --backbone lenet --steps 3 --batch_size 2 --kinds filter": "training steps",
    "benchmark int8 zoo:lenet_mnist_filter_channel --data mnist --repeats 2 --images 20 "
    "--engines openvino": "precisions",
}
"""Command -> how the lines begin that it writes into a log."""


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_say_how_far_they_are_and_never_less_than_before(
    command, tmp_path, monkeypatch, capsys
):
    pytest.importorskip("nncf" if "int8" in command else "torch")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SSL_DATA_DIR", str(tmp_path))
    stream, now = io.StringIO(), [0.0]

    def clock():
        now[0] += 16
        return now[0]

    monkeypatch.setattr(cli, "shown", lambda bars: shown(Display(stream, bars, clock)))
    assert cli.main(command.split()) in (0, 1)  # 1: a latency that differs
    lines = stream.getvalue().splitlines()
    assert len(lines) >= 2
    assert all(line.startswith(COMMANDS[command]) for line in lines)
    shares = [int(line.split(": ")[1].split(" %")[0]) for line in lines]
    assert shares == sorted(shares)
    assert shares[-1] > 60
    assert not CONTROL.search(stream.getvalue())
