"""What an engine is, and how a network gets to one that reads files."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn

from ssl_lightning.graph import Inputs
from ssl_lightning.measure.capturing import Captured, capture
from ssl_lightning.registry import check_name
from ssl_lightning.suggest import missing_packages, require

Call = Callable[[], object]
"""Computes, and returns the output: a tensor, or several in lists, tuples or mappings."""
Bind = Callable[[Inputs], Call]
"""From inputs to a call that computes with them; nothing but the computation is in the call."""


@dataclass(frozen=True)
class Engine:
    """What runs networks: as they are, in this process, or from a file that they are written to.

    An engine has ``prepare``, or ``export`` and ``load``, or all three.

    Attributes:
        name: in ``benchmark(engines=[name])``.
        prepare: from a network in evaluation mode and its inputs to a call without arguments.
            None: the network is written to a temporary file, which is loaded.
        export: writes a captured network to a path; there may be other files beside it.
        load: opens a file, for torch's present number of threads.
        split: cuts the file of a network whose n-th output needs its n-th input alone into files
            of one output each, at the given paths. Layers are then timed faster: writing a file
            takes about as long for fifty of them as for one.
        half: opens a file to compute in bfloat16.
        quantize: writes the file of a network in int8 from one in float32, calibrated on inputs.
        suffix: of its files, such as ``".onnx"``.
        format: in ``export_model(format=...)``; the name of the engine if empty.
        title: how messages call what runs a file; the name if empty.
        by_position: whether a file takes tensors by position and nothing else; other inputs then
            become part of the network.
        packages: modules that must be installed, beside torch.
        extra: extra of this package that installs them; empty if none does.
        any_operator: whether it runs layers whose operators only torch knows, such as
            :class:`~ssl_lightning.ColumnSparseConv2d`.
        dtypes: types that it computes in; empty for any.
        timed: whether ``engines="all"`` has it.

    Raises:
        ValueError: if it can neither run a network nor write one, or has no suffix for its files,
            and for a name, packages or types that are none.

    Example:
        >>> Engine("twice", prepare=lambda model, inputs: lambda: inputs.run(model)).available
        True
    """

    name: str
    prepare: Callable[[nn.Module, Inputs], Call] | None = None
    export: Callable[[Captured, Path], object] | None = None
    load: Callable[[Path], Bind] | None = None
    split: Callable[[Path, Sequence[Path]], object] | None = None
    half: Callable[[Path], Bind] | None = None
    quantize: Callable[[Path, Path, Sequence[Inputs]], object] | None = None
    suffix: str = ""
    format: str = ""
    title: str = ""
    by_position: bool = True
    packages: tuple[str, ...] = ()
    extra: str = ""
    any_operator: bool = False
    dtypes: tuple[torch.dtype, ...] = ()
    timed: bool = True

    def __post_init__(self) -> None:
        files = (self.export is not None, self.load is not None, bool(self.suffix))
        if len(set(files)) > 1 or not (self.prepare or all(files)):
            raise ValueError(
                f"Engine {self.name!r}: expected `prepare`, or `export`, `load` and `suffix`, or "
                "all of them. Say how it runs a network."
            )
        check_name("Engine", self.name)
        whole = {"packages": (self.packages, str), "dtypes": (self.dtypes, torch.dtype)}
        for field, (values, kind) in whole.items():
            if not isinstance(values, tuple) or not all(isinstance(v, kind) for v in values):
                raise ValueError(
                    f"Engine {self.name!r}: expected a tuple of `{field}`, each a "
                    f"{kind.__name__}, got {values!r}. Give a tuple, of one too."
                )
        if self.name == "all":
            raise ValueError("Engine: the name 'all' means every engine. Take another.")
        if self.suffix and not self.suffix.startswith("."):
            raise ValueError(
                f"Engine {self.name!r}: expected a suffix such as '.onnx', got {self.suffix!r}. "
                "Begin it with a dot."
            )

    @property
    def available(self) -> bool:
        """Whether its packages are installed."""
        return not self.missing()

    def missing(self) -> list[str]:
        """Return the packages that would have to be installed."""
        return missing_packages(self.packages)

    def require(self) -> None:
        """Make sure that its packages are installed.

        Raises:
            ValueError: if not.
        """
        what = f"The engine {self.name!r}"
        require(what, self.packages, self.extra, "or leave the engine out")


def prepare_by_file(engine: Engine, model: nn.Module, inputs: Inputs) -> Call:
    """Write a network to a temporary file, load it, and bind the inputs."""
    assert engine.export is not None
    assert engine.load is not None
    with TemporaryDirectory() as folder, quiet(), torch.inference_mode(False), torch.no_grad():
        path = Path(folder, f"network{engine.suffix}")
        own = inputs.map(lambda x: x.contiguous().clone())
        engine.export(capture(model, own, flat=engine.by_position), path)
        return engine.load(path)(own)


class SideBySide(nn.Module):
    """Networks of one input each, as one network of as many inputs and outputs.

    Example:
        >>> both = SideBySide([nn.Linear(3, 2), nn.ReLU()])
        >>> [tuple(y.shape) for y in both(torch.zeros(1, 3), torch.zeros(4))]
        [(1, 2), (4,)]
    """

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return each part's result for its own input."""
        return tuple(part(x) for part, x in zip(self.parts, inputs, strict=True))


def prepare_side_by_side(
    engine: Engine, parts: Sequence[tuple[nn.Module, torch.Tensor]]
) -> list[Call]:
    """Write networks of one input each to one temporary file, cut it, and load the pieces."""
    assert engine.export is not None
    assert engine.load is not None
    assert engine.split is not None
    with TemporaryDirectory() as folder, quiet(), torch.inference_mode(False), torch.no_grad():
        whole = Path(folder, f"whole{engine.suffix}")
        own = [x.contiguous().clone() for _, x in parts]
        network = SideBySide([part for part, _ in parts]).eval()
        engine.export(capture(network, Inputs(*own), flat=engine.by_position), whole)
        paths = [Path(folder, f"part{number}{engine.suffix}") for number in range(len(parts))]
        engine.split(whole, paths)
        return [engine.load(path)(Inputs(x)) for path, x in zip(paths, own, strict=True)]


@contextmanager
def quiet() -> Iterator[None]:
    """Hold back what exporters, compilers and trainers say about themselves."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
