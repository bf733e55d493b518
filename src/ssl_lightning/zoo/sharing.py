"""Entries on a model hub: uploaded as they are, and checked before anything of them is parsed."""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ssl_lightning.files import appearing
from ssl_lightning.suggest import first_line
from ssl_lightning.zoo.cards import CARD, FILES, Card
from ssl_lightning.zoo.entries import checked_entry, checked_file
from ssl_lightning.zoo.listing import write_table


def push(
    name: str,
    repository: str,
    root: str | Path | None = None,
    private: bool = False,
    hub: Any = None,
) -> str:
    """Upload an entry to a repository of a model hub, after checking its files.

    One commit; the page becomes the repository's model card. Where the hub is and who may write
    is huggingface_hub's to know (``HF_ENDPOINT``, ``HF_TOKEN``, or a login).

    Args:
        name: an entry of :func:`ssl_lightning.zoo.list_models`.
        repository: such as ``"user/name"``; made if missing.
        root: folder of entries; see :func:`ssl_lightning.zoo.entries.zoo_root` for the default.
        private: whether a repository that is made is private.
        hub: ``huggingface_hub.HfApi`` to use; default: a new one.

    Returns:
        Where the commit can be seen.

    Raises:
        FileNotFoundError: if there is no zoo, or a file of the entry is missing.
        PermissionError: if the hub refuses.
        ValueError: if the name is no plain name or unknown, or a file is not what was published.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError

    card, files = checked_entry(name, root)
    api = HfApi() if hub is None else hub
    contents = {**files, CARD: card.to_bytes()}
    operations = [CommitOperationAdd(path, content) for path, content in sorted(contents.items())]
    message = f"{name}: {card.test_error:.2f} % error, {card.compact.macs:,} multiply-adds"
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        commit = api.create_commit(repository, operations, commit_message=message)
    except HfHubHTTPError as error:
        raise PermissionError(
            f"Cannot upload to {repository}: {first_line(error)}. Check the name, and "
            "whether your token (`HF_TOKEN`) may write there."
        ) from error
    return str(commit.commit_url)


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
        FileExistsError: if there is an entry of that name already.
        FileNotFoundError: if the repository or a file in it does not exist.
        ValueError: if the card or a file is damaged.
    """
    from huggingface_hub import HfApi

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
