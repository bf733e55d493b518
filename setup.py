"""Everything is in pyproject.toml; this only puts the small entries of zoo/ into the wheel."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ZOO = Path(__file__).resolve().parent / "zoo"
LARGEST = 2_000_000
"""Bytes of an entry that still ships; larger ones are pulled."""


class BuildWithZoo(build_py):
    """Copy the small entries beside the code that reads them."""

    def run(self) -> None:
        """Build as usual; an editable installation reads zoo/ itself."""
        super().run()
        if self.editable_mode:
            return
        models = Path(self.build_lib, "ssl_lightning", "zoo", "models")
        shutil.rmtree(models, ignore_errors=True)
        for card in sorted(ZOO.glob("*/card.json")):
            entry = card.parent
            if sum(path.stat().st_size for path in entry.iterdir()) <= LARGEST:
                shutil.copytree(entry, models / entry.name)


setup(cmdclass={"build_py": BuildWithZoo})
