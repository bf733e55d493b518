"""Runs stages of the GPU script as a user would."""

from __future__ import annotations

import os
import subprocess
import sys

from conftest import ROOT

sys.path.append(str(ROOT / "tools" / "gpu"))


def run_stage(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the script in a process of its own."""
    command = [sys.executable, "-W", "ignore", str(ROOT / "tools" / "gpu" / "run.py"), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment, timeout=500
    )
