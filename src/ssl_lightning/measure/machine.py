"""What a measurement depends on besides the model: the machine, the versions, the layout."""

import os
import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch import Tensor

from ssl_lightning.measure.record import Machine

SMALL = ("avx_vnni", "avx512_vnni", "amx_int8", "avx512_bf16", "amx_bf16")
"""Instructions for numbers of eight and sixteen bits, as torch names them."""
CPUINFO = Path("/proc/cpuinfo")  # Linux; elsewhere the platform's own name is taken


def machine(device: torch.device) -> Machine:
    """Describe the machine and the versions in use.

    Example:
        >>> machine(torch.device("cpu")).device
        'cpu'
    """
    return Machine(
        processor=_processor(device),
        num_cores=os.cpu_count() or 1,
        device=device.type,
        python=platform.python_version(),
        torch=str(torch.__version__),
    )


def instructions() -> tuple[str, ...]:
    """Return the instructions of this processor for small numbers."""
    found: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return tuple(name for name in SMALL if found.get(name))


def package_versions(packages: Iterable[str]) -> dict[str, str]:
    """Return package -> version of those that are installed, by name.

    Example:
        >>> list(package_versions(["torch", "numpy", "no-such-package"]))
        ['numpy', 'torch']
    """
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return dict(sorted(found.items()))


def memory_format(x: Tensor) -> str:
    """Return ``"channels_last"`` if only that format describes the tensor, else ``"contiguous"``.

    Example:
        >>> memory_format(torch.zeros(1, 3, 4, 4).to(memory_format=torch.channels_last))
        'channels_last'
    """
    if x.dim() == 4 and not x.is_contiguous():
        return "channels_last" if x.is_contiguous(memory_format=torch.channels_last) else "strided"
    return "contiguous" if x.is_contiguous() else "strided"


def _processor(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if CPUINFO.exists():
        for line in CPUINFO.read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine() or "unknown"
