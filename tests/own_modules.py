"""LightningModules as other people write them, with the mixin added."""

from __future__ import annotations

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.utils.data import DataLoader

from ssl_lightning import StructuredSparsity

COUPLED = [{"kind": "coupled", "strength": 1e-4}]


class Detector(StructuredSparsity, pl.LightningModule):
    """torchvision's Faster R-CNN; its backbone becomes sparse, the heads do not."""

    def __init__(self):
        super().__init__()
        self.model = torchvision.models.detection.fasterrcnn_mobilenet_v3_large_320_fpn(
            weights=None, weights_backbone=None, num_classes=3, min_size=64, max_size=64
        )
        self.sparsify("model.backbone", COUPLED, input_shape=(3, 64, 64))

    def training_step(self, batch, batch_idx):
        images, targets = batch
        losses = self.model(list(images), targets)
        return sum(losses.values())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-3, momentum=0.9)

    @staticmethod
    def loader():
        g = torch.Generator().manual_seed(1)
        images = [torch.rand(3, 64, 64, generator=g) for _ in range(4)]
        target = {"boxes": torch.tensor([[4.0, 4.0, 40.0, 50.0]]), "labels": torch.tensor([1])}
        pairs = [(image, target) for image in images]
        return DataLoader(
            pairs, batch_size=2, collate_fn=lambda rows: tuple(zip(*rows, strict=True))
        )


class Retina(Detector):
    """torchvision's RetinaNet over a ResNet-18 with a feature pyramid."""

    def __init__(self):
        pl.LightningModule.__init__(self)
        backbone = torchvision.models.detection.backbone_utils.resnet_fpn_backbone(
            backbone_name="resnet18", weights=None, trainable_layers=5, norm_layer=nn.BatchNorm2d
        )
        anchors = torchvision.models.detection.anchor_utils.AnchorGenerator(
            sizes=tuple((8 * 2**i,) for i in range(5)), aspect_ratios=((1.0,),) * 5
        )
        self.model = torchvision.models.detection.RetinaNet(
            backbone, num_classes=3, anchor_generator=anchors, min_size=64, max_size=64
        )
        self.sparsify("model.backbone", COUPLED, input_shape=(3, 64, 64))


class Segmenter(StructuredSparsity, pl.LightningModule):
    """torchvision's DeepLabV3, trained in manual optimization with two optimizers."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.model = torchvision.models.segmentation.deeplabv3_mobilenet_v3_large(
            weights=None, weights_backbone=None, num_classes=4
        )
        self.sparsify("model.backbone", COUPLED, input_shape=(3, 64, 64))

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.cross_entropy(self.model(x)["out"], y)
        body, head = self.optimizers()
        body.zero_grad()
        head.zero_grad()
        self.manual_backward(loss)
        body.step()
        head.step()

    def configure_optimizers(self):
        body = torch.optim.SGD(self.model.backbone.parameters(), lr=1e-3, momentum=0.9)
        return body, torch.optim.AdamW(self.model.classifier.parameters(), lr=1e-4)

    @staticmethod
    def loader():
        g = torch.Generator().manual_seed(2)
        images = torch.rand(4, 3, 64, 64, generator=g)
        return DataLoader(
            [(x, (x.mean(0) * 4).long().clamp(0, 3)) for x in images], batch_size=2, shuffle=True
        )


class Block(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x):
        return F.relu(self.norm(self.conv(x)))


class UNet(nn.Module):
    """Two levels with a concatenated skip connection."""

    def __init__(self):
        super().__init__()
        self.down1, self.down2 = Block(3, 12), Block(12, 16)
        self.middle = Block(16, 20)
        self.up = nn.ConvTranspose2d(20, 16, 2, stride=2)
        self.merge = Block(32, 12)
        self.out = nn.Conv2d(12, 4, 1)
        self.drop = nn.Dropout(0.1)

    def forward(self, x):
        a = self.down1(x)
        b = self.down2(F.max_pool2d(a, 2))
        c = self.middle(F.max_pool2d(b, 2))
        return self.out(F.interpolate(self.merge(torch.cat([self.up(c), b], 1)), scale_factor=2))


class UNetModule(StructuredSparsity, pl.LightningModule):
    """A U-Net of the user's own; none of the overridden hooks calls super."""

    def __init__(self):
        super().__init__()
        self.net = UNet()

    def configure_model(self):
        if self.sparsity is None:
            self.sparsify("net", COUPLED, input_shape=(3, 32, 32))

    def setup(self, stage):
        self.was_set_up = True

    def on_train_batch_start(self, batch, batch_idx):
        self.batches = getattr(self, "batches", 0) + 1

    def on_save_checkpoint(self, checkpoint):
        checkpoint["own"] = self.batches

    def on_load_checkpoint(self, checkpoint):
        self.batches = checkpoint["own"]

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self.net(self.net.drop(x)), y)

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.net.parameters(), lr=2e-3)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 6)]

    @staticmethod
    def loader():
        g = torch.Generator().manual_seed(3)
        images = torch.rand(8, 3, 32, 32, generator=g)
        return DataLoader([(x, (x.mean(0) * 4).long().clamp(0, 3)) for x in images], batch_size=4)


class Whole(StructuredSparsity, pl.LightningModule):
    """Layers and forward are those of the LightningModule itself, as in Lightning's first steps."""

    def __init__(self):
        super().__init__()
        self.example_input_array = torch.zeros(1, 1, 8, 8)
        self.conv1 = nn.Conv2d(1, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 3)
        self.sparsify(penalties=COUPLED)

    def forward(self, x):
        x = F.relu(self.conv1(F.dropout(x, 0.2, self.training)))
        return self.head(F.relu(self.conv2(x)).mean((2, 3)))

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)

    @staticmethod
    def loader():
        g = torch.Generator().manual_seed(4)
        images = torch.rand(16, 1, 8, 8, generator=g)
        return DataLoader([(x, int(3 * x.mean() % 3)) for x in images], batch_size=8, shuffle=True)


class Transformer(StructuredSparsity, pl.LightningModule):
    """A ViT of Hugging Face's transformers."""

    def __init__(self):
        super().__init__()
        from transformers import ViTConfig, ViTForImageClassification

        config = ViTConfig(
            hidden_size=24,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=32,
            image_size=16,
            patch_size=8,
            num_labels=3,
            attn_implementation="eager",
        )
        self.model = ViTForImageClassification(config)
        self.sparsify(
            "model",
            [{"kind": "ffn", "strength": 1e-4}, {"kind": "head", "strength": 1e-4}],
            input_shape=(3, 16, 16),
        )

    def training_step(self, batch, batch_idx):
        x, y = batch
        return self.model(pixel_values=x, labels=y).loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)

    @staticmethod
    def loader():
        g = torch.Generator().manual_seed(5)
        images = torch.rand(8, 3, 16, 16, generator=g)
        return DataLoader([(x, int(3 * x.mean() % 3)) for x in images], batch_size=4)


MODULES = {
    cls.__name__: cls for cls in (Detector, Retina, Segmenter, UNetModule, Whole, Transformer)
}
