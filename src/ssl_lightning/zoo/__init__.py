"""Published compact networks, read: listing, cards, checking of files, loading and pulling.

Listing entries and reading their cards needs no torch; what loads and pulls is imported when it is
first asked for. :mod:`ssl_lightning.publishing` writes entries and measures them again.
"""

from typing import TYPE_CHECKING

from ssl_lightning import lazy
from ssl_lightning.zoo.cards import Card
from ssl_lightning.zoo.entries import card, list_models

if TYPE_CHECKING:
    from ssl_lightning.zoo.loading import load
    from ssl_lightning.zoo.pulling import pull

__all__ = ["Card", "card", "list_models", "load", "pull"]
__getattr__, __dir__ = lazy.attach(__name__)
