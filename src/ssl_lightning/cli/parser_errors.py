"""What the parser of arguments says of a mistake, as one sentence instead of all that it tried."""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import ClassVar, NoReturn

from jsonargparse import ArgumentParser

from ssl_lightning.suggest import nearest, shortened

KEY = re.compile(r'Parser key "([^"]+)":?\s*')
PERCENT = re.compile(r"(\d+(?:\.\d+)?) ?%")
UNION = re.compile(
    r"Subtypes: \[(.*?)\]\n +Errors:\n(.*)\n +Given value type: [^\n]*\n +Given value: (.*)",
    re.DOTALL,
)
IN_CLASS = re.compile(r"Problem with given class_path '([\w.]+)':\s+(.+)", re.DOTALL)
IN_CALLABLE = re.compile(
    r"expects a function or a callable class: (.+?)(?:\. Got value: (Namespace\(.*))?\Z", re.DOTALL
)
CLASS_PATH = re.compile(r"class_path'?[=:] ?'([\w.]+)'")
NOT_ACCEPTED = re.compile(r"(?:Option|Group '\w+' does not accept option) '([^']+)'")
NOT_IMPORTED = re.compile(r"No module named|has no attribute '|not enough values to unpack")
NO_OPTION = re.compile(r"Subcommand '\w+' does not accept option '([^']+)'")
NO_CLASS = re.compile(r"Expected a dot import path string: (\S+)")
REQUIRED = re.compile(r"the following arguments are required: (.+)")
WRONG_TYPE = re.compile(
    r"Expected an? (?:<class '(\S+)'>|(\S.*?))(?:\. Got value: (.*)|\Z)", re.DOTALL
)
UNRECOGNIZED = re.compile(r"unrecognized arguments: (-*)([\w.\-]+)|ambiguous option: (-+)([\w.]+)")
NO_VALUE = re.compile(r"argument (?:-\w/)?-*([\w.]+): expected (?:at least )?one argument")

FORM = "{class_path: %s, init_args: {...}}"
ARGUMENTS = {"Budget": "macs: 0.5"}
"""Class whose arguments an option takes -> some of them."""
MOST_NAMES = 20
OF_FIT = tuple(
    "config print_config seed_everything import budget trainer model data optimizer lr_scheduler "
    "ckpt_path weights_only".split()
)
"""Options of `fit` without dots."""


class OneSentenceParser(ArgumentParser):
    """Says in one sentence what is wrong with arguments and configs, if it knows how."""

    classes: ClassVar[Mapping[str, Iterable[str]]] = MappingProxyType({})
    """Option -> names of classes that may be given by their names alone."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Write the sentence and exit with status 2, as for wrong usage."""
        parser = getattr(ex, "subcommand_parser", None) or self
        options = [action.dest for action in parser._actions if action.option_strings]
        sentence = one_sentence(message, options, self.classes) if self.exit_on_error else None
        if sentence is None:
            super().error(message, ex)
        self.refuse(sentence)

    def refuse(self, sentence: str) -> NoReturn:
        """Write a sentence and exit with status 2."""
        sys.stderr.write(f"error: {sentence}\n")
        sys.exit(2)


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
        >>> import torch  # the parser imports what a config names
        >>> tried = "Problem with given class_path 'torch.nn.Dropout': Option 'q' is not accepted"
        >>> one_sentence(f'Parser key "model.layer":\n{tried}', [], {})
        "`model.layer`: Dropout has no argument 'q'. Known: inplace, p."
    """
    if found := NO_OPTION.search(message):
        return no_option(found[1], options)
    if found := UNRECOGNIZED.search(message):
        if found[1] == "":
            return f"Expected no further argument, got {found[2]!r}. Omit it."
        return no_option(found[2] or found[4], options)
    if found := NO_VALUE.search(message):
        return f"`{found[1]}`: expected a value, got none. Write it behind `--{found[1]}`."
    key = KEY.search(message)
    if key is not None:
        return f"`{key[1]}`: {explained(message[key.end() :], '', classes.get(key[1], ()))}"
    if found := REQUIRED.search(message):
        return needed(found[1])
    return None


def no_option(name: str, options: Iterable[str]) -> str:
    """Say that there is no such option, and which is the nearest.

    Example:
        >>> no_option("engine", ["engines"])
        'There is no option `engine`. Did you mean engines?'
        >>> no_option("x", map(str, range(100)))
        'There is no option `x`. `--help` lists all.'
    """
    options = [each for each in options if not each.endswith((".help", "print_shtab"))]
    hint = nearest(name, options)
    if hint.startswith("Known") and len(options) > MOST_NAMES:
        hint = "`--help` lists all."
    return f"There is no option `{name}`. {hint}"


def refuse_misspelt(arguments: Iterable[str], own: Iterable[str]) -> None:
    """Refuse an option without dots that nearly is one of a command's own.

    Commands that pass all else on to `fit` would have it say that there is no such option.

    Args:
        arguments: that the command's parser did not know.
        own: names of its options.

    Raises:
        ValueError: naming the option, and the nearest.

    Example:
        >>> refuse_misspelt(["--engin", "--budget.macs"], ["engine"])
        Traceback (most recent call last):
        ...
        ValueError: There is no option `engin`. Did you mean engine?
    """
    for argument in arguments:
        name = argument.partition("=")[0].removeprefix("--")
        plain = argument.startswith("--") and "." not in name and name not in OF_FIT
        if plain and (hint := nearest(name, own)).startswith("Did"):
            raise ValueError(f"There is no option `{name}`. {hint}")


def needed(names: str) -> str:
    """Say which arguments are missing.

    Example:
        >>> needed("checkpoint")
        'Expected the argument `checkpoint`, got none. `--help` says what it is.'
        >>> needed("test.data")
        'Expected `data`, got none. Give the config of the run: `--config FILE.yaml`, or --data \
MNISTDataModule, say.'
    """
    if "." in names:
        name = names.partition(".")[2]
        return (
            f"Expected `{name}`, got none. Give the config of the run: `--config FILE.yaml`"
            f"{', or --data MNISTDataModule, say' if name == 'data' else ''}."
        )
    return f"Expected the argument `{names}`, got none. `--help` says what it is."


def explained(text: str, given: str, names: Iterable[str]) -> str:
    """Say what is wrong with a value.

    Args:
        text: of the parser, about this value.
        given: what was given, if the text does not say it.
        names: of classes that may be given by their names alone.
    """
    tried = [text]
    union = None if text.startswith("Type ") else UNION.search(text)
    if union:
        tried, given = bullets(union[2]), union[3]
    for reason in tried:
        if found := IN_CLASS.search(reason):
            return in_class(found[1], found[2], given, names)
        if found := IN_CALLABLE.search(reason):
            path = CLASS_PATH.search(found[2] or given)
            return in_class(path[1] if path else "It", found[1], found[2] or given, names)
        found = NO_CLASS.search(reason)
        if found and (names or not union or "class_path" in given):
            hint = nearest(found[1], names) if names else "Give its import path."
            return f"there is no class {found[1]!r}. {hint}"
    if union and len(of := list(names)) == 1:
        some = ARGUMENTS.get(of[0], "NAME: VALUE")
        return f"expected arguments of {of[0]} such as `{{{some}}}`, got {shortened(given)}."
    if union:
        return of_several_types(union[1], text, given)
    return reason_text(text, given)


def bullets(text: str) -> list[str]:
    r"""Split a list of the parser; lists inside its points are not split.

    Example:
        >>> bullets("  - a:\n      - b\n  - c")
        ['a:\n      - b', 'c']
    """
    indent = len(text) - len(text.lstrip())
    return re.split(rf"(?:^|\n) {{{indent}}}- ", text)[1:]


def in_class(path: str, reason: str, given: str, names: Iterable[str] = ()) -> str:
    """Say what is wrong with the arguments of a class, which is named unless only one may be."""
    module, _, name = path.rpartition(".")
    given = "" if list(names) == [name] else given
    if found := NOT_ACCEPTED.search(reason):
        named = [one.rpartition(".")[2] for one in CLASS_PATH.findall(given)]
        if found[1] == "class_path" or (given and name not in named):
            return of_another_form(given)
        known = arguments_of(module, name)
        hint = nearest(found[1], known) if known else "It takes none."
        return f"{name} has no argument {found[1]!r}. {hint}"
    if found := REQUIRED.search(reason):
        return f"{name} needs the argument {found[1].strip()}. Give it under `init_args`."
    if NOT_IMPORTED.search(reason):
        return not_imported(path, reason)
    if key := KEY.search(reason):
        return f"{name}: `{key[1]}`: {explained(reason[key.end() :], '', ())}"
    return f"{name}: {reason_text(reason)}"


def of_another_form(given: str) -> str:
    """Say how a class and its arguments are given.

    Example:
        >>> of_another_form("[{'class_path': 'SGD', 'lr': 0.1}]")
        "expected `{class_path: SGD, init_args: {...}}`, got {'class_path': 'SGD', 'lr': 0.1}."
        >>> of_another_form("{'Adam': {}}")
        "expected `{class_path: NAME, init_args: {...}}`, got {'Adam': {}}."
    """
    try:
        values = ast.literal_eval(given)
    except (ValueError, SyntaxError):  # not written as Python writes it
        return f"expected `{FORM % 'NAME'}`: arguments of a class are given under `init_args`."
    entries = values if isinstance(values, list) else [values]
    for entry in entries:
        if isinstance(entry, dict) and not {"class_path", "init_args"} >= set(entry):
            return f"expected `{FORM % entry.get('class_path', 'NAME')}`, got {shortened(entry)}."
    return f"expected `{FORM % 'NAME'}`, got {shortened(values)}."


def not_imported(path: str, reason: str) -> str:
    """Say why a class cannot be imported, and what to do.

    Example:
        >>> import torch
        >>> not_imported("mine.Net", "No module named 'mine'")
        "cannot import mine.Net: No module named 'mine'. If it is in a folder of its own, name \
that in PYTHONPATH."
        >>> not_imported("torch.nn.Dropuot", "module 'torch.nn' has no attribute 'Dropuot'")
        "there is no class 'Dropuot' in torch.nn. Did you mean Dropout or Dropout3d or Dropout2d?"
    """
    module, _, name = path.rpartition(".")
    if module in sys.modules and not hasattr(sys.modules[module], name):
        there = [key for key, made in vars(sys.modules[module]).items() if inspect.isclass(made)]
        hint = nearest(name, there)
        hint = hint if hint.startswith("Did") or len(there) <= MOST_NAMES else "Mend the name."
        return f"there is no class {name!r} in {module}. {hint}"
    text = " ".join(reason.split()).rstrip(".")
    hint = "If it is in a folder of its own, name that in PYTHONPATH."
    return f"cannot import {path}: {text}. {hint}"


def arguments_of(module: str, name: str) -> list[str]:
    """Return the arguments of a class that the parser has imported."""
    made = getattr(sys.modules.get(module), name, None)
    try:
        return list(inspect.signature(made).parameters) if callable(made) else []
    except ValueError:  # built in
        return []


def of_several_types(subtypes: str, tried: str, given: str) -> str:
    """Name all types that a value may have.

    Args:
        subtypes: the types as Python writes them, with commas between them.
        tried: what the parser says of each.
        given: the value.

    Example:
        >>> of_several_types("<class 'int'>, <class 'float'>, <class 'NoneType'>", "", "x")
        "expected int, float or None, got 'x'."
        >>> of_several_types("<class 'float'>, <class 'int'>", "", "x")
        "expected int or float, got 'x'."
        >>> of_several_types("typing.Literal['fast', 'slow'], <class 'int'>", "", "fats")
        "expected Literal['fast', 'slow'] or int, got 'fats'. Did you mean fast?"
        >>> of_several_types("<class 'float'>, <class 'NoneType'>", "", "50%")
        "expected float or None, got '50%'. Write 0.5."
    """
    types = [type_text(kind) for kind in re.split(r", (?![^\[]*\])", subtypes)]
    if {"int", "float"} <= set(types):  # Python has them in the order in which it met them first
        types = ["int", *(kind for kind in types if kind != "int")]
    wanted = " or ".join(filter(None, [", ".join(types[:-1]), types[-1]]))
    near = nearest(given, re.findall(r"'([\w.\-]+)'", " ".join(types)))
    hint = f" {near}" if near.startswith("Did") else ""
    if "float" in types and (share := PERCENT.fullmatch(given.strip())):
        hint = f" Write {float(share[1]) / 100:g}."
    if "Not a valid subclass" in tried:
        hint = f" A class is given as `{FORM % 'NAME'}`."
    return f"expected {wanted}, got {shortened(given)}.{hint}"


def type_text(kind: str) -> str:
    """Write a type shortly.

    Example:
        >>> type_text("list[torch.nn.Module]"), type_text("<class 'NoneType'>")
        ('list[Module]', 'None')
    """
    if "Callable[" in kind:
        return "a class"
    kind = re.sub(r"<class '([\w.]+)'>", r"\1", kind)
    return re.sub(r"\b(?:[A-Za-z_]\w*\.)+(\w+)", r"\1", kind).replace("NoneType", "None")


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
