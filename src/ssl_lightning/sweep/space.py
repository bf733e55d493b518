"""What a sweep searches: which values of a config may be which, read from YAML."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssl_lightning.parsing import parse_yaml
from ssl_lightning.suggest import nearest, shortened
from ssl_lightning.sweep.paths import get_at, set_at

if TYPE_CHECKING:
    from optuna.trial import Trial

FORMS = {
    "log": "{log: [low, high]}",
    "uniform": "{uniform: [low, high]}",
    "int": "{int: [low, high]}",
    "choice": "{choice: [a, b]}",
}
"""Kind of a dimension -> how it is written."""

WANDB = {"log": "log_uniform_values", "uniform": "uniform", "int": "int_uniform"}
"""Kind of a range -> what Weights & Biases calls it."""

NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


@dataclass(frozen=True)
class Dimension:
    """The values that one entry of a config may have.

    Attributes:
        kind: ``log`` (uniform in the logarithm), ``uniform``, ``int`` or ``choice``.
        values: lowest and highest value, both included; of ``choice`` all values.
    """

    kind: str
    values: tuple[Any, ...]

    def suggest(self, trial: Trial, name: str) -> Any:
        """Return the value that a trial has, or let the study's sampler choose one."""
        if self.kind == "choice":
            return trial.suggest_categorical(name, self.values)
        low, high = self.values
        if self.kind == "int":
            return trial.suggest_int(name, low, high)
        return trial.suggest_float(name, low, high, log=self.kind == "log")

    def for_wandb(self) -> dict[str, Any]:
        """Return the same as a parameter of a Weights & Biases sweep.

        Example:
            >>> Dimension("log", (0.001, 0.1)).for_wandb()
            {'distribution': 'log_uniform_values', 'min': 0.001, 'max': 0.1}
        """
        if self.kind == "choice":
            return {"distribution": "categorical", "values": list(self.values)}
        low, high = self.values
        return {"distribution": WANDB[self.kind], "min": low, "max": high}


@dataclass(frozen=True)
class Space:
    """Dotted path into a config -> the values it may have; parts that are numbers count in lists.

    Example:
        >>> space = Space.from_data({"model.penalties.0.strength": {"log": [1e-4, 1e-2]}}, "space")
        >>> space.dimensions["model.penalties.0.strength"].values
        (0.0001, 0.01)
    """

    dimensions: Mapping[str, Dimension]

    @staticmethod
    def from_file(path: str | Path) -> Space:
        """Return the space that a YAML file holds.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: as :meth:`from_data`.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(
                f"--space: no file {path}. Give a YAML file such as configs/sweep/"
                "lenet_strength.yaml."
            )
        return Space.from_data(parse_yaml(Path(path).read_text(), str(path)), str(path))

    @staticmethod
    def from_data(data: Mapping[Any, Any], where: str) -> Space:
        """Return the space that plain values describe.

        Args:
            data: dotted path -> ``{log: [low, high]}``, ``{uniform: [low, high]}``,
                ``{int: [low, high]}`` or ``{choice: [a, b]}``.
            where: it was found, for messages.

        Raises:
            ValueError: if there is nothing to search, or a dimension is none.
        """
        if not data:
            raise ValueError(
                f"{where}: expected keys of the config such as `model.penalties.0.strength: "
                f"{FORMS['log']}`, got none."
            )
        read = {str(key): dimension(given, f"{where}: `{key}`") for key, given in data.items()}
        for key in read:
            if inside := [other for other in read if other.startswith(f"{key}.")]:
                raise ValueError(
                    f"{where}: `{inside[0]}` is a part of `{key}`, so that one would undo the "
                    "other. Leave one out."
                )
        return Space(read)

    def check(self, config: Mapping[str, Any], where: str) -> None:
        """Make sure that everything that is searched is in a config.

        Raises:
            ValueError: naming what is not, and the nearest that is.
        """
        for key in self.dimensions:
            try:
                get_at(config, key)
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from error

    def suggest(self, trial: Trial) -> dict[str, Any]:
        """Return the values of a trial; those it does not have yet are drawn."""
        return {key: found.suggest(trial, key) for key, found in self.dimensions.items()}

    def corners(self) -> Iterator[dict[str, Any]]:
        """Yield sets of values that have each lowest, each highest and each choice at least once.

        Example:
            >>> data = {"a": {"int": [1, 9]}, "b": {"choice": ["x", "y", "z"]}}
            >>> list(Space.from_data(data, "space").corners())
            [{'a': 1, 'b': 'x'}, {'a': 9, 'b': 'y'}, {'a': 1, 'b': 'z'}]
        """
        for i in range(max(len(found.values) for found in self.dimensions.values())):
            yield {k: found.values[i % len(found.values)] for k, found in self.dimensions.items()}

    def as_data(self) -> dict[str, Any]:
        """Return plain values that :meth:`from_data` takes."""
        return {key: {found.kind: list(found.values)} for key, found in self.dimensions.items()}


def with_values(config: Any, values: Mapping[str, Any]) -> Any:
    """Return a copy of a config of plain values with others at some places."""
    changed = copy.deepcopy(config)
    for path, value in values.items():
        set_at(changed, path, value)
    return changed


def dimension(given: Any, where: str) -> Dimension:
    """Return the dimension that plain values describe.

    Raises:
        ValueError: if they are none, saying where and what was expected.

    Example:
        >>> dimension({"int": [1, 4]}, "`trainer.max_epochs`")
        Dimension(kind='int', values=(1, 4))
        >>> dimension({"log": [0, 1]}, "`model.lr`")
        Traceback (most recent call last):
        ...
        ValueError: `model.lr`: expected 0 < low for `log`, got [0, 1]. Use `uniform`, or raise low.
    """
    if not isinstance(given, dict) or len(given) != 1:
        forms = ", ".join(FORMS.values())
        raise ValueError(f"{where}: expected one of {forms}, got {shortened(given)}.")
    ((kind, values),) = given.items()
    if kind not in FORMS:
        raise ValueError(
            f"{where}: there is no distribution {shortened(kind)}. {nearest(kind, FORMS)}"
        )
    if not isinstance(values, list):
        raise ValueError(f"{where}: expected {FORMS[kind]}, got {shortened(given)}.")
    read = [number(value) for value in values]
    check = check_choice if kind == "choice" else check_range
    check(kind, read, where)
    whole = kind in ("int", "choice")
    return Dimension(kind, tuple(read if whole else map(float, read)))


def check_choice(kind: str, values: list[Any], where: str) -> None:
    """Refuse what is no list of different plain values."""
    plain = all(isinstance(value, (str, bool, int, float)) for value in values)
    if not plain or len(set(values)) < max(2, len(values)):
        raise ValueError(
            f"{where}: expected two or more different numbers, words or booleans, as in "
            f"{FORMS[kind]}, got {shortened(values)}."
        )


def check_range(kind: str, values: list[Any], where: str) -> None:
    """Refuse what is no lowest and highest value."""
    wanted = int if kind == "int" else (int, float)
    numbers = all(isinstance(v, wanted) and not isinstance(v, bool) for v in values)
    if len(values) != 2 or not numbers or not all(map(math.isfinite, values)):
        what = "whole numbers" if kind == "int" else "finite numbers"
        raise ValueError(
            f"{where}: expected two {what}, as in {FORMS[kind]}, got {shortened(values)}."
        )
    low, high = values
    if low >= high:
        raise ValueError(f"{where}: expected low < high, got {values}. Exchange or change them.")
    if kind == "log" and low <= 0:
        raise ValueError(
            f"{where}: expected 0 < low for `log`, got {values}. Use `uniform`, or raise low."
        )


def number(value: Any) -> Any:
    """Return the number that a word stands for: to YAML ``1e-3``, without a point, is a word.

    Example:
        >>> number("1e-3"), number("12"), number("lenet"), number(True)
        (0.001, 12, 'lenet', True)
    """
    if isinstance(value, str) and NUMBER.fullmatch(value.strip()):
        return float(value) if set(value) & set(".eE") else int(value)
    return value
