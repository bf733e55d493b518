"""A published network as a plain module."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from torch import nn

from ssl_lightning.compaction.store import create_small, load_compact
from ssl_lightning.zoo.entries import checked_entry


def load(name: str, pretrained: bool = True, root: str | Path | None = None) -> nn.Module:
    """Return a published network, in eval mode; it can be trained on.

    All files are checked against the card before they are parsed, and nothing is unpickled.

    Args:
        name: an entry of :func:`ssl_lightning.zoo.list_models`.
        pretrained: with the published weights; otherwise the same small layers with fresh ones.
        root: folder of entries; see :func:`ssl_lightning.zoo.entries.zoo_root` for the default.

    Raises:
        FileNotFoundError: if there is no zoo, or a file of the entry is missing.
        ValueError: if the name is no plain name or unknown, or a file is not what was published.
    """
    return build(checked_entry(name, root)[1], pretrained)


def build(files: dict[str, bytes], pretrained: bool = True) -> nn.Module:
    """Return the network that checked files describe: these very bytes, whatever is on disk now."""
    with TemporaryDirectory() as folder:
        for file, content in files.items():
            Path(folder, file).write_bytes(content)
        return load_compact(folder) if pretrained else create_small(folder).eval()
