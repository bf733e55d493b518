"""Runs that are killed and disks that are full: a readable checkpoint is left, and resumed right.

``SSL_KILLS=20`` kills a run 20 times and fills 10 disks instead of a few.
"""

from __future__ import annotations

import os
import random
import resource
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback

from conftest import ROOT
from killed_run import EPOCHS, STEPS, train
from ssl_lightning.checkpoints import read_checkpoint
from ssl_lightning.files import DiskFullError, FolderLock

KILLS = int(os.environ.get("SSL_KILLS", "2"))
FILLED = max(2, KILLS // 2)
FAR = Path("/dev/shm")
"""Another file system than that of the run, for TMPDIR."""

pytestmark = [
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
    pytest.mark.filterwarnings("ignore:Trying to infer the `batch_size`"),
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before"),
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Weights after a run that nothing interrupted, and the size of its checkpoints."""
    folder = tmp_path_factory.mktemp("whole")
    module = train(folder)
    return module.backbone.state_dict(), (folder / "last.ckpt").stat().st_size


def start(folder: Path, far: Path) -> subprocess.Popen:
    given = os.environ.get("PYTHONPATH")
    paths = os.pathsep.join(filter(None, [given, str(ROOT / "src"), str(ROOT / "tests")]))
    return subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / "killed_run.py"), str(folder)],
        env={**os.environ, "PYTHONPATH": paths, "TMPDIR": str(far), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def kill_at(process: subprocess.Popen, wait_for: int, delay: float) -> int:
    """Kill a process a while after it told so many steps; return the number of the last step."""
    step = -1
    for told, line in enumerate(process.stdout):
        step = int(line)
        if told == wait_for:
            time.sleep(delay)
            process.kill()
            break
    process.wait()
    process.stdout.close()
    return step


def check_readable(folder: Path) -> int:
    """Make sure that every checkpoint in a folder can be read; return the step of the last."""
    for path in folder.glob("*.ckpt"):
        if not path.name.startswith(".tmp-"):
            read_checkpoint(path)
    last = folder / "last.ckpt"
    return read_checkpoint(last)["global_step"] if last.exists() else 0


def check_same(state, whole):
    assert state.keys() == whole.keys()
    for name, value in whole.items():
        assert torch.equal(state[name], value), name


@pytest.mark.timeout(1200)
@pytest.mark.skipif(not FAR.is_dir(), reason="no second file system")
def test_a_run_killed_at_any_moment_leaves_a_checkpoint_and_is_resumed_to_the_same(whole, tmp_path):
    rng, killed = random.Random(0), 0
    far = FAR / f"ssl-{os.getpid()}"
    far.mkdir()
    try:
        while killed < KILLS:
            folder = tmp_path / str(killed)
            folder.mkdir()
            done = 0
            for _ in range(min(4, KILLS - killed)):  # then with a new folder
                step = kill_at(start(folder, far), rng.randint(1, 4), rng.uniform(0, 0.08))
                assert done <= step < EPOCHS * STEPS
                killed += 1
                reached = check_readable(folder)
                assert reached >= max(done, step - 1)  # the step before was stored
                done = reached
            with start(folder, far) as process:
                assert process.wait() == 0
            check_same(torch.load(folder / "weights.pt", weights_only=True), whole[0])
            left = sorted(path.name for path in folder.iterdir())
            assert left == ["last.ckpt", f"step={EPOCHS * STEPS}.ckpt", "weights.pt"]
    finally:
        shutil.rmtree(far)


class Keep(Callback):
    """Copies the checkpoint that was written at each step."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_start(self, trainer, *_) -> None:
        last = self.folder / "last.ckpt"
        if last.exists():
            shutil.copy(last, self.folder / f"kept-{trainer.global_step}.ckpt")


def test_a_run_resumed_after_an_epochs_last_batch_can_be_resumed_again(whole, tmp_path):
    source = tmp_path
    for start_from in (None, STEPS, STEPS + 2):
        folder = tmp_path / str(start_from)
        folder.mkdir()
        if start_from is not None:
            shutil.copy(source / f"kept-{start_from}.ckpt", folder / "last.ckpt")
        check_same(train(folder, [Keep(folder)]).backbone.state_dict(), whole[0])
        source = folder


class Limit(Callback):
    """Lets no file grow further than so many bytes from a step on."""

    def __init__(self, step: int, most: int) -> None:
        self.step, self.most = step, most

    def on_train_batch_start(self, trainer, *_) -> None:
        if trainer.global_step == self.step:
            hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.most, hard))


@contextmanager
def limited():
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def fails_in_a_sentence(folder: Path, callbacks=()) -> None:
    with pytest.raises(DiskFullError, match=r"Cannot write .*: no space") as caught:
        train(folder, callbacks)
    assert "\n" not in str(caught.value)
    assert not [path for path in folder.iterdir() if path.name.startswith(".tmp-")]


@pytest.mark.parametrize("number", range(FILLED))
def test_a_limit_of_any_size_leaves_the_checkpoint_before(whole, tmp_path, number):
    weights, size = whole
    step = 3 + 2 * number
    with limited():
        fails_in_a_sentence(tmp_path, [Limit(step, int(size * number / FILLED))])
    assert check_readable(tmp_path) == step
    check_same(train(tmp_path).backbone.state_dict(), weights)


@pytest.mark.parametrize("number", range(FILLED))
def test_a_full_disk_of_any_size_leaves_the_checkpoint_before(whole, tmp_path, number):
    weights, size = whole
    room = int(size * (2.05 + 0.9 * number / FILLED))  # one checkpoint, and less than two more
    mounted = ["mount", "-t", "tmpfs", "-o", f"size={room}", "tmpfs", str(tmp_path)]
    if subprocess.run(mounted, capture_output=True, check=False).returncode != 0:
        pytest.skip("no file system may be mounted here")
    try:
        fails_in_a_sentence(tmp_path)
        assert check_readable(tmp_path) >= 0
        assert list(tmp_path.glob("*.ckpt"))
        grown = ["mount", "-o", f"remount,size={5 * size}", str(tmp_path)]
        subprocess.run(grown, check=True)
        check_same(train(tmp_path).backbone.state_dict(), weights)
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


FORKED = """
import os, sys, time
from pathlib import Path
from ssl_lightning.files import FolderLock

lock = FolderLock(Path(sys.argv[1]))
child = os.fork()
if not child:
    os.write(1, f"{os.getpid()}".encode())
    os.close(1)
    time.sleep(60)
os.close(1)
time.sleep(60)
"""


def test_a_lock_ends_with_its_process_though_a_forked_child_lives(tmp_path):
    command = [sys.executable, "-c", FORKED, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        child = int(process.stdout.read())
        with pytest.raises(ValueError, match=f"process {process.pid} on"):
            FolderLock(tmp_path)
        process.kill()
    FolderLock(tmp_path).release()
    os.kill(child, 9)
