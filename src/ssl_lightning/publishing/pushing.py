"""Upload of entries to a model hub, as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ssl_lightning.suggest import first_line
from ssl_lightning.zoo.cards import CARD
from ssl_lightning.zoo.entries import checked_entry


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
