"""Networks on other data: a linear classifier on their features, or all of them trained on."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_lightning.measure.macs import evaluating
from ssl_lightning.progress import track

WEIGHT_DECAYS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
HELD_OUT = 5
"""One of so many training images is held out to choose the weight decay."""
GREY = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in a grey image (ITU-R BT.601)."""


class Labelled(NamedTuple):
    """Inputs with their classes.

    Attributes:
        inputs: ``(N, ...)``.
        labels: int64 ``(N,)``.
    """

    inputs: Tensor
    labels: Tensor

    def at(self, index: Tensor) -> Labelled:
        """Return some of them, by number or by a mask."""
        return Labelled(self.inputs[index], self.labels[index])


def fitted_images(images: Tensor, shape: Sequence[int]) -> Tensor:
    """Return images of the size and channels that a network takes.

    Args:
        images: float ``(N, C, H, W)`` in [0, 1] with one or three channels.
        shape: the network's ``(C, H, W)``. Images are scaled bilinearly with antialiasing; grey
            ones are repeated for three channels, coloured ones become grey for one.

    Raises:
        ValueError: for other numbers of channels.

    Example:
        >>> fitted_images(torch.rand(2, 1, 28, 28), (3, 32, 32)).shape
        torch.Size([2, 3, 32, 32])
    """
    channels, height, width = shape
    if {images.shape[1], channels} - {1, 3}:
        raise ValueError(
            f"evaluate transfer: expected images of 1 or 3 channels, got {images.shape[1]} for a "
            f"network that takes {channels}. Give other data."
        )
    if images.shape[2:] != (height, width):
        images = F.interpolate(images, (height, width), mode="bilinear", antialias=True)
    if images.shape[1] == channels:
        return images
    if channels == 3:
        return images.repeat(1, 3, 1, 1)
    return (images * torch.tensor(GREY).view(3, 1, 1)).sum(1, keepdim=True)


def last_linear(model: nn.Module, example: Tensor) -> str:
    """Return the name of the linear layer that computes the classes.

    Args:
        model: a classifier.
        example: one input, ``(1, ...)``.

    Raises:
        ValueError: if it ends in none whose inputs are features, ``(1, F)``.

    Example:
        >>> last_linear(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), torch.zeros(1, 2, 2))
        '1'
    """
    calls: list[tuple[str, Tensor]] = []
    names = {id(m): name for name, m in model.named_modules() if isinstance(m, nn.Linear)}

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        calls.append((names[id(module)], output))

    layers = [m for m in model.modules() if id(m) in names]
    hooks = [layer.register_forward_hook(note) for layer in layers]
    try:
        with torch.inference_mode(), evaluating(model):
            output = model(example)
    finally:
        for hook in hooks:
            hook.remove()
    shape = getattr(output, "shape", None)  # a network may return several tensors
    if not calls or calls[-1][1].dim() != 2 or calls[-1][1].shape != shape:
        raise ValueError(
            f"evaluate transfer: expected {type(model).__name__} to end in a linear layer that "
            "reads features (N, F), found none. Give a classifier that does."
        )
    return calls[-1][0]


@torch.no_grad()
def features(model: nn.Module, layer: str, batches: Iterable[Tensor]) -> Tensor:
    """Return what a layer reads, float32 ``(N, F)``.

    Args:
        model: the network, which is run in eval mode.
        layer: name of a linear layer; see :func:`last_linear`.
        batches: inputs ``(B, ...)``.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.ReLU(), nn.Linear(2, 3))
        >>> features(net, "2", [torch.tensor([[-1.0, 2.0]])]).tolist()
        [[0.0, 2.0]]
    """
    found: list[Tensor] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found.append(inputs[0].float())

    hook = model.get_submodule(layer).register_forward_pre_hook(note)
    try:
        with evaluating(model):
            for batch in batches:
                model(batch)
    finally:
        hook.remove()
    return torch.cat(found)


class Linear(NamedTuple):
    """A linear classifier.

    Attributes:
        weight: ``(K, F)``.
        bias: ``(K,)``.
    """

    weight: Tensor
    bias: Tensor

    def wrong(self, data: Labelled) -> Tensor:
        """Return which examples it classifies wrongly, bool ``(N,)``."""
        answers = F.linear(data.inputs, self.weight, self.bias).argmax(1)
        return answers != data.labels


def logistic_regression(
    data: Labelled, num_classes: int, weight_decay: float, start: Linear | None = None
) -> Linear:
    r"""Return the linear classifier with the smallest loss and L2 penalty.

    .. math:: \frac1n \sum_i -\log p(y_i | x_i) + \frac\lambda2 \|W\|^2

    The bias is not decayed. The weights of the minimum are unique, and searched by at
    most 300 steps of L-BFGS, in float64: in float32 equal losses end the search where the
    gradient is still some 1e-4, a place that depends on the processor.

    Args:
        data: features ``(N, F)`` and classes.
        num_classes: K.
        weight_decay: lambda, above 0.
        start: where the search begins; zero if None.

    Reference:
        Kornblith, Shlens & Le, Do Better ImageNet Models Transfer Better?, CVPR 2019, appendix A,
        which chooses the strength on held-out images too.

    Example:
        >>> x = torch.tensor([[-1.0], [1.0]])
        >>> found = logistic_regression(Labelled(x, torch.tensor([0, 1])), 2, 0.1)
        >>> found.wrong(Labelled(x, torch.tensor([0, 1]))).tolist()
        [False, False]
    """
    inputs, labels = data.inputs.double(), data.labels
    begin = start or Linear(
        inputs.new_zeros(num_classes, inputs.shape[1]), inputs.new_zeros(num_classes)
    )
    weight, bias = (part.to(inputs, copy=True).requires_grad_() for part in begin)
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=300,
        tolerance_grad=1e-5,
        tolerance_change=1e-9,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        scores = F.linear(inputs, weight, bias)
        value = F.cross_entropy(scores, labels) + weight_decay / 2 * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return Linear(weight.detach().to(data.inputs), bias.detach().to(data.inputs))


@dataclass(frozen=True)
class Probe:
    """What a linear probe found.

    Attributes:
        wrong: which images it classifies wrongly, bool ``(N,)``.
        weight_decay: that was chosen.
    """

    wrong: Tensor
    weight_decay: float


def linear_probe(
    train: Labelled,
    held_out: Labelled,
    num_classes: int,
    weight_decays: Sequence[float] = WEIGHT_DECAYS,
) -> Probe:
    """Train logistic regression on features, and classify other images.

    Features are standardised by the training images. Each fifth training image is held out, the
    weight decay with the fewest errors on those is taken (of equal ones the largest), and the
    classifier is fitted to all training images with it.

    Args:
        train: features ``(N, F)`` in a random order, and classes.
        held_out: the same of the images to classify.
        num_classes: number of classes.
        weight_decays: to choose from.

    Raises:
        ValueError: if there are fewer than two training images for each class on average.

    Example:
        >>> x = torch.linspace(-1, 1, 60)[torch.randperm(60)][:, None]
        >>> data = Labelled(x, (x[:, 0] > 0).long())
        >>> int(linear_probe(data, data, 2).wrong.sum()) < 3
        True
    """
    number = len(train.labels)
    if number < 2 * num_classes:
        raise ValueError(
            f"linear_probe: expected at least {2 * num_classes} training images for {num_classes} "
            f"classes, got {number}. Give more."
        )
    mean, std = train.inputs.mean(0), train.inputs.std(0)
    scale = torch.where(std > 0, std, torch.ones_like(std))
    train, held_out = (Labelled((d.inputs - mean) / scale, d.labels) for d in (train, held_out))
    order = torch.arange(number)
    fit_on, choose_on = train.at(order % HELD_OUT != 0), train.at(order % HELD_OUT == 0)
    errors, found = {}, None
    for decay in sorted(weight_decays, reverse=True):
        found = logistic_regression(fit_on, num_classes, decay, found)
        errors[decay] = int(found.wrong(choose_on).sum())
    best = min(errors, key=lambda decay: errors[decay])
    return Probe(logistic_regression(train, num_classes, best, found).wrong(held_out), best)


@dataclass(frozen=True)
class FineTuning:
    """Settings of fine-tuning: SGD with Nesterov momentum 0.9 and half a cosine.

    Attributes:
        epochs: passes over the training images.
        lr: learning rate at the start; of the fresh last layer too.
        weight_decay: of all parameters.
        batch_size: images of a step.
        flip: whether images are mirrored at random.

    Raises:
        ValueError: if a number is out of range.
    """

    epochs: int = 5
    lr: float = 0.01
    weight_decay: float = 5e-4
    batch_size: int = 64
    flip: bool = True

    def __post_init__(self) -> None:
        for name, low in (("epochs", 1), ("batch_size", 1), ("lr", 0.0), ("weight_decay", 0.0)):
            if getattr(self, name) < low:
                raise ValueError(
                    f"evaluate transfer: expected {name} of at least {low}, got "
                    f"{getattr(self, name)}. Give another."
                )


@contextmanager
def own_seed(seed: int) -> Iterator[None]:
    """Seed torch, and set its generator back afterwards."""
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(state)


def fine_tuned(
    model: nn.Module,
    layer: str,
    train: Labelled,
    num_classes: int,
    settings: FineTuning,
    seed: int = 0,
    prepare: Callable[[Tensor], Tensor] = torch.Tensor.float,
) -> nn.Module:
    """Return a copy of a network with a fresh last layer, trained on; the network is left alone.

    Args:
        model: the network.
        layer: name of its last linear layer; see :func:`last_linear`.
        train: images, and classes.
        num_classes: outputs of the fresh layer.
        settings: of the training.
        seed: of the fresh layer, the order and the mirroring.
        prepare: makes a batch of images into the network's inputs.

    Example:
        >>> x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
        >>> data = Labelled(x, (x[:, 0] > 0).long())
        >>> short = FineTuning(epochs=20, lr=0.1, flip=False)
        >>> net = fine_tuned(nn.Sequential(nn.Linear(4, 5)), "0", data, 2, short)
        >>> net(x).shape
        torch.Size([64, 2])
    """
    with own_seed(seed):
        net = copy.deepcopy(model)
        place, _, name = layer.rpartition(".")
        old = net.get_submodule(layer)
        assert isinstance(old, nn.Linear)
        setattr(net.get_submodule(place), name, nn.Linear(old.in_features, num_classes))
        train_(net, train, settings, prepare)
    return net.eval()


def train_(
    net: nn.Module, train: Labelled, settings: FineTuning, prepare: Callable[[Tensor], Tensor]
) -> None:
    """Train all parameters of a network; what is random is drawn from torch's generator."""
    number, size = len(train.labels), settings.batch_size
    steps = settings.epochs * max(number // size, 1)
    optimizer = torch.optim.SGD(
        net.parameters(),
        lr=settings.lr,
        momentum=0.9,
        nesterov=True,
        weight_decay=settings.weight_decay,
    )
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    net.train()
    for _ in track(range(settings.epochs)):
        order = torch.randperm(number)
        for index in order[: max(number // size, 1) * size].split(size):
            inputs, labels = train.at(index)
            inputs = prepare(inputs)
            if settings.flip:
                mirrored = torch.rand(len(labels)) < 0.5
                inputs[mirrored] = inputs[mirrored].flip(-1)
            optimizer.zero_grad()
            F.cross_entropy(net(inputs), labels).backward()
            optimizer.step()
            scheduler.step()
