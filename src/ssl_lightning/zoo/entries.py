"""Finding entries and checking their files, before a byte of them is parsed. Imports no torch."""

from __future__ import annotations

import os
from pathlib import Path

from ssl_lightning.suggest import nearest
from ssl_lightning.zoo.cards import CARD, Card, check_name
from ssl_lightning.zoo.records import StoredFile

VARIABLE = "SSL_ZOO_DIR"
HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parents[2]
PACKAGED = HERE / "models"


def zoo_root(root: str | Path | None = None) -> Path:
    """Return the folder that entries are looked up in.

    ``root``, else ``$SSL_ZOO_DIR``, else ``zoo/`` of the source checkout, else package data.

    Raises:
        FileNotFoundError: if there is none.
    """
    given = root or os.environ.get(VARIABLE)
    if given:
        if not Path(given).is_dir():
            raise FileNotFoundError(
                f"No zoo at {given}: expected a folder with one folder per entry. Correct "
                f"{'`root`' if root else VARIABLE}."
            )
        return Path(given)
    if (CHECKOUT / "pyproject.toml").is_file() and (CHECKOUT / "zoo").is_dir():
        return CHECKOUT / "zoo"
    if PACKAGED.is_dir():
        return PACKAGED
    raise FileNotFoundError(
        "No zoo found: this installation is no source checkout and brings no entries along. Give "
        f"`root`, or set {VARIABLE} to a folder of entries (`zoo/` of the repository)."
    )


def list_models(root: str | Path | None = None) -> list[str]:
    """Return the names of all entries.

    Args:
        root: folder of entries; see :func:`zoo_root` for the default.

    Raises:
        FileNotFoundError: if there is no zoo.
    """
    found = (path.parent.name for path in zoo_root(root).glob(f"*/{CARD}"))
    return sorted(name for name in found if not name.startswith("."))


def entry_folder(name: str, root: str | Path | None = None) -> Path:
    """Return the folder of an entry.

    Raises:
        FileNotFoundError: if there is no zoo.
        ValueError: if the name is no plain name, or unknown.
    """
    check_name(name)
    folder = zoo_root(root) / name
    if not (folder / CARD).is_file():
        known = list_models(root)
        hint = nearest(name, known) if known else "The zoo has no entries."
        raise ValueError(f"Unknown zoo entry {name!r} in {folder.parent}. {hint}")
    return folder


def card(name: str, root: str | Path | None = None) -> Card:
    """Return the card of an entry.

    Args:
        name: an entry of :func:`list_models`.
        root: folder of entries; see :func:`zoo_root` for the default.

    Raises:
        FileNotFoundError: if there is no zoo.
        ValueError: if the name is no plain name or unknown, or the card is damaged, edited or
            another entry's.
    """
    folder = entry_folder(name, root)
    found = Card.read(folder / CARD)
    if found.name != name:
        raise ValueError(
            f"{folder / CARD} is the card of {found.name!r}, not of {name!r}: folders were renamed "
            "or swapped. Get the entry again."
        )
    return found


def checked_entry(name: str, root: str | Path | None = None) -> tuple[Card, dict[str, bytes]]:
    """Return the card of an entry and the content of all its files, each with the card's hash.

    Raises:
        FileNotFoundError: if there is no zoo, or a file of the entry is missing.
        ValueError: as :func:`card`, and if a file is not the one that was published.
    """
    folder, found = entry_folder(name, root), card(name, root)
    return found, {file: checked_file(folder / file, found.files[file]) for file in found.files}


def checked_file(path: Path, published: StoredFile) -> bytes:
    """Return a file's content if it is what was published.

    Raises:
        FileNotFoundError: if it is missing.
        ValueError: if its size or hash differs.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing, but the card names it. Get the entry again.")
    size = path.stat().st_size
    if size != published.num_bytes:
        raise ValueError(
            f"{path} has {size} bytes, but {published.num_bytes} were published: it is "
            "truncated or another file. Get the entry again."
        )
    content = path.read_bytes()
    found = StoredFile.of(content).sha256
    if found != published.sha256:
        raise ValueError(
            f"{path} is damaged or another file: its sha256 is {found[:12]}..., published was "
            f"{published.sha256[:12]}.... Get the entry again."
        )
    return content
