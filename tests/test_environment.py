"""tools/environment.py: one process at a time installs into a layer of dependencies."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "tools" / "environment.py"

OTHER = """
import importlib.util, sys, time
from pathlib import Path
spec = importlib.util.spec_from_file_location("environment", sys.argv[1])
environment = importlib.util.module_from_spec(spec)
spec.loader.exec_module(environment)
layer = Path(sys.argv[2])


def run(*command):
    layer.mkdir(exist_ok=True)
    with (layer / "calls").open("a") as file:
        file.write("begin\\n")
        file.flush()
        time.sleep(0.2)
        file.write("end\\n")


environment.run = run
with environment.locked(layer):
    environment.install_dependencies(layer)
"""


@pytest.fixture
def environment() -> Any:
    spec = importlib.util.spec_from_file_location("environment", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def start(layer: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", OTHER, str(SCRIPT), str(layer)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_of_several_processes_one_installs_and_the_others_reuse(tmp_path: Path) -> None:
    layer = tmp_path / "home" / "deps-x"
    layer.parent.mkdir()
    others = [start(layer) for _ in range(3)]
    texts = [other.communicate()[0] for other in others]
    assert [other.returncode for other in others] == [0, 0, 0]
    assert (layer / "calls").read_text().split() == ["begin", "end"] * 2  # venv, pip
    assert sum("reusing the dependencies" in text for text in texts) == 2


def test_what_fails_is_not_complete_and_lets_the_next_one_in(
    environment: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = tmp_path / "deps-x"

    def fail(*command: Any) -> None:
        layer.mkdir(exist_ok=True)
        sys.exit("environment: no network")

    monkeypatch.setattr(environment, "run", fail)
    with pytest.raises(SystemExit), environment.locked(layer):
        environment.install_dependencies(layer)
    assert not (layer / "complete").exists()
    with environment.locked(layer):
        monkeypatch.setattr(environment, "run", lambda *command: None)
        environment.install_dependencies(layer)
    assert (layer / "complete").exists()


def test_the_project_is_installed_anew_when_its_version_or_build_changes(
    environment: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, venv = tmp_path / "checkout", tmp_path / "checkout" / ".venv"
    for name in ("pyproject.toml", "setup.py", "src/ssl_lightning/__init__.py"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(environment.ROOT / name, root / name)
    (root / "src/ssl_lightning/kernels/native").mkdir(parents=True)
    calls: list[str] = []

    def run(*command: Any) -> None:
        calls.append(command[2])
        version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
        (venv / "lib" / version / "site-packages").mkdir(parents=True, exist_ok=True)

    monkeypatch.setattr(environment, "ROOT", root)
    monkeypatch.setattr(environment, "run", run)
    environment.install_project(tmp_path / "layer", venv)
    assert calls == ["venv", "pip"]
    environment.install_project(tmp_path / "layer", venv)
    assert calls == ["venv", "pip"]
    for name, line in (
        ("src/ssl_lightning/__init__.py", '__version__ = "9.9.9"\n'),
        ("setup.py", "# another\n"),
    ):
        (root / name).write_text((root / name).read_text() + line)
        calls.clear()
        environment.install_project(tmp_path / "layer", venv)
        assert calls == ["venv", "pip"], name
    (root / "src/ssl_lightning/__init__.py").write_text(
        (root / "src/ssl_lightning/__init__.py").read_text() + "# the code, not the version\n"
    )
    calls.clear()
    environment.install_project(tmp_path / "layer", venv)
    assert calls == []
