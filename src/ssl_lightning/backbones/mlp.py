"""Multilayer perceptron, 784-500-300-10 in the paper."""

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from ssl_lightning.backbones.init import init_he_


class MLP(nn.Module):
    """Classify flattened images with linear layers ``fc1``, ``fc2``, ... and ReLU between them.

    Args:
        widths: neurons of the hidden layers; ``()`` gives a linear classifier.
        num_classes: outputs of the last layer.
        input_shape: (C, H, W) of one image; it is flattened.

    Raises:
        ValueError: if a width is smaller than 1.

    Reference:
        Wen et al., Learning Structured Sparsity in Deep Neural Networks, 2016, table 3.

    Example:
        >>> import torch
        >>> mlp = MLP()
        >>> mlp.fc2
        Linear(in_features=500, out_features=300, bias=True)
        >>> mlp(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        widths: Sequence[int] = (500, 300),
        num_classes: int = 10,
        input_shape: Sequence[int] = (1, 28, 28),
    ) -> None:
        super().__init__()
        if any(width < 1 for width in widths):
            raise ValueError(
                f"MLP: expected every width to be at least 1, got {tuple(widths)}. "
                "Leave a hidden layer out of `widths` instead of giving it no neurons."
            )
        channels, height, width = input_shape
        self.input_shape: tuple[int, int, int] = (channels, height, width)
        self.num_classes = num_classes
        sizes = (math.prod(self.input_shape), *widths, num_classes)
        self.num_layers = len(sizes) - 1
        for i in range(self.num_layers):
            self.add_module(f"fc{i + 1}", nn.Linear(sizes[i], sizes[i + 1]))
        init_he_(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(N, num_classes)``."""
        x = x.flatten(1)
        for i in range(1, self.num_layers):
            x = F.relu(self.get_submodule(f"fc{i}")(x))
        logits: Tensor = self.get_submodule(f"fc{self.num_layers}")(x)
        return logits
