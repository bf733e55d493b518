"""Entry points for torch.hub: every entry of the zoo under its own name, and ``load`` for any.

``torch.hub.load("<owner>/<repository>", "lenet_mnist_filter_channel", pretrained=True)``
"""

import sys
from functools import partial
from pathlib import Path

dependencies = ["torch", "numpy", "safetensors", "yaml"]

sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))

from ssl_lightning import zoo as _zoo  # noqa: E402

_ROOT = Path(__file__).resolve().parent / "zoo"


def load(name, pretrained=True):
    """Return the network of a zoo entry, in eval mode, with its weights or with fresh ones."""
    return _zoo.load(name, _ROOT, pretrained=pretrained)


for _name in _zoo.list_models(_ROOT):
    _entry = partial(load, _name)
    _entry.__doc__ = (
        f"Return the network of the zoo entry {_name}; pretrained=False: fresh weights."
    )
    globals()[_name] = _entry
