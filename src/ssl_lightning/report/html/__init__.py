"""Pages that are one HTML file each: no server, no network. Imports no torch.

Needs ``pip install 'ssl_lightning[html]'`` where something is drawn.
"""

from ssl_lightning.report.html.page import Figure, Table, Value, code, picture, write_page
from ssl_lightning.report.html.plots import EXTRA, PACKAGES
from ssl_lightning.report.html.run import write_run_page

__all__ = [
    "EXTRA",
    "PACKAGES",
    "Figure",
    "Table",
    "Value",
    "code",
    "picture",
    "write_page",
    "write_run_page",
]
