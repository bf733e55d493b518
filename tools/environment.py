"""Make the virtual environment that the Makefile runs in, or reuse the one that is there.

Two layers, so that a second checkout (or the next CI run) costs seconds instead of gigabytes:

* ``deps-<hash>`` under ``$SSL_ENV_HOME`` (default ``~/.cache/ssl-lightning``): every dependency
  of ``pyproject.toml``, installed once. The hash is that of their list and the Python version.
* ``.venv`` in the checkout: sees the layer below and holds only this project, in editable form.

Run with any Python >= 3.11; needs nothing but the standard library.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def requirements() -> list[str]:
    """All requirement lines of ``pyproject.toml``, those of every extra included."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    return sorted({*project["dependencies"], *(line for extra in extras for line in extra)})


def layer_path() -> Path:
    """Where the dependency layer of this checkout and this Python lies."""
    key = "\n".join([*requirements(), f"python {sys.version_info[0]}.{sys.version_info[1]}"])
    digest = hashlib.sha256(key.encode()).hexdigest()[:12]
    home = os.environ.get("SSL_ENV_HOME") or "~/.cache/ssl-lightning"
    return Path(home).expanduser() / f"deps-{digest}"


def run(*command: str | Path) -> None:
    """Run a command, echoing it; stop here with its exit status if it fails."""
    print("+", *command, flush=True)
    status = subprocess.run([str(part) for part in command], check=False).returncode
    if status:
        sys.exit(f"environment: `{command[0]}` failed with status {status}; see its output above.")


@contextmanager
def locked(layer: Path) -> Iterator[None]:
    """Let one process at a time look at a layer and install into it; the others wait.

    Otherwise one could clear what another is installing, which would then be marked complete. The
    system takes the lock from a process that ends, however that ends.
    """
    layer.parent.mkdir(parents=True, exist_ok=True)
    with layer.with_suffix(".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"environment: waiting for another process that installs {layer}", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def install_dependencies(layer: Path) -> None:
    """Create the dependency layer unless it is complete (its last step writes a marker)."""
    marker = layer / "complete"
    if marker.exists():
        print(f"environment: reusing the dependencies in {layer}")
        return
    print(f"environment: installing the dependencies into {layer} (once; several minutes)")
    run(sys.executable, "-m", "venv", "--clear", layer)
    run(layer / "bin" / "python", "-m", "pip", "install", "--quiet", *requirements())
    marker.write_text("\n".join(requirements()) + "\n")


def build_digest() -> str:
    """Hash of what the installation depends on beside ``pyproject.toml``.

    When the C sources or the way to build them change, the shared library must be built again; when
    the version does, so must the metadata.
    """
    package = ROOT / "src" / "ssl_lightning"
    sources = [ROOT / "setup.py", *sorted((package / "kernels" / "native").iterdir())]
    lines = (package / "__init__.py").read_text().splitlines()
    version = [line for line in lines if line.startswith("__version__")]
    content = [*(source.read_bytes() for source in sources), "\n".join(version).encode()]
    return hashlib.sha256(b"".join(content)).hexdigest()[:12]


def install_project(layer: Path, venv: Path) -> None:
    """Put this checkout, editable, on top of the dependency layer."""
    stamp = venv / "layer"
    wanted = f"{layer}\n{(ROOT / 'pyproject.toml').read_text()}\nbuild: {build_digest()}\n"
    if stamp.exists() and stamp.read_text() == wanted:
        print(f"environment: reusing {venv}")
        return
    print(f"environment: creating {venv} on top of {layer}")
    shutil.rmtree(venv, ignore_errors=True)
    run(sys.executable, "-m", "venv", "--without-pip", venv)
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    below = layer / "lib" / version / "site-packages"
    link = venv / "lib" / version / "site-packages" / "_dependencies.pth"
    link.write_text(f"import site; site.addsitedir({str(below)!r})\n")
    pip = [layer / "bin" / "python", "-m", "pip", "--python", venv / "bin" / "python"]
    run(*pip, "install", "--quiet", "--no-deps", "--no-build-isolation", "--editable", ROOT)
    stamp.write_text(wanted)


if __name__ == "__main__":
    if sys.version_info < (3, 11):
        sys.exit(f"environment: Python >= 3.11 is needed, this is {sys.version.split()[0]}.")
    dependency_layer = layer_path()
    with locked(dependency_layer):
        install_dependencies(dependency_layer)
        install_project(dependency_layer, ROOT / ".venv")
