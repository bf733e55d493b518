"""Random small networks: always exact, no exception."""

import random

import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from nets_with_zeros import assert_same, check_equal, randomise_, zero_randomly_

# --- a grammar of small networks -----------------------------------------------------------------


class Random(nn.Module):
    """A chain of random steps on a map of channels; each step may read two earlier values."""

    def __init__(self, seed):
        super().__init__()
        self.rng = random.Random(seed)
        self.layers = nn.ModuleDict()
        self.plan = []
        self.build(torch.zeros(1, 4, 8, 8))

    def layer(self, make):
        """Return a new layer, or now and then an earlier one of the same sizes."""
        new = make()
        same = [k for k, m in self.layers.items() if str(m) == str(new)]
        if same and self.rng.random() < 0.5:
            return self.rng.choice(same)
        self.layers[f"l{len(self.layers)}"] = new
        return f"l{len(self.layers) - 1}"

    def build(self, x):
        with torch.no_grad():
            values = [x]
            for _ in range(self.rng.randint(3, 9)):
                step = self.step(values)
                self.plan.append(step)
                values.append(self.run(step, values))
            self.head = nn.Linear(values[-1].shape[1], 3)

    def step(self, values):
        """Return (kind, layer or argument, indices of the values read)."""
        a = self.rng.choice([len(values) - 1] * 3 + list(range(len(values))))
        c = values[a].shape[1]
        out = self.rng.choice([2, 4, 6, 8])
        alike = [i for i, v in enumerate(values) if v.shape == values[a].shape]
        near = [i for i, v in enumerate(values) if v.shape[2:] == values[a].shape[2:]]
        options = {
            "conv": lambda: (self.layer(lambda: self.conv(c, out)), [a]),
            "depthwise": lambda: (
                self.layer(lambda: nn.Conv2d(c, 2 * c, 3, groups=c, padding=1)),
                [a],
            ),
            "bn": lambda: (self.layer(lambda: nn.BatchNorm2d(c)), [a]),
            "lrn": lambda: (self.layer(lambda: nn.LocalResponseNorm(self.rng.randint(2, 5))), [a]),
            "relu": lambda: (self.rng.random() < 0.5, [a]),
            "sigmoid": lambda: (None, [a]),
            "gelu": lambda: (None, [a]),
            "pool": lambda: (self.rng.choice(["max", "avg"]), [a]),
            "add": lambda: (None, [a, self.rng.choice(alike)]),
            "mul": lambda: (None, [a, self.rng.choice(alike)]),
            "cat": lambda: (None, [a, self.rng.choice(near)]),
            "half": lambda: (self.rng.randint(0, 1), [a]),
            "shuffle": lambda: (None, [a]),
            "pad": lambda: (self.rng.choice([0, 1]), [a]),
            "gate": lambda: (self.layer(lambda: nn.Conv2d(c, c, 1)), [a]),
            "mean": lambda: (None, [a]),
            "pixel": lambda: (None, [a]),
            "softmax": lambda: (None, [a]),
        }
        kinds = [k for k in options if k not in ("half", "shuffle") or (c > 1 and c % 2 == 0)]
        kinds = [k for k in kinds if k != "pixel" or c % 4 == 0]
        kinds = [k for k in kinds if (k != "cat" and k != "depthwise") or c < 24]
        kind = self.rng.choice([*kinds, "conv", "conv", "conv", "bn", "add"])
        return kind, *options[kind]()

    def conv(self, c, out):
        groups = self.rng.choice([g for g in (1, 1, 2, 4) if c % g == 0 and out % g == 0])
        bias, k = self.rng.random() < 0.5, self.rng.choice([1, 3])
        return nn.Conv2d(c, out, k, padding=k // 2, groups=groups, bias=bias)

    def run(self, step, values):
        kind, what, (a, *b) = step
        x = values[a]
        n, c, h, w = x.shape
        if kind in ("conv", "depthwise", "bn", "lrn"):
            return self.layers[what](x)
        if kind == "gate":
            return x * torch.sigmoid(self.layers[what](x.mean((2, 3), keepdim=True)))
        if kind == "relu":  # in place, on a copy: other steps read x
            return F.relu_(x.clone()) if what else F.relu(x)
        if kind == "shuffle":
            return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        if kind == "pool":
            pool = F.max_pool2d if what == "max" else F.avg_pool2d
            return pool(x, 3, 1, 1, ceil_mode=True)
        return {
            "sigmoid": lambda: torch.sigmoid(x),
            "gelu": lambda: F.gelu(x),
            "add": lambda: x + values[b[0]],
            "mul": lambda: x * values[b[0]],
            "cat": lambda: torch.cat([x, values[b[0]]], 1),
            "half": lambda: x.chunk(2, dim=1)[what],
            "pad": lambda: F.pad(x, (1, 0, 0, 1), value=float(what))[:, :, 1:, 1:],
            "mean": lambda: x - x.mean((2, 3), keepdim=True),
            "pixel": lambda: F.avg_pool2d(F.pixel_shuffle(x, 2), 2),
            "softmax": lambda: F.softmax(x, 1),
        }[kind]()

    def forward(self, x):
        values = [x]
        for step in self.plan:
            values.append(self.run(step, values))
        return self.head(values[-1].flatten(2).mean(2)), values[-1].amax((1, 2, 3))


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(st.integers(0, 10**9), st.sampled_from([0.2, 0.5, 0.8]), st.booleans())
def test_random_networks(seed, fraction, norms):
    torch.manual_seed(seed)
    net = randomise_(Random(seed).eval(), seed)
    x = torch.zeros(1, 4, 8, 8)
    zero_randomly_(net, x, fraction, seed, norms)
    small, _ = check_equal(net, x)
    other_size = torch.randn(2, 4, 11, 6)  # plans know no image size
    assert_same(net, small, other_size, tolerance=1e-5)
