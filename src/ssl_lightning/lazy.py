"""Import the public names of a package when they are first used."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any


def attach(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Make ``__getattr__`` and ``__dir__`` of a package out of its ``if TYPE_CHECKING:`` block.

    The imports in that block are for type checkers; here they say which module each name is
    imported from. So every name is written in one place, apart from ``__all__``.

    Args:
        package: ``__name__`` of the package. Its ``__all__`` must be set before the call.

    Returns:
        The functions ``__getattr__`` and ``__dir__`` of the package.

    Example:
        The end of a package's ``__init__.py``::

            if TYPE_CHECKING:
                from my_package.large import something

            __all__ = ["something"]
            __getattr__, __dir__ = lazy.attach(__name__)

        >>> import ssl_lightning
        >>> ssl_lightning.benchmark.__module__
        'ssl_lightning.measure.latency'
    """
    module = sys.modules[package]
    homes = deferred_imports(module.__spec__.loader.get_source(package))  # type: ignore[union-attr]

    def getattr_(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        if homes[name] == package:  # `from package import submodule`
            return import_module(f"{package}.{name}")
        return getattr(import_module(homes[name]), name)

    def dir_() -> list[str]:
        return sorted(module.__all__)

    return getattr_, dir_


def deferred_imports(source: str) -> dict[str, str]:
    r"""Return the names imported under ``if TYPE_CHECKING:`` and the module each comes from.

    Example:
        >>> deferred_imports("if TYPE_CHECKING:\n    from a.b import c, d")
        {'c': 'a.b', 'd': 'a.b'}
    """
    return {
        alias.name: node.module or ""
        for block in ast.parse(source).body
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in block.body
        if isinstance(node, ast.ImportFrom) and node.module != "typing"
        for alias in node.names
    }
