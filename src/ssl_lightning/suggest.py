"""Words for people: errors that name the culprit and the nearest thing that exists, tables."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
SHORTEST_PART = 4
"""Characters of a name that may be meant as a part of another."""
MOST_FOLDERS = 1000
"""In which files are looked for."""


def nearest(name: object, known: Iterable[str]) -> str:
    """Return a sentence with the nearest matches of ``name``, or all names if none is near.

    Example:
        >>> nearest("lenett", ["lenet", "mlp"])
        'Did you mean lenet?'
        >>> nearest("x", ["lenet", "mlp"])
        'Known: lenet, mlp.'

        >>> nearest("lenet", ["lenet_mnist_filter_channel_small", "mlp_mnist"])
        'Did you mean lenet_mnist_filter_channel_small?'
        >>> nearest("mnist", ["CIFAR10DataModule", "MNISTDataModule"])
        'Did you mean MNISTDataModule?'

    Of dotted names, the last parts are compared where the others are the same:

        >>> nearest("model.penaltys", ["model.penalties", "model.metrics", "model.loss"])
        'Did you mean model.penalties?'
    """
    known = sorted(known)
    prefix, dot, last = str(name).rpartition(".")
    inside = [n.removeprefix(prefix + dot) for n in known if n.startswith(prefix + dot)]
    close = [prefix + dot + n for n in difflib.get_close_matches(last, inside, n=3)]
    close = close or difflib.get_close_matches(str(name), known, n=3)
    if not close and len(str(name)) >= SHORTEST_PART:
        close = [one for one in known if str(name).lower() in one.lower()][:5]
    if close:
        return f"Did you mean {' or '.join(close)}?"
    return f"Known: {', '.join(known)}."


def there_are(path: Path, ending: str, most: int = 3) -> str:
    """Return a sentence with files of an ending near a path where none is; empty if there are none.

    They are looked for below the nearest folder that exists, or else in ``runs``.

    Args:
        path: that was given.
        ending: such as ``".ckpt"``.
        most: number of files to name, the newest first.

    Example:
        >>> there_are(Path("no_such_folder/last.ckpt"), ".no_such_ending")
        ''
    """
    base = next((each for each in (path, *path.parents) if each.is_dir()), Path())
    bases = [*([] if base in (Path(), Path().absolute()) else [base]), Path("runs")]
    found = next(filter(None, (files_below(each, ending) for each in bases)), [])
    newest = sorted(found, key=lambda file: file.stat().st_mtime, reverse=True)[:most]
    more = " and more" if len(found) > len(newest) else ""
    return f"There are: {', '.join(map(str, newest))}{more}." if found else ""


def files_below(folder: Path, ending: str) -> list[Path]:
    """Return the files of an ending in a folder and those below, of which not too many are read."""
    walked = islice(os.walk(folder), MOST_FOLDERS)
    found = [Path(where, name) for where, _, names in walked for name in names]
    return [file for file in found if file.name.endswith(ending) and file.is_file()]


def pick(what: str, name: object, table: Mapping[str, T], call: str = "") -> T:
    """Return ``table[name]``.

    Args:
        what: kind of thing, for the message.
        name: of a row.
        table: the rows.
        call: the public function that adds a row, if there is one.

    Raises:
        ValueError: if there is no such name; the message has the nearest ones.
    """
    if not isinstance(name, str) or name not in table:
        own = f" {how_known(call)}" if call else ""
        raise ValueError(f"Unknown {what} {shortened(name)}. {nearest(name, table)}{own}")
    return table[name]


def how_known(call: str) -> str:
    """Return the sentence that says how a name of the user's own gets known."""
    return (
        f"One of your own is known once `{call}` was called: on the command line `--import` names "
        "the module that does."
    )


def check_keys(where: str, given: Mapping[str, Any], known: Iterable[str]) -> None:
    """Reject keys that ``where`` does not have.

    Raises:
        ValueError: naming the first unknown key and the nearest known ones.
    """
    known = list(known)
    for key in given:
        if key not in known:
            raise ValueError(f"{where} has no argument {shortened(key)}. {nearest(key, known)}")


def missing_packages(names: Iterable[str]) -> list[str]:
    """Return those of some packages that would have to be installed."""
    return [name for name in names if find_spec(name) is None]


def require(what: str, packages: Iterable[str], extra: str, otherwise: str = "") -> None:
    """Make sure that packages are installed.

    Args:
        what: needs them.
        packages: their names.
        extra: of this library that brings them; none if empty.
        otherwise: what else the user may do.

    Raises:
        ValueError: if one is missing, saying how to install it.

    Example:
        >>> require("The command `sweep`", ["no_such_package"], "sweep")
        Traceback (most recent call last):
        ...
        ValueError: The command `sweep` needs no_such_package, not installed here. Install with...
    """
    if missing := missing_packages(packages):
        wanted = f"'ssl-lightning[{extra}]'" if extra else " ".join(missing)
        end = f", {otherwise}." if otherwise else "."
        raise ValueError(
            f"{what} needs {' and '.join(missing)}, not installed here. Install with "
            f"`pip install {wanted}`{end}"
        )


def first_line(error: BaseException, most: int = 200) -> str:
    r"""Return the first line of what an error says; of one that says nothing, its type.

    Example:
        >>> first_line(ValueError("No such file. \nMore about it")), first_line(AssertionError())
        ('No such file', 'AssertionError')
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:most].rstrip(".: ") if lines else type(error).__name__


def said_by(error: BaseException, most: int = 200) -> str:
    """Return the first line of what an error says, with its type unless it is a ValueError's.

    Those are worded for users, most of them by this package; of others the type says more.

    Example:
        >>> said_by(ValueError("No such file.")), said_by(KeyError("conv1")), said_by(OSError())
        ('No such file', "KeyError: 'conv1'", 'OSError')
    """
    said, kind = first_line(error, most), type(error).__name__
    return said if isinstance(error, ValueError) or said == kind else f"{kind}: {said}"


def shortened(value: object, most: int = 60) -> str:
    r"""Write a value that came from a file on one line: escaped, and at most so many characters.

    Example:
        >>> shortened("lenet"), shortened("a" * 100)[:12], shortened("x\ny")
        ("'lenet'", "'aaaaaaaaaaa", "'x\\ny'")
        >>> len(shortened(list(range(1000))))
        60
    """
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # ValueError: an integer of thousands of digits
        text = f"<{type(value).__name__}>"
    return text if len(text) <= most else f"{text[: most - 3]}..."


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows of cells as lines in which columns stand below each other.

    Example:
        >>> aligned([("layer", "rank"), ("fc", "4")])
        ['layer  rank', 'fc     4']
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def reasons(retained: Mapping[str, str], what: str = "not pruned") -> list[str]:
    """Return a line for each reason for which layers are left as they are.

    Args:
        retained: layer -> why.
        what: the lines begin with.

    Example:
        >>> reasons({"": "a gate", "fc": "a gate"})
        ['not pruned: the model, fc: a gate']
    """
    layers: dict[str, list[str]] = {}
    for name, reason in retained.items():
        layers.setdefault(reason, []).append(name or "the model")
    return [f"{what}: {', '.join(names)}: {why}" for why, names in layers.items()]
