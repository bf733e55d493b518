"""What the parser of configs says of a mistake, as one sentence instead of all that it tried."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterable, Mapping

from ssl_lightning.suggest import nearest, shortened

KEY = re.compile(r'Parser key "([^"]+)"')
IN_CLASS = re.compile(r"Problem with given class_path '([\w.]+)':\s+(.+?)(?=\n *- |\Z)", re.DOTALL)
IN_CALLABLE = re.compile(r"(Option '.+?' is not accepted)\..*class_path='([\w.]+)'", re.DOTALL)
NOT_ACCEPTED = re.compile(r"Option '([^']+)' is not accepted")
NO_OPTION = re.compile(r"does not accept option '([^']+)'")
NO_CLASS = re.compile(r"Expected a dot import path string: (\S+)")
REQUIRED = re.compile(r"the following arguments are required: (.+)")
WRONG_TYPE = re.compile(
    r"Expected an? (?:<class '(\S+)'>|(\S.*?))(?:\. Got value: (.*)|\Z)", re.DOTALL
)
UNRECOGNIZED = re.compile(r"unrecognized arguments: -*([\w.]+)")
GIVEN = re.compile(r"Given value: (.*)", re.DOTALL)
FIRST_TRIED = re.compile(r"Errors:\s+- (.+?)(?=\n *- |\n *Given value|\Z)", re.DOTALL)


def one_sentence(
    message: str, options: Iterable[str], classes: Mapping[str, Iterable[str]]
) -> str | None:
    r"""Return where the mistake is, what was expected, what came and what to do; None if unknown.

    Args:
        message: of the parser.
        options: names of all options that the parser has.
        classes: option -> names of classes that may be given by their names alone.

    Example:
        >>> one_sentence("Subcommand 'fit' does not accept option 'trainer.max_epoch'",
        ...              ["trainer.max_epochs"], {})
        'There is no option `trainer.max_epoch`. Did you mean trainer.max_epochs?'
        >>> tried = "Problem with given class_path 'torch.nn.Dropout': Option 'q' is not accepted"
        >>> one_sentence(f'Parser key "model.layer":\n  Errors:\n  - {tried}\n  - more', [], {})
        "`model.layer`: Dropout has no argument 'q'. Known: inplace, p."
    """
    key = KEY.search(message)
    where = f"`{key[1]}`: " if key else ""
    known = classes.get(key[1], ()) if key else ()
    if found := NO_OPTION.search(message) or UNRECOGNIZED.search(message):
        return f"There is no option `{found[1]}`. {nearest(found[1], options)}"
    if found := IN_CLASS.search(message):
        return where + in_class(found[1], found[2])
    if found := IN_CALLABLE.search(message):
        return where + in_class(found[2], found[1])
    if found := NO_CLASS.search(message):
        return f"{where}there is no class {found[1]!r}. {nearest(found[1], known)}"
    if key is None:
        return None
    given = GIVEN.search(message)
    found = FIRST_TRIED.search(message)
    reason = found[1] if found else message[key.end() :].lstrip(":")
    return where + reason_text(reason, given[1] if given else "")


def in_class(path: str, reason: str) -> str:
    """Say what is wrong with the arguments of a class."""
    module, _, name = path.rpartition(".")
    if found := NOT_ACCEPTED.search(reason):
        return (
            f"{name} has no argument {found[1]!r}. {nearest(found[1], arguments_of(module, name))}"
        )
    if found := REQUIRED.search(reason):
        return f"{name} needs the argument {found[1].strip()}. Give it under `init_args`."
    if key := KEY.search(reason):
        return f"{name}: `{key[1]}`: {reason_text(reason[key.end() :].lstrip(':'))}"
    return f"{name}: {reason_text(reason)}"


def arguments_of(module: str, name: str) -> list[str]:
    """Return the arguments of a class that the parser has imported."""
    made = getattr(sys.modules.get(module), name, None)
    try:
        return list(inspect.signature(made).parameters) if callable(made) else []
    except ValueError:  # built in
        return []


def reason_text(reason: str, given: str = "") -> str:
    """Write a reason of the parser on one line, with the value that was given if it is not in it.

    Example:
        >>> reason_text("Expected a <class 'int'>. Got value: one")
        "expected int, got 'one'."
        >>> reason_text("Expected a typing.Literal['epoch', 'step']. Got value: day")
        "expected Literal['epoch', 'step'], got 'day'."
    """
    if found := WRONG_TYPE.search(reason.strip()):
        wanted = (found[1] or found[2]).rstrip(".").removeprefix("typing.")
        value = (found[3] or given).strip()
        return f"expected {wanted}, got {shortened(value)}." if value else f"expected {wanted}."
    text = " ".join(reason.split())
    return text[:300].rstrip(".") + "."
