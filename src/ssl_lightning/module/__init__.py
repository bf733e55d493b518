"""Training: a mixin for any LightningModule, and a task module of our own on top of it."""

from ssl_lightning.module.hooks import averaged_copies, sparsity_of
from ssl_lightning.module.mixin import StructuredSparsity
from ssl_lightning.module.parts import epochs_of, is_trained
from ssl_lightning.module.sparsity import Sparsity
from ssl_lightning.module.training import SSLLightningModule

__all__ = [
    "SSLLightningModule",
    "Sparsity",
    "StructuredSparsity",
    "averaged_copies",
    "epochs_of",
    "is_trained",
    "sparsity_of",
]
