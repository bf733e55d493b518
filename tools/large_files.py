"""Refuse files that are too large for the repository: those given, or all that git tracks."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path, PurePath

ROOT = Path(__file__).resolve().parent.parent
LIMITS = {"zoo/*/*.safetensors": 12_000_000, "*": 2_500_000}
"""Pattern of a path -> most bytes; the first that matches counts."""


def limit(name: str) -> int:
    """Return the most bytes of a file, by its path in the repository."""
    return next(most for pattern, most in LIMITS.items() if PurePath(name).match(pattern))


def too_large(names: Iterable[str], root: Path = ROOT) -> list[str]:
    """Return a sentence for each file over its limit."""
    sizes = {name: (root / name).stat().st_size for name in names if (root / name).is_file()}
    return [
        f"{name} has {size} bytes, at most {limit(name)} are kept in the repository. Make it "
        "smaller, or keep it elsewhere."
        for name, size in sizes.items()
        if size > limit(name)
    ]


def tracked(root: Path = ROOT) -> list[str]:
    """Return the files that git tracks."""
    command = ["git", "ls-files", "-z"]
    run = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    return [name for name in run.stdout.split("\0") if name]


if __name__ == "__main__":
    problems = too_large(sys.argv[1:] or tracked())
    print("\n".join(problems), end="\n" if problems else "")
    sys.exit(bool(problems))
