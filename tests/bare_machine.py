"""Processes that see neither a network nor more modules than a bare machine with a GPU has."""

from __future__ import annotations

import os
from pathlib import Path

from conftest import ROOT

THERE = """PIL _distutils_hack aiohttp attr certifi charset_normalizer contourpy cycler dateutil
einops filelock fontTools fsspec functorch huggingface_hub idna jinja2 kiwisolver lightning
lightning_fabric lightning_utilities markdown_it markupsafe matplotlib mdurl mpl_toolkits mpmath
networkx numpy packaging pkg_resources psutil pygments pyparsing pytorch_lightning requests rich
safetensors setuptools six sympy timm torch torchgen torchmetrics torchvision tqdm triton
typing_extensions urllib3 yaml"""
"""Third-party modules of a machine with torch, lightning, timm and matplotlib."""
PACKED = "docstring_parser jsonargparse typeshed_client"

BARE = f"""
import importlib.machinery, sys

allowed = {{*{(THERE + " " + PACKED).split()!r}, *sys.stdlib_module_names, "ssl_lightning",
    "sitecustomize", *{sorted(path.stem for path in (ROOT / "tools" / "gpu").glob("*.py"))!r}}}

class Bare(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        top, spec = name.partition(".")[0], super().find_spec(name, path, target)
        places = [] if spec is None else [spec.origin, *(spec.submodule_search_locations or [])]
        if any("_vendor" in str(place) for place in places):  # of setuptools
            return spec
        return spec if top in allowed or top.startswith(("_", "cuda", "nvidia")) else None

    @classmethod
    def find_distributions(cls, *arguments, **named):
        # without those of hidden modules, which others would import where they are installed
        for found in super().find_distributions(*arguments, **named):
            name = found.name.replace("-", "_")
            if super().find_spec(name) is None or cls.find_spec(name) is not None:
                yield found

def offline(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto", "socket.bind"):
        raise OSError(f"no network: {{event}} {{arguments}}")

sys.meta_path[2:] = [Bare]  # after those of builtin and frozen modules
sys.addaudithook(offline)
"""


def bare_environment(folder: Path) -> dict[str, str]:
    """Write what makes Python so into a folder; return the environment of such processes."""
    folder.mkdir(parents=True)
    (folder / "sitecustomize.py").write_text(BARE)
    inherited = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "SSL_DATA_DIR")}
    paths = os.pathsep.join([str(folder), str(ROOT / "src")])
    return {**inherited, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
