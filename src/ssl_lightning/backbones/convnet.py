"""ConvNet: Caffe's ``cifar10_full``, the network of the paper's first CIFAR-10 experiments."""

import torch.nn.functional as F
from torch import Tensor, nn

from ssl_lightning.backbones.init import init_he_

ALPHA = 0.2
"""Caffe's 5e-5 times 62 squared, the standard deviation of CIFAR-10's pixels of 0..255."""


class SpatialResponseNorm(nn.Module):
    r"""Divide each value by the mean energy of its spatial neighbourhood in the same channel.

    .. math:: y = x \, / \, (1 + \alpha \cdot \mathrm{mean}_{k \times k}(x^2))^{\beta}

    This is Caffe's LRN with ``norm_region: WITHIN_CHANNEL``, which ``cifar10_full`` uses; torch's
    :class:`~torch.nn.LocalResponseNorm` normalises across channels and is a different function
    (and would couple the channels, so that removing one would change its neighbours). The border
    is padded with zeros that count in the mean, as in Caffe.

    Args:
        size: side of the neighbourhood in pixels, odd.
        alpha: weight of the mean energy.
        beta: exponent.

    Raises:
        ValueError: if ``size`` is even or smaller than 1.

    Example:
        >>> import torch
        >>> SpatialResponseNorm(3, alpha=1.0, beta=0.5)(torch.ones(1, 1, 1, 1)).item()
        0.948...
    """

    def __init__(self, size: int = 3, alpha: float = 5e-5, beta: float = 0.75) -> None:
        super().__init__()
        if size < 1 or size % 2 == 0:
            raise ValueError(
                f"SpatialResponseNorm: expected an odd `size` of at least 1, got {size}. "
                "Take the next odd number, so that the neighbourhood has a centre."
            )
        self.size = size
        self.alpha = alpha
        self.beta = beta

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised map, same shape as ``x`` ``(N, C, H, W)``."""
        energy = F.avg_pool2d(x.square(), self.size, stride=1, padding=self.size // 2)
        return x * (1 + self.alpha * energy).pow(-self.beta)

    def extra_repr(self) -> str:
        """Show the constants."""
        return f"size={self.size}, alpha={self.alpha}, beta={self.beta}"


class ConvNet(nn.Module):
    """Classify 32 x 32 images with three 5 x 5 convolutions (32-32-64) and one linear layer.

    Pooling rounds up as in Caffe, so the maps shrink 32 -> 16 -> 8 -> 4. Caffe's initial weights
    (standard deviation 1e-4 in ``conv1``) and its ``alpha`` of 5e-5 in the response norms suit
    pixels of 0..255 only; with normalised pixels, weights get He initialisation, and ``alpha`` is
    larger by the squared scale.

    Args:
        num_classes: outputs of ``fc``.
        in_channels: channels of the input, which is ``(N, in_channels, 32, 32)``.
        alpha: of the response norms.

    Reference:
        BVLC Caffe, ``examples/cifar10/cifar10_full_train_test.prototxt``; Wen et al., 2016.

    Example:
        >>> import torch
        >>> ConvNet()(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    input_shape: tuple[int, int, int]

    def __init__(self, num_classes: int = 10, in_channels: int = 3, alpha: float = ALPHA) -> None:
        super().__init__()
        self.input_shape = (in_channels, 32, 32)
        self.num_classes = num_classes
        self.conv1 = nn.Conv2d(in_channels, 32, 5, padding=2)
        self.pool1 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.norm1 = SpatialResponseNorm(alpha=alpha)
        self.conv2 = nn.Conv2d(32, 32, 5, padding=2)
        self.pool2 = nn.AvgPool2d(3, stride=2, ceil_mode=True)
        self.norm2 = SpatialResponseNorm(alpha=alpha)
        self.conv3 = nn.Conv2d(32, 64, 5, padding=2)
        self.pool3 = nn.AvgPool2d(3, stride=2, ceil_mode=True)
        self.fc = nn.Linear(64 * 4 * 4, num_classes)
        init_he_(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(N, num_classes)``."""
        x = self.norm1(F.relu(self.pool1(self.conv1(x))))
        x = self.norm2(self.pool2(F.relu(self.conv2(x))))
        x = self.pool3(F.relu(self.conv3(x)))
        logits: Tensor = self.fc(x.flatten(1))
        return logits
