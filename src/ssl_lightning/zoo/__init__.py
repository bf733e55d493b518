"""Published compact networks, read: listing, cards, checking of files, loading and pulling.

Names are imported when they are first used: listing entries and reading cards needs no torch.
:mod:`ssl_lightning.publishing` writes entries and measures them again.
"""

from typing import TYPE_CHECKING

from ssl_lightning import lazy

if TYPE_CHECKING:
    from ssl_lightning.zoo.cards import Card
    from ssl_lightning.zoo.entries import card, list_models
    from ssl_lightning.zoo.loading import load
    from ssl_lightning.zoo.pulling import pull

__all__ = ["Card", "card", "list_models", "load", "pull"]
__getattr__, __dir__ = lazy.attach(__name__)
