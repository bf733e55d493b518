"""Download of entries from a model hub: checked before anything of them is parsed."""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ssl_lightning.files import appearing, in_turn
from ssl_lightning.suggest import first_line
from ssl_lightning.zoo.cards import CARD, FILES, Card
from ssl_lightning.zoo.entries import checked_file
from ssl_lightning.zoo.listing import check_page, write_table


def pull(repository: str, root: str | Path, revision: str | None = None, hub: Any = None) -> Path:
    """Download an entry into a folder of entries.

    The card comes first; only files that it names are asked for, each is checked against it, and
    the entry appears under the name in its card once all are there.

    Args:
        repository: such as ``"user/name"``.
        root: folder of entries, made if missing; its table is written anew.
        revision: branch, tag or commit; default: the main branch.
        hub: ``huggingface_hub.HfApi`` to use; default: a new one.

    Returns:
        The folder of the entry.

    Raises:
        FileExistsError: if there is an entry of that name already, or another page than a zoo's.
        FileNotFoundError: if the repository or a file in it does not exist.
        ValueError: if the card or a file is damaged.
    """
    from huggingface_hub import HfApi

    check_page(root)
    api = HfApi() if hub is None else hub
    with TemporaryDirectory() as place:
        card = Card.read(fetch(api, repository, CARD, revision, place))
        target = Path(root) / card.name
        if target.exists():
            raise FileExistsError(
                f"{target} exists already, and entries are not overwritten. Give another `root`, "
                "or remove the folder."
            )
        for file in (file for file in FILES if file in card.files):
            checked_file(fetch(api, repository, file, revision, place), card.files[file])
        with in_turn(Path(root)):
            with appearing(target) as folder:
                for file in (CARD, *card.files):
                    shutil.copyfile(Path(place, file), folder / file)
            write_table(root)
    return target


def fetch(api: Any, repository: str, file: str, revision: str | None, place: str) -> Path:
    """Download one file of a repository into ``place`` and return its path.

    Raises:
        FileNotFoundError: if the repository, the revision or the file does not exist.
    """
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(api.hf_hub_download(repository, file, revision=revision, local_dir=place))
    except HfHubHTTPError as error:
        raise FileNotFoundError(
            f"Cannot download {file} of {repository}: {first_line(error)}. Check the "
            "name, the revision, and whether you may read it."
        ) from error
