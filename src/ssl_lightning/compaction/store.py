"""Compact networks on disk: a plan, the backbone's name and arguments, and tensors. No pickle."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, load_model, save_model
from torch import Tensor, nn

from ssl_lightning.backbones import BACKBONES, admit_own, class_path, create_stored, storable
from ssl_lightning.compaction import pretrained
from ssl_lightning.compaction.checks import (
    check_carried_out,
    check_saved,
    check_storable,
    warn_of_later_zeros,
)
from ssl_lightning.compaction.plan import Plan, plans_from_data, plans_to_data
from ssl_lightning.compaction.planning import apply_plan
from ssl_lightning.compaction.stored import check_counts
from ssl_lightning.files import replacing
from ssl_lightning.parsing import parse_json
from ssl_lightning.suggest import said_by, shortened

WEIGHTS = "model.safetensors"
RECIPE = "plan.json"
EXPECTED_MODEL = "expected a network, its class or a function that makes it as the model"
OwnNetwork = nn.Module | type[nn.Module] | Callable[[], nn.Module]
"""A network, its class, or a function that makes it."""


class OwnNetworkError(ValueError):
    """A file is of the user's own network, and the network was not given.

    Attributes:
        name: import path of its class, as the file says.
    """

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


@dataclass(frozen=True)
class Recipe:
    """How the architecture of a compact network is made again.

    Attributes:
        backbone: name of the backbone it was made from.
        arguments: of that backbone.
        plans: what is retained of it, one after the other; usually one.
        where: it was found, for messages.

    Example:
        >>> recipe = Recipe("mlp", {"widths": [4]}, (Plan({}, (), ()),))
        >>> recipe.create().fc2.in_features, Recipe.from_json(recipe.to_json()) == recipe
        (4, True)
    """

    backbone: str
    arguments: dict[str, Any]
    plans: tuple[Plan, ...] = ()
    where: str = field(default=RECIPE, compare=False)

    def create(self, model: OwnNetwork | None = None) -> nn.Module:
        """Return the architecture, with fresh weights, and the ``input_shape`` of its last plan.

        Args:
            model: as :meth:`create_dense` takes it.

        Raises:
            ValueError: if the plan does not fit the backbone, or as :meth:`create_dense`.
        """
        return self.sized(self.shrink(self.create_dense(model)))

    def shrink(self, dense: nn.Module) -> nn.Module:
        """Shrink the backbone as the plans say, in place.

        Raises:
            ValueError: if one does not fit.
        """
        return carry_out_(dense, self.plans, self.where)

    def sized(self, small: nn.Module) -> nn.Module:
        """Give a network, dense or compact, the ``input_shape`` of its last plan."""
        shapes = self.plans[-1].input_shapes if self.plans else ()
        if len(shapes) == 1 and len(shapes[0]) > 1:  # the backbone may be made for another size
            small.__dict__["input_shape"] = shapes[0][1:]
        return small

    def create_dense(self, model: OwnNetwork | None = None) -> nn.Module:
        """Return the backbone that it was made from, with fresh weights.

        Args:
            model: the dense network, its class, or a function that makes it, for a recipe of the
                user's own network. A class is called with the stored arguments.

        Raises:
            OwnNetworkError: if it is none of the library's, timm's or torchvision's and ``model``
                is not given.
            ValueError: if an argument is not admitted (see :mod:`ssl_lightning.backbones.stored`),
                or ``model`` is and makes no network.
        """
        if model is None and is_unknown_class(self.backbone):
            name = shortened(self.backbone)
            raise OwnNetworkError(
                self.backbone,
                f"{self.where} is of the network {name}. Give it: in Python `model=`, the network, "
                f"its class or a function that makes it; in commands `--model {name[1:-1]}`, or "
                "`--config` with the config of the run; or call `register_backbone` with that "
                "name. No code is imported because a file names it.",
            )
        if model is None:
            return self.sized(create_stored(self.backbone, self.arguments, self.where))
        if isinstance(model, nn.Module):
            return copy.deepcopy(model)
        made = model if isinstance(model, type) and issubclass(model, nn.Module) else None
        arguments = {} if made is None else admit_own(made, self.arguments, self.where)
        name = getattr(model, "__name__", shortened(model))
        if not callable(model):
            raise ValueError(f"{self.where}: {EXPECTED_MODEL}, got {name}.")
        try:
            network: Any = model(**arguments)
        except TypeError as error:
            wrong = f"cannot make a {name} with the stored arguments {shortened(arguments)}"
            if made is None:
                wrong = f"{EXPECTED_MODEL}, got {name}, which cannot be called without arguments"
            raise ValueError(
                f"{self.where}: {wrong}: {shortened(str(error), 200)}. Give the network itself."
            ) from error
        if not isinstance(network, nn.Module):
            raise ValueError(
                f"{self.where}: {EXPECTED_MODEL}, got {name}, which makes a "
                f"{type(network).__name__}. Give what makes a torch.nn.Module."
            )
        return network

    def then(self, *plans: Plan) -> Recipe:
        """Return the recipe of what further plans leave of this network."""
        return replace(self, plans=(*self.plans, *plans))

    def to_json(self) -> str:
        """Return the content of ``plan.json``."""
        recipe = {
            "backbone": self.backbone,
            "arguments": self.arguments,
            "plan": plans_to_data(self.plans),
        }
        return json.dumps(recipe, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, where: str = "Recipe") -> Recipe:
        """Read what :meth:`to_json` wrote.

        Args:
            text: the JSON.
            where: it was found, for messages.

        Raises:
            ValueError: if it is damaged.
        """
        recipe = parse_json(text, where)
        try:
            name, arguments = recipe["backbone"], recipe["arguments"]
            plans = plans_from_data(recipe["plan"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{where} is damaged: {said_by(error)}.") from error
        if not isinstance(name, str) or not isinstance(arguments, dict):
            raise ValueError(
                f"{where} is damaged: expected the name and the arguments of a backbone, got "
                f"{shortened(name)} and {shortened(arguments)}."
            )
        return cls(name, arguments, plans, where)


def carry_out_(model: nn.Module, plans: Sequence[Plan], where: str) -> nn.Module:
    """Shrink a network as stored plans say, in place.

    Raises:
        ValueError: if one does not fit, whatever it breaks.
    """
    for plan in plans:
        check_counts(model, plan.modules, where)
        try:
            apply_plan(model, plan)
        except Exception as error:  # the plan is a file's, so whatever it breaks is its fault
            raise ValueError(
                f"{where}: a plan does not fit {type(model).__name__}: {said_by(error)}. Give the "
                "dense network that it was made for."
            ) from error
    return model


def save_compact(
    folder: str | Path,
    model: nn.Module,
    plan: Plan | Sequence[Plan],
    backbone: str | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> Path:
    """Write a compact network to ``folder``; :func:`load_compact` reads it.

    A model of Hugging Face transformers is written by its own ``save_pretrained``, config included,
    and needs neither name nor arguments.

    Args:
        folder: made if missing. It gets ``model.safetensors`` and ``plan.json``, each replaced
            only once it is complete.
        model: the compact network.
        plan: the plan it was made with, or several in the order in which they were carried out on
            the backbone.
        backbone: name of the backbone it was made from; without one, the network is the user's
            own, and its name the import path of its class. Reading it takes the dense network, or
            its class, which is called with the arguments that are stored:
            ``load_compact(folder, model=...)``.
        arguments: arguments of that backbone; those that only say where weights come from, such
            as ``pretrained``, are not stored, since the weights are.

    Returns:
        The folder.

    Raises:
        ValueError: if :func:`load_compact` could not make the network again, or the plan was not
            carried out on it; nothing is written.

    Example:
        >>> from tempfile import mkdtemp
        >>> from ssl_lightning import compact, create_backbone, make_plan
        >>> net = create_backbone("lenet")
        >>> plan = make_plan(net, torch.zeros(1, 1, 28, 28))
        >>> folder = save_compact(mkdtemp(), compact(net, plan), plan, "lenet", {})
        >>> sorted(path.name for path in folder.iterdir())
        ['model.safetensors', 'plan.json']
    """
    check_saved(folder, model, plan)
    check_storable(arguments or {})
    folder = Path(folder)
    plans = (plan,) if isinstance(plan, Plan) else tuple(plan)
    if pretrained.is_pretrained(model) and (backbone is None or is_unknown_class(backbone)):
        recipe = recipe_of(model, plans)
        pretrained.write_pretrained(folder, model, {RECIPE: recipe.to_json()}, read_compact)
        return folder
    if plans:
        warn_of_later_zeros(model, plans[-1], "save_compact")
    backbone = class_path(model) if backbone is None else backbone
    recipe = Recipe(backbone, storable(backbone, arguments or {}), plans, "save_compact")
    check_loadable(recipe, model)
    with replacing(folder / WEIGHTS) as weights, replacing(folder / RECIPE) as text:
        save_model(model, str(weights))
        text.write_text(recipe.to_json())
    return folder


def recipe_of(model: nn.Module, plans: Sequence[Plan]) -> Recipe:
    """Return how a compact model of transformers is made again."""
    return Recipe(f"{pretrained.PREFIX}{type(model).__name__}", {}, tuple(plans))


def check_loadable(recipe: Recipe, model: nn.Module) -> None:
    """Make sure that a recipe makes the layers of a compact network.

    Raises:
        ValueError: if it does not, names no backbone, or its last plan was not carried out.
    """
    for plan in recipe.plans[-1:]:
        check_carried_out(model, plan, recipe.where)
    if is_unknown_class(recipe.backbone):
        return  # the reader gives the network
    again = Recipe.from_json(recipe.to_json(), recipe.where).create()
    try:
        again.load_state_dict(model.state_dict())  # column-sparse layers take over their pattern
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"save_compact: {shortened(recipe.backbone)} with {shortened(recipe.arguments)} and "
            f"the plan is not the given network: {' '.join(str(error).split())[:300]}. Give the "
            "backbone and the arguments that it was compacted from."
        ) from error


def is_own_class(name: str) -> bool:
    """Whether a name is the import path of a class, as ``"my_package.MyNetwork"``."""
    return re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", name) is not None


def is_unknown_class(name: str) -> bool:
    """Whether a name is the import path of a class that was not registered as a backbone."""
    return is_own_class(name) and name not in BACKBONES


def load_compact(folder: str | Path, model: OwnNetwork | None = None) -> nn.Module:
    """Return the compact network that :func:`save_compact` wrote, in eval mode.

    The backbone is created, shrunk by the plan, and then gets the stored tensors: the weights it
    was compacted from are not needed, and nothing is unpickled. A file never says what to import.

    Args:
        folder: that was written.
        model: the dense network that was compacted, with any weights, or its class or a function
            that makes it; only needed if it is the user's own.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if a file is damaged, holds NaN, or tensors and plan do not fit each other; or
            if the network is the user's own and ``model`` was not given.

    Example:
        >>> from tempfile import mkdtemp
        >>> from ssl_lightning import compact, create_backbone, make_plan
        >>> net = create_backbone("lenet")
        >>> with torch.no_grad():
        ...     _ = net.conv1.weight[5:].zero_(), net.conv1.bias[5:].zero_()
        >>> plan = make_plan(net, torch.zeros(1, 1, 28, 28))
        >>> folder = save_compact(mkdtemp(), compact(net, plan), plan, "lenet", {})
        >>> load_compact(folder).conv1.out_channels
        5
    """
    return read_compact(Path(folder), str(folder), model)


def read_compact(folder: Path, where: str, model: OwnNetwork | None = None) -> nn.Module:
    """Return what :func:`load_compact` does; messages say ``where`` the files are.

    Raises:
        FileNotFoundError, ValueError: as :func:`load_compact`.
    """
    recipe, path = read_recipe(folder, where), folder / WEIGHTS
    try:
        stored = load_file(path)
        if recipe.backbone.startswith(pretrained.PREFIX):
            check_state(stored, f"{where}/{WEIGHTS}")
            name = recipe.backbone.removeprefix(pretrained.PREFIX)
            small = pretrained.read_pretrained(folder, where, name, stored, recipe.shrink)
            return recipe.sized(pretrained.note_plans_(small, recipe.plans))
        small = recipe.create(model)
        check_state(stored, f"{where}/{WEIGHTS}", small)
        types = {tensor.dtype for tensor in stored.values() if tensor.is_floating_point()}
        if len(types) == 1:
            small.to(types.pop())
        load_model(small, path)
    except (SafetensorError, RuntimeError, KeyError, TypeError, OverflowError) as error:
        raise ValueError(
            f"{where}/{WEIGHTS} is damaged or does not belong to {RECIPE}: "
            f"{shortened(str(error), 300)}"
        ) from error
    return small.eval()


def check_state(state: Mapping[str, Any], where: str, model: nn.Module | None = None) -> None:
    """Reject weights that are NaN or infinite.

    Args:
        state: name -> tensor, or extra state of any kind.
        where: it was found, for messages.
        model: that the state is for; buffers that are not finite in it (a causal mask) may be so.

    Raises:
        ValueError: naming the first such tensor.
    """
    buffers = () if model is None else model.named_buffers(remove_duplicate=False)
    free = {name for name, buffer in buffers if not bool(torch.isfinite(buffer).all())}
    for name, tensor in state.items():
        checked = isinstance(tensor, Tensor) and name not in free
        if checked and not bool(torch.isfinite(tensor).all()):
            raise ValueError(
                f"`{shortened(name)[1:-1]}` in {where} holds NaN or infinite values: that training "
                "diverged. Take an earlier checkpoint, or train again with a lower learning rate."
            )


def read_recipe(folder: Path, where: str) -> Recipe:
    """Return the recipe that :func:`save_compact` stored.

    Raises:
        FileNotFoundError, ValueError: as :func:`load_compact`.
    """
    if where.startswith("zoo:"):
        raise ValueError(
            f"load_compact: expected a folder, got an entry of the zoo, {where}. Load it with "
            f"`zoo.load({where.removeprefix('zoo:')!r})`."
        )
    for name in (WEIGHTS, RECIPE):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"No {name} in {where}: a compact network is a folder with {WEIGHTS} and "
                f"{RECIPE}. Write one with `ssl-lightning compact CHECKPOINT`."
            )
    return Recipe.from_json((folder / RECIPE).read_bytes(), f"{where}/{RECIPE}")
