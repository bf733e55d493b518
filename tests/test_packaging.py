"""What is built: an sdist of what git tracks, a wheel of what is promised, byte for byte again."""

from __future__ import annotations

import email
import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

from conftest import ROOT

EPOCH = 1_764_000_000
LEFTOVERS = [
    ".pytest_cache/README.md",
    ".venv/bin/python",
    "build/lib/ssl_lightning/gone.py",
    f"build/lib.{sysconfig.get_platform()}-{sys.implementation.cache_tag}/ssl_lightning/gone.py",
    "docs/_build/index.html",
    "docs/generated/api.md",
    "lightning_logs/version_0/metrics.csv",
    "runs/quickstart/checkpoints/last.ckpt",
    "src/ssl_lightning/kernels/_column_sparse.abi3.so",
    "src/ssl_lightning/kernels/__pycache__/layer.cpython-311.pyc",
    "tests/.hypothesis/unicode_data/codec.json",
    "tests/__pycache__/conftest.cpython-311-pytest.pyc",
    "wandb/latest-run/run.wandb",
]
"""What lies about in a checkout that was worked in, and git ignores."""

CC = os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc"
COMPILER = shutil.which(CC.split()[0]) is not None and sys.platform == "linux"
NATIVE = "ssl_lightning/kernels/native/"
DEPENDENCIES = Path(torch.__file__).parent.parent

CONVOLVE = """
import logging, sys, torch
from ssl_lightning import ColumnSparseConv2d
from ssl_lightning.kernels import compiled
logging.basicConfig(stream=sys.stdout, format="%(message)s")
conv = torch.nn.Conv2d(4, 6, 3)
conv.weight.data[:, :2] = 0
x = torch.randn(1, 4, 9, 9)
torch.testing.assert_close(ColumnSparseConv2d.from_conv(conv)(x), conv(x), atol=1e-5, rtol=1e-5)
print("compiled", compiled.is_available())
"""


def tracked() -> list[str]:
    """Return the files that git tracks, and new ones that it does not ignore."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    names = [name for name in found.stdout.splitlines() if (ROOT / name).is_file()]
    if not names:
        pytest.skip("not a git checkout")
    return names


def checkout(target: Path, leftovers: bool = False) -> Path:
    for name in tracked():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, target / name)  # with the time of now and the umask's mode
    for name in LEFTOVERS if leftovers else ():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_text("left over")
    return target


def build(source: Path, *options: str, umask: int = 0o022, **environment: str) -> dict[str, Path]:
    """Build as `make dist` does; return the files that came out, by their names."""
    command = [sys.executable, "-m", "build", "--no-isolation", *options, str(source)]
    variables = {**os.environ, "SOURCE_DATE_EPOCH": str(EPOCH), **environment}
    run = subprocess.run(
        command, capture_output=True, text=True, env=variables, check=False, umask=umask
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return {path.name: path for path in sorted((source / "dist").iterdir())}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An sdist and a wheel of a checkout that was worked in."""
    return build(checkout(tmp_path_factory.mktemp("worked_in"), leftovers=True))


@pytest.fixture(scope="module")
def sdist(built: dict[str, Path]) -> Path:
    return next(path for name, path in built.items() if name.endswith(".tar.gz"))


@pytest.fixture(scope="module")
def wheel(built: dict[str, Path]) -> Path:
    return next(path for name, path in built.items() if name.endswith(".whl"))


def version() -> str:
    (found,) = re.findall(
        r'^__version__ = "(.+)"$', (ROOT / "src/ssl_lightning/__init__.py").read_text(), re.M
    )
    return found


def test_the_sdist_is_what_git_tracks(sdist: Path) -> None:
    assert sdist.name == f"ssl_lightning-{version()}.tar.gz"
    with tarfile.open(sdist) as archive:
        members = [member for member in archive.getmembers() if member.isfile()]
    names = {member.name.split("/", 1)[1] for member in members}
    generated = {"PKG-INFO", "setup.cfg"} | {n for n in names if ".egg-info/" in n}
    assert names - generated == set(tracked())
    assert {member.mtime for member in members} == {EPOCH}
    assert {(m.uid, m.gid, m.uname, m.gname) for m in members} == {(0, 0, "", "")}


def test_the_wheel_is_what_it_promises(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    inside = {name.removeprefix("src/") for name in tracked() if name.startswith("src/")}
    wanted = {name for name in inside if not name.startswith(NATIVE)}
    for name in ("py.typed", "data/bundled/mnist-train.npz", "publishing/page.md.jinja"):
        assert f"ssl_lightning/{name}" in wanted
    for entry in sorted((ROOT / "zoo").glob("*/card.json")):
        files = [path for path in entry.parent.iterdir() if path.is_file()]
        if sum(path.stat().st_size for path in files) <= 2_000_000:
            wanted |= {f"ssl_lightning/zoo/models/{p.parent.name}/{p.name}" for p in files}
    assert "ssl_lightning/zoo/models/lenet_mnist_dense/model.safetensors" in wanted
    library = {"ssl_lightning/kernels/_column_sparse.abi3.so"} if COMPILER else set()
    assert {name for name in names if ".dist-info/" not in name} == wanted | library
    python, abi, _ = wheel.stem.split("-")[2:]
    assert (python, abi) == ("py3", "none")  # the library has no interface of Python


def test_no_place_of_this_machine_is_in_what_is_built(sdist: Path, wheel: Path) -> None:
    own = {Path(sys.prefix), Path(sys.base_prefix)} - {Path("/usr"), Path("/usr/local")}
    places = {f"{path}/".encode() for path in {sdist.parent.parent, ROOT, Path.home(), *own}}
    places.add(b"/" + b"build-via-sdist")  # where `build` makes the wheel
    contents = {}
    with zipfile.ZipFile(wheel) as archive:
        contents |= {f"wheel: {name}": archive.read(name) for name in archive.namelist()}
    with tarfile.open(sdist) as files:
        for member in filter(tarfile.TarInfo.isfile, files.getmembers()):
            contents[f"sdist: {member.name}"] = files.extractfile(member).read()
    found = {name for name, data in contents.items() if any(place in data for place in places)}
    assert not found


def digests(built: dict[str, Path]) -> dict[str, str]:
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in built.items()}


def test_another_build_is_the_same_byte_for_byte(built: dict[str, Path], tmp_path: Path) -> None:
    again = build(checkout(tmp_path / "a" / "folder" / "elsewhere"), umask=0o077)
    assert digests(again) == digests(built)


def python_of(venv: Path) -> Path:
    """Make an environment that sees the dependencies and nothing else."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    (packages,) = venv.glob("lib/python*/site-packages")
    (packages / "_dependencies.pth").write_text(f"{DEPENDENCIES}\n")
    return venv / "bin" / "python"


def without(*variables: str) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in variables}


def install(python: Path, what: Path, **environment: str) -> None:
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    run = subprocess.run(
        [sys.executable, "-m", "pip", "--python", python, "install", *options, what],
        capture_output=True,
        text=True,
        env={**without("PYTHONPATH", "CC"), **environment},
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr


def said(python: Path, *arguments: str) -> str:
    """Return what a command of the installed package says, far from the checkout."""
    run = subprocess.run(
        [python, *arguments],
        capture_output=True,
        text=True,
        env=without("PYTHONPATH"),
        cwd=python.parent,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def check_commands(python: Path) -> None:
    command = str(python.parent / "ssl-lightning")
    assert said(python, command, "--version") == f"ssl-lightning {version()}\n"
    assert "lenet_mnist_filter_channel" in said(python, command, "zoo", "list")
    where = said(python, "-c", "import ssl_lightning; print(ssl_lightning.__file__)")
    assert Path(where).is_relative_to(python.parent.parent)
    metadata = "from importlib.metadata import version; print(version('ssl-lightning'))"
    assert said(python, "-c", metadata).strip() == version()


@pytest.mark.skipif(not COMPILER, reason="no C compiler")
def test_the_wheel_is_installed_with_the_compiled_kernel(wheel: Path, tmp_path: Path) -> None:
    python = python_of(tmp_path / "venv")
    install(python, wheel)
    check_commands(python)
    assert said(python, "-c", CONVOLVE) == "compiled True\n"


def test_a_checkout_is_installed_without_a_compiler(tmp_path: Path) -> None:
    source, python = checkout(tmp_path / "source", leftovers=True), python_of(tmp_path / "venv")
    install(python, source, PATH=str(python.parent))
    check_commands(python)
    output = said(python, "-c", CONVOLVE)
    assert "the compiled convolution kernel is not there (it was not built)" in output
    assert "Install a C compiler" in output
    assert output.endswith("compiled False\n")
    (package,) = (tmp_path / "venv").glob("lib/python*/site-packages/ssl_lightning")
    assert not (package / "gone.py").exists()  # of a build before a file was removed


def test_a_wheel_built_with_a_broken_compiler_suits_any_machine(tmp_path: Path) -> None:
    built = build(checkout(tmp_path / "source"), "--wheel", CC="/bin/false")
    (name,) = built
    assert name == f"ssl_lightning-{version()}-py3-none-any.whl"
    with zipfile.ZipFile(built[name]) as archive:
        assert not [name for name in archive.namelist() if name.endswith(".so")]
        (tags,) = [name for name in archive.namelist() if name.endswith(".dist-info/WHEEL")]
        message = email.message_from_bytes(archive.read(tags))
    assert (message["Root-Is-Purelib"], message["Tag"]) == ("true", "py3-none-any")
