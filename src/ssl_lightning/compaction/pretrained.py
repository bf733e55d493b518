"""Compact models of Hugging Face transformers on disk: transformers' own files beside the plan."""

from __future__ import annotations

import copy
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from ssl_lightning.files import replacing
from ssl_lightning.parsing import parse_json
from ssl_lightning.suggest import shortened

PLANS = "_ssl_lightning_plans"
PREFIX = "transformers:"
"""Of the name that a plan gives a model of transformers; the rest is its class's."""
CONFIG, GENERATION = "config.json", "generation_config.json"
ONE_FILE = 2**62
"""Bytes of one file of weights: more than there ever are, so that transformers writes just one."""
REFUSED = frozenset(
    "attn_implementation _attn_implementation auto_map backbone custom_generate "
    "experts_implementation fusion_config kernel_config quantization_config "
    "transformers_weights use_pretrained_backbone".split()
)
"""Keys of a config that name code, or files other than its own, at any depth."""


def note_plans_(model: nn.Module, plans: Sequence[Any]) -> nn.Module:
    """Let a model of transformers know by which plans it became small, for further ones."""
    model.__dict__[PLANS] = tuple(plans)
    return model


def plans_of(model: nn.Module) -> tuple[Any, ...]:
    """Return the plans that a model of transformers was made small by."""
    return tuple(model.__dict__.get(PLANS, ()))


def is_pretrained(model: nn.Module) -> bool:
    """Whether a network's class is one of transformers, which is not imported to find out.

    Example:
        >>> is_pretrained(nn.Linear(1, 1))
        False
    """
    library = sys.modules.get("transformers.modeling_utils")
    return library is not None and is_of_library(type(model), library.PreTrainedModel)


def is_of_library(made: Any, base: type) -> bool:
    """Whether something is a class of models that transformers itself defines."""
    return (
        isinstance(made, type)
        and issubclass(made, base)
        and made.__module__.startswith("transformers.models.")
    )


def transformers_library() -> Any:
    """Return the package.

    Raises:
        ValueError: if it is not installed.
    """
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise ValueError(
            "This network is of Hugging Face transformers, which is not installed. Install it: "
            "`pip install 'ssl_lightning[transformers]'`."
        ) from error
    return transformers


def write_pretrained(
    folder: Path,
    model: Any,
    texts: Mapping[str, str],
    read: Callable[[Path, str], nn.Module],
) -> None:
    """Write a model as its ``save_pretrained`` does, and texts beside it, each file whole.

    Args:
        folder: made if missing.
        model: the compact model.
        texts: name of a file -> its content.
        read: reads the folder again, which is tried before anything appears in it.

    Raises:
        ValueError: if that gives other tensors, or :func:`read_pretrained` refuses the config.
    """
    where = "save_compact"
    check_config(model.config.to_dict(), where)
    with alone(), TemporaryDirectory() as place, ExitStack() as stack:
        model.save_pretrained(place, max_shard_size=ONE_FILE)
        for name, text in texts.items():
            Path(place, name).write_text(text)
        try:
            stored, given = read(Path(place), "the folder").state_dict(), model.state_dict()
        except ValueError as error:
            raise ValueError(
                f"{where}: this {type(model).__name__} could not be read again: {error} Give the "
                "network that `compact` returned, and the plan that it was made with."
            ) from error
        if unequal := [key for key in given if not same(given[key], stored.get(key))]:
            raise ValueError(
                f"{where}: {type(model).__name__} would not be read again as it is: "
                f"`{unequal[0]}` differs. Give all weights one type."
            )
        for file in sorted(Path(place).iterdir()):
            shutil.move(file, stack.enter_context(replacing(folder / file.name)))


def same(one: Tensor, other: Tensor | None) -> bool:
    """Whether two tensors have the same type and values, wherever they are."""
    return other is not None and one.dtype == other.dtype and torch.equal(one.cpu(), other.cpu())


def read_pretrained(
    folder: Path,
    where: str,
    name: str,
    state: dict[str, Tensor],
    shrink: Callable[[nn.Module], Any],
) -> nn.Module:
    """Return the compact model that :func:`write_pretrained` wrote, in eval mode.

    The dense model is made on the meta device, where weights are shapes without memory, shrunk
    there, and filled by its class's ``from_pretrained``, which also ties weights and computes what
    is not stored. No code comes from the folder, and no host is asked.

    Args:
        folder: that was written.
        where: the folder, for messages.
        name: of the model's class.
        state: the tensors in the folder.
        shrink: makes the dense model small, in place.

    Raises:
        ValueError: if transformers is not installed, a file is damaged, or the files do not
            belong together.
    """
    made = architecture(name, where)
    config, generation = read_config(folder, where, made), read_generation(folder, where)
    computed: dict[str, Tensor] = {}
    try:
        with alone():
            small, report = shrinking(made, shrink, computed).from_pretrained(
                None,
                config=config,
                state_dict=state,
                generation_config=generation,
                output_loading_info=True,
                trust_remote_code=False,
            )
    except Exception as error:  # the config is a file's, so whatever it breaks is its fault
        raise ValueError(
            f"{where} is damaged, or its files do not belong together: cannot make a {name}: "
            f"{type(error).__name__}: {shortened(str(error), 300)}"
        ) from error
    check_report(report, name, where)
    small.__class__ = made
    buffers = dict(small.named_buffers())
    for key, value in computed.items():
        buffers[key].copy_(value)
    small.config.name_or_path = str(folder)
    return small  # type: ignore[no-any-return]


def check_report(report: Mapping[str, Any], name: str, where: str) -> None:
    """Make sure that the tensors were those of the model.

    Raises:
        ValueError: naming those that were not.
    """
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        if found := sorted(map(str, report[problem])):
            raise ValueError(
                f"{where} is damaged, or its files do not belong together: {name} has "
                f"{problem.replace('_', ' ')}: {shortened(found, 200)}."
            )


def shrinking(
    made: type[nn.Module], shrink: Callable[[nn.Module], Any], computed: dict[str, Tensor]
) -> Any:
    """Return a subclass whose models are small from the start.

    Args:
        made: class of transformers.
        shrink: makes a model small, in place.
        computed: is given copies of the buffers that shrinking computes. ``from_pretrained`` would
            fill them with transformers' rules, which do not know them.
    """

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        made.__init__(self, *args, **kwargs)
        with torch.device("cpu"):
            shrink(self)
        known = {name: buffer for name, buffer in self.named_buffers() if not buffer.is_meta}
        computed.update(copy.deepcopy(known))

    names = {"__init__": init, "__module__": made.__module__, "__qualname__": made.__qualname__}
    return type(made.__name__, (made,), names)


def architecture(name: str, where: str) -> Any:
    """Return the class of models of a name, which must be one that transformers itself defines.

    Raises:
        ValueError: if there is none, or transformers is not installed.
    """
    library = transformers_library()
    found = getattr(library, name, None) if name.isidentifier() else None
    if not is_of_library(found, library.PreTrainedModel):
        raise ValueError(
            f"{where}: transformers {library.__version__} has no model {shortened(name)}. Install "
            "the version that wrote the folder; code of other places is not run."
        )
    return found


def read_config(folder: Path, where: str, made: Any) -> Any:
    """Return the config in a folder as an object.

    Raises:
        ValueError: if it is missing or damaged, of another class of models, or names code or files.
    """
    place = f"{where}/{CONFIG}"
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(
            f"No {CONFIG} in {where}, which holds the plan of a {made.__name__}."
        )
    values = parse_json((folder / CONFIG).read_bytes(), place)
    check_config(values, place)
    kind = made.config_class.model_type
    if values.get("model_type") != kind or values.get("architectures") != [made.__name__]:
        raise ValueError(
            f"{place}: expected the config of a {made.__name__} of the type {kind!r}, got "
            f"{shortened(values.get('architectures'))} of {shortened(values.get('model_type'))}. "
            "Put the files together that were written together."
        )
    try:
        return made.config_class.from_dict(values)
    except Exception as error:  # whatever a file breaks is its fault
        raise ValueError(f"{place} is damaged: {shortened(str(error), 200)}") from error


def read_generation(folder: Path, where: str) -> Any:
    """Return the settings of a model that generates text, None if there are none.

    Raises:
        ValueError: if they are damaged, or name code or files.
    """
    path, place = folder / GENERATION, f"{where}/{GENERATION}"
    if not path.is_file():
        return None
    values = parse_json(path.read_bytes(), place)
    check_config(values, place)
    try:
        return transformers_library().GenerationConfig.from_dict(values)
    except Exception as error:  # whatever a file breaks is its fault
        raise ValueError(f"{place} is damaged: {shortened(str(error), 200)}") from error


def check_config(values: Any, where: str) -> None:
    """Make sure that a config names no code to run, and no files but its own.

    Raises:
        ValueError: naming the first key that does.

    Example:
        >>> check_config({"hidden_size": 4, "auto_map": {"AutoModel": "x.Y"}}, "config.json")
        Traceback (most recent call last):
        ...
        ValueError: config.json: 'auto_map' is {'AutoModel': 'x.Y'}. It names code or other files...
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{where} is damaged: expected a mapping, got {shortened(values)}.")
    for key, value in entries(values):
        if key in REFUSED and value:
            raise ValueError(
                f"{where}: {key!r} is {shortened(value)}. It names code or other files, which are "
                "not loaded for a compact model. Remove it from the model's config."
            )


def entries(values: Any) -> Iterator[tuple[Any, Any]]:
    """Yield keys and values of mappings at any depth."""
    if isinstance(values, Mapping):
        for key, value in values.items():
            yield key, value
            yield from entries(value)
    elif isinstance(values, (list, tuple)):
        for value in values:
            yield from entries(value)


@contextmanager
def alone() -> Iterator[None]:
    """Let Hugging Face's libraries ask no host, and draw no progress bars."""
    import huggingface_hub.constants

    logging = transformers_library().utils.logging
    drawn = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with patch.object(huggingface_hub.constants, "HF_HUB_OFFLINE", True):
            yield
    finally:
        if drawn:
            logging.enable_progress_bar()
