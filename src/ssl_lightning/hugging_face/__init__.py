"""Hugging Face's ``transformers.Trainer``: penalties, a budget and compaction in a run of it.

Needs ``pip install 'ssl_lightning[transformers]'``.
"""

try:
    from ssl_lightning.hugging_face.callback import SparsityCallback
except ImportError as error:
    raise ImportError(
        "ssl_lightning.hugging_face needs transformers with its trainer, which is not installed. "
        "Install it: `pip install 'ssl_lightning[transformers]'`."
    ) from error

__all__ = ["SparsityCallback"]
