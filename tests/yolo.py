"""A detector in the manner of YOLOv8, written for the tests, with the habits of such networks.

A list of modules that says where each reads from; C2f blocks that split and concatenate; SPPF; a
head that decodes boxes from distributions (a convolution of fixed weights over a softmax), with
anchors that are cached until the size of the image changes, and other outputs in training.
"""

from __future__ import annotations

import torch
from torch import nn

BINS = 4
"""Bins of a distribution over the distance of a box's side (16 in YOLOv8)."""


class Conv(nn.Module):
    """Convolution, batch norm, SiLU."""

    def __init__(self, inputs, outputs, kernel=1, stride=1):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        self.act = nn.SiLU(inplace=True)

    def forward(self, x):
        return self.act(self.bn(self.conv(x)))


class Bottleneck(nn.Module):
    """Two convolutions with a shortcut if asked for."""

    def __init__(self, channels, shortcut):
        super().__init__()
        self.cv1, self.cv2 = Conv(channels, channels, 3), Conv(channels, channels, 3)
        self.add = shortcut

    def forward(self, x):
        return x + self.cv2(self.cv1(x)) if self.add else self.cv2(self.cv1(x))


class C2f(nn.Module):
    """Splits in two, runs bottlenecks on one half, concatenates all that there was."""

    def __init__(self, inputs, outputs, n=1, shortcut=False):
        super().__init__()
        self.c = outputs // 2
        self.cv1 = Conv(inputs, 2 * self.c)
        self.cv2 = Conv((2 + n) * self.c, outputs)
        self.m = nn.ModuleList(Bottleneck(self.c, shortcut) for _ in range(n))

    def forward(self, x):
        y = list(self.cv1(x).chunk(2, 1))
        y.extend(m(y[-1]) for m in self.m)
        return self.cv2(torch.cat(y, 1))


class C2fSplit(C2f):
    """The same by ``split`` with numbers from the code, as exporters want it."""

    def forward(self, x):
        y = list(self.cv1(x).split((self.c, self.c), 1))
        y.extend(m(y[-1]) for m in self.m)
        return self.cv2(torch.cat(y, 1))


class SPPF(nn.Module):
    """Poolings behind each other, concatenated."""

    def __init__(self, inputs, outputs, k=5):
        super().__init__()
        self.cv1, self.cv2 = Conv(inputs, inputs // 2), Conv(inputs // 2 * 4, outputs)
        self.m = nn.MaxPool2d(k, 1, k // 2)

    def forward(self, x):
        y = [self.cv1(x)]
        y.extend(self.m(y[-1]) for _ in range(3))
        return self.cv2(torch.cat(y, 1))


class Concat(nn.Module):
    """Concatenates channels."""

    def forward(self, x):
        return torch.cat(x, 1)


class DFL(nn.Module):
    """The mean of a distribution over bins, as a convolution of fixed weights."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(BINS, 1, 1, bias=False).requires_grad_(False)
        self.conv.weight.data[:] = torch.arange(BINS, dtype=torch.float).view(1, BINS, 1, 1)

    def forward(self, x):
        b, _, a = x.shape
        return self.conv(x.view(b, 4, BINS, a).transpose(2, 1).softmax(1)).view(b, 4, a)


class Detect(nn.Module):
    """Boxes and classes of several levels."""

    def __init__(self, classes, channels, strides):
        super().__init__()
        self.nc, self.nl, self.no = classes, len(channels), classes + 4 * BINS
        self.shape, self.anchors, self.strides = None, torch.empty(0), torch.empty(0)
        self.stride = torch.tensor(strides, dtype=torch.float)
        c2, c3 = max(16, channels[0] // 4, 4 * BINS), max(channels[0], min(classes, 100))
        self.cv2 = nn.ModuleList(
            nn.Sequential(Conv(c, c2, 3), Conv(c2, c2, 3), nn.Conv2d(c2, 4 * BINS, 1))
            for c in channels
        )
        self.cv3 = nn.ModuleList(
            nn.Sequential(Conv(c, c3, 3), Conv(c3, c3, 3), nn.Conv2d(c3, classes, 1))
            for c in channels
        )
        self.dfl = DFL()

    def forward(self, x):
        for i in range(self.nl):
            x[i] = torch.cat((self.cv2[i](x[i]), self.cv3[i](x[i])), 1)
        if self.training:
            return x
        shape = x[0].shape
        flat = torch.cat([xi.view(shape[0], self.no, -1) for xi in x], 2)
        if self.shape != shape:
            self.anchors, self.strides = self.make_anchors(x)
            self.shape = shape
        box, cls = flat.split((4 * BINS, self.nc), 1)
        lt, rb = self.dfl(box).chunk(2, 1)
        anchors = self.anchors.unsqueeze(0)
        a, b = anchors - lt, anchors + rb
        boxes = torch.cat(((a + b) / 2, b - a), 1) * self.strides
        return torch.cat((boxes, cls.sigmoid()), 1), x

    def make_anchors(self, features):
        points, strides = [], []
        for i, feature in enumerate(features):
            _, _, h, w = feature.shape
            sx = torch.arange(w, device=feature.device, dtype=feature.dtype) + 0.5
            sy = torch.arange(h, device=feature.device, dtype=feature.dtype) + 0.5
            sy, sx = torch.meshgrid(sy, sx, indexing="ij")
            points.append(torch.stack((sx, sy), -1).view(-1, 2))
            strides.append(torch.full((h * w, 1), self.stride[i], dtype=feature.dtype))
        return torch.cat(points).t(), torch.cat(strides).t()


class Yolo(nn.Module):
    """The modules in a list; ``f`` says what each reads: -1 the one before, or numbers."""

    def __init__(self, classes=3, width=16, block=C2f):
        super().__init__()
        w = width
        rows = [
            (-1, Conv(3, w, 3, 2)),
            (-1, Conv(w, 2 * w, 3, 2)),
            (-1, block(2 * w, 2 * w, 1, shortcut=True)),
            (-1, Conv(2 * w, 4 * w, 3, 2)),
            (-1, block(4 * w, 4 * w, 2, shortcut=True)),
            (-1, SPPF(4 * w, 4 * w)),
            (-1, nn.Upsample(None, 2, "nearest")),
            ([-1, 2], Concat()),
            (-1, block(6 * w, 2 * w)),
            (-1, Conv(2 * w, 2 * w, 3, 2)),
            ([-1, 5], Concat()),
            (-1, block(6 * w, 4 * w)),
            ([8, 11], Detect(classes, (2 * w, 4 * w), (4, 8))),
        ]
        for i, (f, m) in enumerate(rows):
            m.f, m.i = f, i
        self.model = nn.Sequential(*(m for _, m in rows))
        self.save = [2, 5, 8, 11]

    def forward(self, x):
        y = []
        for m in self.model:
            if m.f != -1:
                read = [x if j == -1 else y[j] for j in ([m.f] if isinstance(m.f, int) else m.f)]
                x = read[0] if isinstance(m.f, int) else read
            x = m(x)
            y.append(x if m.i in self.save else None)
        return x
