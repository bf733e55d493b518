"""CUDA's service through which processes use one GPU at the same time, where it can be had.

Without it their kernels take turns. It changes no setting of the device, and is ended afterwards.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

CONTROL = "nvidia-cuda-mps-control"
PROBE = "import torch; torch.zeros(1, device='cuda').item()"


def start(folder: Path) -> dict[str, str] | None:
    """Start the service below a folder; return the environment of its clients, None without it."""
    if shutil.which(CONTROL) is None:
        return None
    places = {"CUDA_MPS_PIPE_DIRECTORY": folder / "mps", "CUDA_MPS_LOG_DIRECTORY": folder / "mps"}
    (folder / "mps").mkdir(parents=True, exist_ok=True)
    clients = {name: str(place) for name, place in places.items()}
    environment = {**os.environ, **clients}
    try:
        subprocess.run([CONTROL, "-d"], env=environment, check=True, timeout=20)
        subprocess.run([sys.executable, "-c", PROBE], env=environment, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        print(f"Without {CONTROL}: {error}", flush=True)
        stop(clients)
        return None
    return clients


def stop(clients: dict[str, str] | None) -> None:
    """End the service that :func:`start` started."""
    if clients is None:
        return
    try:
        environment = {**os.environ, **clients}
        subprocess.run([CONTROL], input="quit\n", text=True, env=environment, timeout=10)
    except (OSError, subprocess.SubprocessError) as error:
        print(f"{CONTROL} did not end: {error}", flush=True)
