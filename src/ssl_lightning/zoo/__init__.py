"""Published compact networks, read: listing, cards, checking of files, loading and pulling.

Listing entries and reading their cards needs no torch; what loads and pulls is imported when it is
first asked for. :mod:`ssl_lightning.publishing` writes entries and measures them again.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ssl_lightning.zoo.cards import Card
from ssl_lightning.zoo.entries import card, list_models

if TYPE_CHECKING:
    from ssl_lightning.zoo.loading import load
    from ssl_lightning.zoo.pulling import pull

__all__ = ["Card", "card", "list_models", "load", "pull"]

_LAZY = {"load": "loading", "pull": "pulling"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
