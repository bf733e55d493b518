"""SSLLightningModule: any backbone, trained with structured-sparsity penalties."""

from ssl_lightning.module.backbone import averaged_copies
from ssl_lightning.module.parts import refuse_sharding
from ssl_lightning.module.training import SSLLightningModule

__all__ = ["SSLLightningModule", "averaged_copies", "refuse_sharding"]
