"""Entries of the zoo, written and verified: every figure is measured here, nothing is typed in.

Reading them is :mod:`ssl_lightning.zoo`'s.
"""

from ssl_lightning.publishing.adding import add_controls, add_evaluations
from ssl_lightning.publishing.pushing import push
from ssl_lightning.publishing.rewriting import write_page
from ssl_lightning.publishing.site import write_site
from ssl_lightning.publishing.verifying import Check, verify
from ssl_lightning.publishing.writing import publish

__all__ = [
    "Check",
    "add_controls",
    "add_evaluations",
    "publish",
    "push",
    "verify",
    "write_page",
    "write_site",
]
