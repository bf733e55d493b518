"""Published compact networks, each with figures that one command measures again.

Listing entries and reading their cards needs no torch; what loads, verifies and publishes is
imported when it is first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ssl_lightning.zoo.cards import Card
from ssl_lightning.zoo.entries import card, list_models

if TYPE_CHECKING:
    from ssl_lightning.zoo.comparing import add_controls
    from ssl_lightning.zoo.loading import load
    from ssl_lightning.zoo.publishing import publish
    from ssl_lightning.zoo.sharing import pull, push
    from ssl_lightning.zoo.upgrading import upgrade
    from ssl_lightning.zoo.verifying import Check, verify

__all__ = [
    "Card",
    "Check",
    "add_controls",
    "card",
    "list_models",
    "load",
    "publish",
    "pull",
    "push",
    "upgrade",
    "verify",
]

_LAZY = {
    "Check": "verifying",
    "add_controls": "comparing",
    "load": "loading",
    "publish": "publishing",
    "pull": "sharing",
    "push": "sharing",
    "upgrade": "upgrading",
    "verify": "verifying",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
