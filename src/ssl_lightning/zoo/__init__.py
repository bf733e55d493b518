"""Published compact networks, read: listing, cards, checking of files, loading and pulling.

Names are imported when they are first used: listing entries and reading cards needs no torch.
:mod:`ssl_lightning.publishing` writes entries and measures them again; as on the command line, what
it does is found here too: ``zoo.publish``, ``zoo.verify``, ``zoo.push``, ``zoo.add_controls``.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ssl_lightning import lazy

if TYPE_CHECKING:
    from ssl_lightning.zoo.cards import Card
    from ssl_lightning.zoo.entries import card, list_models
    from ssl_lightning.zoo.loading import load
    from ssl_lightning.zoo.pulling import pull

__all__ = ["Card", "card", "list_models", "load", "pull"]
_own, __dir__ = lazy.attach(__name__)
PUBLISHING = ("Check", "add_controls", "publish", "push", "verify")
"""Names of :mod:`ssl_lightning.publishing`, which is imported when one of them is asked for."""


def __getattr__(name: str) -> Any:
    if name in PUBLISHING:
        return getattr(import_module("ssl_lightning.publishing"), name)
    return _own(name)
