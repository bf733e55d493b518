"""What is wrong with configs that the parser would take, or of which it would not name the file."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from ssl_lightning.cli.parser_errors import no_option
from ssl_lightning.suggest import nearest, shortened, there_are

FLAGS = ("-c", "--config")


def files_given(arguments: Sequence[str]) -> Iterator[Path]:
    """Yield the files that follow ``--config``.

    Example:
        >>> [str(path) for path in files_given(["--config=a.yaml", "-c", "b.yaml", "c.yaml"])]
        ['a.yaml', 'b.yaml']
    """
    for argument, following in zip(arguments, [*arguments, ""][1:], strict=True):
        flag, equals, value = argument.partition("=")
        if flag in FLAGS:
            yield Path(value if equals else following)


def like_it(path: Path) -> str:
    """Return a sentence with configs in the same folder whose names are near; empty if none is.

    Example:
        >>> like_it(Path("no_such_folder/lenet.yaml"))
        ''
    """
    beside = [file.stem for file in path.parent.glob("*.yaml")]
    near = nearest(path.stem, beside)
    return near if near.startswith("Did") else ""


def mistake_in(path: Path, options: Collection[str]) -> str | None:
    """Return a sentence about the first mistake in a config, or None.

    Args:
        path: of the config; what cannot be the name of one is the parser's affair.
        options: names of all options, such as ``"trainer"`` and ``"trainer.max_epochs"``.
    """
    if not path.is_file():
        if len(str(path).split()) > 1 or ":" in str(path):  # the content of a config
            return None
        there = (
            like_it(path)
            or there_are(path, "config.yaml")
            or there_are(path, ".yaml")
            or "Give one that is there."
        )
        return f"`--config`: expected a file, got {path}, which is none. {there}"
    try:
        content = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or type(error).__name__
        return f"{path}{line}: expected YAML, got what is none: {problem}. Mend that line."
    if content is not None and not isinstance(content, dict):
        return f"{path}: expected sections such as `trainer:`, got {shortened(content)}."
    found = mistake_in_section("", content or {}, options)
    return f"{path}: {found}" if found else None


def mistake_in_section(where: str, section: dict[Any, Any], options: Collection[str]) -> str | None:
    """Return a sentence about a key that holds nothing and is unknown, or a section that is none.

    Example:
        >>> mistake_in_section("", {"trainr": {}}, ["trainer", "trainer.max_epochs"])
        'There is no option `trainr`. Did you mean trainer?'
        >>> mistake_in_section("", {"trainer": 3}, ["trainer", "trainer.max_epochs"])
        'expected `trainer` to be a section of options such as `trainer.max_epochs`, got 3. Omit \
it, or give options.'
    """
    for key, value in section.items():
        name = f"{where}{key}".removesuffix("+")
        inside = [o for o in options if o.startswith(f"{name}.") and not o.endswith(".help")]
        if isinstance(value, dict) and inside:
            found = mistake_in_section(f"{name}.", value, options)
            if found:
                return found
        elif inside and value != {}:
            return (
                f"expected `{name}` to be a section of options such as `{inside[0]}`, got "
                f"{shortened(value)}. Omit it, or give options."
            )
        elif name not in options and not value and value is not False and not inside:
            return no_option(name, options)
    return None
