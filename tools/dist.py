"""Build sdist and wheel of the last commit into dist/, twice, and compare them byte for byte.

The two builds lie in different folders and have different umasks. The time that the archives name
is that of the commit, unless SOURCE_DATE_EPOCH is set. What is not committed is not built. Without
a C compiler (``CC=/bin/false make dist``) the wheel suits any machine, where kernels run in torch.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def git(*arguments: str) -> str:
    """Return what git says about this checkout; end here if it says nothing good."""
    run = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    if run.returncode:
        sys.exit(
            f"dist: `git {arguments[0]}` failed: {run.stderr.strip()}. This builds a commit of a "
            "git checkout; elsewhere use `python -m build`."
        )
    return run.stdout.strip()


def build(source: Path, output: Path, epoch: str, umask: int) -> dict[str, Path]:
    """Build an sdist, and a wheel from it; return the files by name."""
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", output, source]
    variables = {**os.environ, "SOURCE_DATE_EPOCH": epoch}
    status = subprocess.run(
        command, env=variables, umask=umask, check=False, stdout=sys.stderr
    ).returncode
    if status:
        sys.exit(f"dist: the build failed with status {status}; see its output above.")
    return {path.name: path for path in sorted(output.iterdir())}


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main() -> None:
    """Build twice, compare, and put the files into ``dist/``."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH") or git("log", "-1", "--format=%ct")
    if changed := git("status", "--short"):
        print(f"dist: building the last commit, without these changes:\n{changed}")
    with tempfile.TemporaryDirectory() as folder:
        packed = Path(folder, "commit.tar")
        git("archive", f"--output={packed}", "HEAD")
        builds = []
        for name, umask in (("first", 0o022), ("the/second", 0o077)):
            source, output = Path(folder, name), Path(folder, f"{name}-built")
            with tarfile.open(packed) as archive:
                archive.extractall(source, filter="data")
            builds.append(build(source, output, epoch, umask))
        first, second = ({name: digest(path) for name, path in files.items()} for files in builds)
        if first != second:
            differing = sorted({name for name, _ in first.items() ^ second.items()})
            sys.exit(
                f"dist: two builds of the same commit differ in {' and '.join(differing)}. Nothing "
                "was written to dist/; look for times, paths or modes in what was built."
            )
        (ROOT / "dist").mkdir(exist_ok=True)
        for name, path in builds[0].items():
            shutil.copyfile(path, ROOT / "dist" / name)
            print(f"{first[name]}  dist/{name}  ({path.stat().st_size} bytes)")
    print(f"Two builds were equal, SOURCE_DATE_EPOCH={epoch}.")


if __name__ == "__main__":
    main()
