"""Train one run of the queue by its config, from its checkpoint if there is one, and test it.

``python tools/gpu/fit_and_test.py CONFIG.yaml LAST.ckpt [RESUME.ckpt]``
"""

from __future__ import annotations

import os
import sys
import threading
import time

from ssl_lightning.cli import main


def fit_and_test(config: str, last: str, resume: str | None = None) -> int:
    """Return 0 if both worked."""
    resumed = [] if resume is None else ["--ckpt_path", resume]
    if status := main(["fit", "--config", config, *resumed]):
        return status
    test = ["test", "--config", config, "--model.compile", "false", "--ckpt_path", last]
    return main(test)


def end_with(parent: int) -> None:
    """End this process when the one that started it has ended."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=end_with, args=[os.getppid()], daemon=True).start()
    sys.exit(fit_and_test(*sys.argv[1:]))
