"""Everything is in pyproject.toml; this is about the form of what is built.

The small entries of zoo/ come into the wheel, wheels suit every Python, and whoever builds the same
sources at the same SOURCE_DATE_EPOCH with the same tools gets the same files, byte for byte.
"""

import gzip
import os
import shutil
import tarfile
import time
from pathlib import Path

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

ZOO = Path(__file__).resolve().parent / "zoo"
LARGEST = 2_000_000
"""Bytes of an entry that still ships; larger ones are pulled."""


class BuildWithZoo(build_py):
    """Copy the small entries beside the code that reads them."""

    def run(self) -> None:
        """Build as usual, without what earlier builds left; an editable one reads zoo/ itself."""
        package = Path(self.build_lib, "ssl_lightning")
        if self.editable_mode:
            super().run()
            return
        shutil.rmtree(package, ignore_errors=True)
        super().run()
        for card in sorted(ZOO.glob("*/card.json")):
            entry = card.parent
            if sum(path.stat().st_size for path in entry.iterdir()) <= LARGEST:
                shutil.copytree(entry, package / "zoo" / "models" / entry.name)


class BuildWithoutPaths(build_ext):
    """Leave Python's own folder, where its linker flags name one, out of the library."""

    def build_extensions(self) -> None:
        """Build as usual: the library needs nothing but libc."""
        linker = getattr(self.compiler, "linker_so", None)
        if linker:
            named = ("-Wl,-rpath,", "-Wl,-rpath=")
            self.compiler.linker_so = [part for part in linker if not part.startswith(named)]
        super().build_extensions()


class WheelForAnyPython(bdist_wheel):
    """The library has no interface of Python; without it a wheel suits any machine, too."""

    def run(self) -> None:
        """Build first, to see whether there is a library."""
        self.run_command("build")
        build_lib = self.get_finalized_command("build").build_lib
        if not any(Path(build_lib).rglob("_column_sparse*")):
            self.distribution.ext_modules = []
            self.root_is_pure = True
        super().run()

    def get_tag(self) -> tuple[str, str, str]:
        """Keep the platform only."""
        return "py3", "none", super().get_tag()[2]


class SdistOfNobody(sdist):
    """A tar file that does not say who made it, where and when, but for SOURCE_DATE_EPOCH."""

    def make_archive(self, base_name, format, root_dir=None, base_dir=None, **owner):  # noqa: A002
        """Write ``base_dir`` in the order of names, with one time and no owner."""
        if format != "gztar":
            return super().make_archive(base_name, format, root_dir, base_dir, **owner)
        now = int(os.environ.get("SOURCE_DATE_EPOCH", time.time()))

        def without_owner(member: tarfile.TarInfo) -> tarfile.TarInfo:
            member.mtime, member.uid, member.gid, member.uname, member.gname = now, 0, 0, "", ""
            member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
            return member

        archive = Path(f"{base_name}.tar.gz")
        archive.parent.mkdir(parents=True, exist_ok=True)
        with (
            archive.open("wb") as raw,
            gzip.GzipFile("", "wb", fileobj=raw, mtime=now) as packed,
            tarfile.open(fileobj=packed, mode="w") as tar,
        ):
            tar.add(base_dir, filter=without_owner)
        return str(archive)


os.umask(0o022)  # modes are written into wheels
setup(
    cmdclass={
        "bdist_wheel": WheelForAnyPython,
        "build_ext": BuildWithoutPaths,
        "build_py": BuildWithZoo,
        "sdist": SdistOfNobody,
    }
)
