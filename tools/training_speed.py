"""How many images a second a network is trained on: where torch.compile and bfloat16 pay.

``python tools/training_speed.py resnet20 convnet --threads 1``

Each form has a network of its own with the same weights and trains on the same batch of random
images; the forms take turns, and ratios are medians over the rounds. Then a profile of the plain
form says which operations take the time. Run it on an idle machine; ``--device cuda`` for a GPU.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch.profiler import profile

from ssl_lightning import create_backbone

FORMS = {
    "float32, contiguous": (False, False, torch.float32),
    "float32": (True, False, torch.float32),
    "float32, compiled": (True, True, torch.float32),
    "bfloat16": (True, False, torch.bfloat16),
    "bfloat16, compiled": (True, True, torch.bfloat16),
}
"""Name -> channels-last, torch.compile, type of the forward pass."""
PLAIN = "float32"
KINDS = {
    "convolution forward": ("mkldnn_convolution", "cudnn_convolution"),
    "convolution backward": ("convolution_backward",),
    "batch norm": ("batch_norm", "batch_norm_backward"),
    "ReLU": ("clamp_min", "threshold_backward", "relu"),
    "addition": ("add", "add_"),
}
"""What the profile calls a group of operations -> parts of their names in torch."""


def step_of(name: str, form: str, batch_size: int, device: str) -> Callable[[], None]:
    """Return a function that trains one step and waits for it."""
    channels_last, compiled, dtype = FORMS[form]
    torch.manual_seed(0)
    network = create_backbone(name).to(device)
    images = torch.randn(batch_size, *network.input_shape, device=device)
    if channels_last:
        network.to(memory_format=torch.channels_last)
        images = images.to(memory_format=torch.channels_last)
    if compiled:
        network.compile()
    labels = torch.randint(0, 10, (batch_size,), device=device)
    sgd = torch.optim.SGD(network.parameters(), 1e-3, 0.9, weight_decay=5e-4, nesterov=True)
    narrow = dtype != torch.float32

    def step() -> None:
        with torch.autocast(device, dtype) if narrow else nullcontext():
            loss = F.cross_entropy(network(images), labels)
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return step


def seconds(step: Callable[[], None]) -> float:
    """Return how long a step takes."""
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def shares(step: Callable[[], None], device: str) -> dict[str, float]:
    """Return the share of a step's time that each kind of operation takes, in percent."""
    with profile() as found:
        for _ in range(3):
            step()
    times = Counter[str]()
    for event in found.key_averages():
        name = event.key.removeprefix("aten::")
        kind = next(
            (
                k
                for k, parts in KINDS.items()
                if name in parts or name.removeprefix("native_") in parts
            ),
            "rest",
        )
        times[kind] += (
            event.self_device_time_total if device == "cuda" else event.self_cpu_time_total
        )
    return {kind: 100 * value / times.total() for kind, value in times.most_common()}


def main() -> None:
    """Print a table and a profile for each network."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("networks", nargs="+")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--forms", nargs="+", default=list(FORMS), choices=FORMS, metavar="FORM")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for name in args.networks:
        steps = {
            form: step_of(name, form, args.batch_size, args.device)
            for form in dict.fromkeys([PLAIN, *args.forms])
        }
        for step in steps.values():
            step(), step(), step()
        rounds = [{form: seconds(step) for form, step in steps.items()} for _ in range(args.rounds)]
        print(f"\n{name}, batches of {args.batch_size}, {args.device}, {args.threads} threads\n")
        print("| form | images/s | against float32 |\n|---|---|---|")
        for form in steps:
            images = args.batch_size / statistics.median(r[form] for r in rounds)
            ratio = statistics.median(r[PLAIN] / r[form] for r in rounds)
            print(f"| {form} | {images:,.0f} | {ratio:.2f} |")
        found = shares(steps[PLAIN], args.device)
        print(
            "\nOf a step in float32: "
            + ", ".join(f"{kind} {share:.0f} %" for kind, share in found.items())
        )


if __name__ == "__main__":
    main()
