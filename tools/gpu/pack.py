"""Say what to send to a machine with a GPU, in which call, and write the files for it.

``python tools/gpu/pack.py make --data DIR`` writes below ``.gpu``, which git ignores: the wheels of
what such a machine lacks, and CIFAR-10 in parts. A call carries the working tree and what is
printed; together they are under 64 MiB. ``python tools/gpu/pack.py join`` puts the parts together
there. Ignored files that one call leaves on the machine must still be there in the next.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDER = ".gpu"
PACKAGES = ("docstring-parser", "jsonargparse", "typeshed-client")
"""What the script needs and such a machine lacks; pure Python, imported from the wheels."""
FILES = ("cifar10-train.npz", "cifar10-test.npz")
LIMIT = 64 * 2**20  # bytes of a call
SPARE = 2**20
PART = 50_000_000  # bytes, at most
MANIFEST = "manifest.json"
SPARSE = "--no-cone '/*' '!/zoo/' '/zoo/resnet20*'"
Piece = tuple[str, int, int]  # file, first byte, bytes


def main(arguments: list[str] | None = None) -> int:
    """Carry out the command; return 1 if it could not be done."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("make", help="write wheels and parts, say what to send")
    make.add_argument("--data", type=Path, required=True, help=f"holds {' and '.join(FILES)}")
    commands.add_parser("join", help="put the parts together")
    options = parser.parse_args(arguments)
    try:
        if options.command == "join":
            print(join(ROOT) or "There are no parts.")
        else:
            require(options.data)
            download(ROOT / FOLDER / "wheels")
            print("\n".join(say(ROOT, make_parts(ROOT, options.data))))
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def wheels(root: Path) -> list[Path]:
    """Return the carried wheels; zips of pure Python, to be put on ``sys.path``."""
    return sorted((root / FOLDER / "wheels").glob("*.whl"))


def download(folder: Path) -> None:
    """Fetch the wheels of :data:`PACKAGES`, in the versions of this environment."""
    shutil.rmtree(folder, ignore_errors=True)
    wanted = [f"{name}=={version(name)}" for name in PACKAGES]
    how = ["--no-deps", "--only-binary=:all:", "--python-version", "3.12", "--dest", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", "download", "-q", *how, *wanted], check=True)


# Parts


def tree_bytes(root: Path) -> int:
    """Return the size of the files that git tracks or does not ignore."""
    command = ["git", "-C", str(root), "ls-files", "-z", "-co", "--exclude-standard"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    paths = {root / name for name in listed.split("\0") if name}
    return sum(path.lstat().st_size for path in paths if path.is_file())


def folder_bytes(folder: Path) -> int:
    """Return the size of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def plan_calls(sizes: dict[str, int], space: int, part: int) -> list[list[Piece]]:
    """Return which bytes of which file each call carries: as few calls as can be.

    Args:
        sizes: file -> bytes.
        space: bytes of a call that are free for parts.
        part: bytes of a part, at most.

    Raises:
        ValueError: if there is no space.
    """
    if space <= 0:
        raise ValueError(
            f"No space for data: the working tree, wheels and results take {-space} bytes more "
            "than a call holds. Omit zoo/ from a sparse checkout, or old results from .gpu/results."
        )
    calls: list[list[Piece]] = [[]]
    free = space
    for name, size in sizes.items():
        start = 0
        while start < size:
            if free == 0:
                calls.append([])
                free = space
            length = min(size - start, free, part)
            calls[-1].append((name, start, length))
            start, free = start + length, free - length
    return calls


def require(data: Path) -> None:
    """Make sure that the data is there.

    Raises:
        ValueError: if a file is missing.
    """
    missing = [name for name in FILES if not (data / name).is_file()]
    if missing:
        raise ValueError(f"No {' and no '.join(missing)} in {data}. Give another --data.")


def make_parts(root: Path, data: Path) -> list[list[Piece]]:
    """Write the parts of each call into a folder of its own, with what all of them make up.

    Raises:
        ValueError: if there is no space.
    """
    base = root / FOLDER
    used = tree_bytes(root) + folder_bytes(base / "wheels") + folder_bytes(base / "results")
    calls = plan_calls({n: (data / n).stat().st_size for n in FILES}, LIMIT - SPARE - used, PART)
    for old in base.glob("call*"):
        shutil.rmtree(old)
    whole: dict[str, Any] = {name: {"parts": []} for name in FILES}
    for i, pieces in enumerate(calls, start=1):
        folder = base / f"call{i}"
        folder.mkdir(parents=True)
        for name, start, length in pieces:
            part = f"{name}.{len(whole[name]['parts'])}"
            with (data / name).open("rb") as file:
                file.seek(start)
                (folder / part).write_bytes(file.read(length))
            whole[name]["parts"].append(f"call{i}/{part}")
    for name, content in whole.items():
        content["sha256"] = digest(data / name)
    for i in range(1, len(calls) + 1):
        (base / f"call{i}" / MANIFEST).write_text(json.dumps(whole, indent=1) + "\n")
    return calls


def say(root: Path, calls: list[list[Piece]]) -> list[str]:
    """Return, per call, what to send and which command to run."""
    base, lines = root / FOLDER, []
    common = [base / "wheels", *([base / "results"] if (base / "results").is_dir() else [])]
    fixed = tree_bytes(root) + sum(map(folder_bytes, common))
    for i in range(1, len(calls) + 1):
        folder = base / f"call{i}"
        size = fixed + folder_bytes(folder)
        if size > LIMIT:
            raise ValueError(f"Call {i} would carry {size} bytes, at most {LIMIT}. Omit some.")
        sent = ", ".join(path.relative_to(root).as_posix() for path in (*common, folder))
        command = f"python tools/gpu/pack.py join{'' if i == len(calls) else ' || true'}"
        if i == len(calls):
            command += " && python tools/gpu/run.py cifar --minutes 9 --out OUT"
        lines += [f"call {i}: the working tree, {sent}: {size / 2**20:.1f} MiB", f"  {command}"]
    if len(calls) > 2:
        lines.append(f"Fewer calls do with a sparse checkout: git sparse-checkout set {SPARSE}")
    return [*lines, "Put the files of OUT into .gpu/results before the next time."]


def join(root: Path) -> Path | None:
    """Put the parts together on the machine; return the folder of the data, None without parts.

    Raises:
        ValueError: if a part is missing, or damaged.
    """
    base = root / FOLDER
    manifests = sorted(base.glob(f"call*/{MANIFEST}"))
    if not manifests:
        return None
    texts = {path.read_text(encoding="utf-8") for path in manifests}
    if len(texts) > 1:
        raise ValueError("The parts of CIFAR-10 are of different packings: send all calls again.")
    target = base / "data"
    target.mkdir(exist_ok=True)
    for name, content in json.loads(texts.pop()).items():
        if not (target / name).is_file():
            join_file(base, target / name, content)
    return target


def join_file(base: Path, target: Path, content: dict[str, Any]) -> None:
    """Put one file together, at once or not at all."""
    for part in content["parts"]:
        if not (base / part).is_file():
            call = part.partition("/")[0].removeprefix("call")
            raise ValueError(f"The part {FOLDER}/{part} of CIFAR-10 is missing: send call {call}.")
    unfinished = target.with_name(f".{target.name}.part")
    try:
        with unfinished.open("wb") as file:
            for part in content["parts"]:
                file.write((base / part).read_bytes())
        if digest(unfinished) != content["sha256"]:
            raise ValueError(f"The parts of {target.name} are damaged: send all calls again.")
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)


def digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    sys.exit(main())
