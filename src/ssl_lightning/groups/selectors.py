"""Which groups a user asks for: a kind, and the layers by patterns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ssl_lightning.groups.kinds import KINDS
from ssl_lightning.suggest import check_keys, nearest, pick, shortened

EVERY = "*"


@dataclass(frozen=True)
class Selector:
    """Which groups: a kind, and the layers by a glob (or several) on their qualified names.

    Attributes:
        kind: filter, channel, shape, kernel, depth, neuron_in, neuron_out; or coupled: all that
            must be zero so that a channel can be removed, such as the filters of all layers that
            write it; or of the same origin, head (attention heads) and ffn (hidden neurons of
            feed-forward parts); or element (single weights); or a registered one.
        layers: glob or globs, such as ``"conv*"`` or ``["layer1.*", "fc"]``. Layers that match
            but have no such groups (a linear layer has no filters) are passed over. A coupled
            family is selected as a whole if any of its layers matches. Of kind depth, ``"*"`` is
            the last layer that all of a residual branch passes, for each branch: without it the
            branch is gone, such as the attention or the feed-forward part of a transformer's block.
        members: ``"all"`` puts bias and batch-norm scale and shift into the group of a filter,
            output neuron or layer (they are what its output consists of), ``"weight"`` only the
            weight, as in the paper.

    Example:
        >>> from ssl_lightning import create_backbone, resolve_groups
        >>> selectors = [Selector("filter", "conv*"), Selector("neuron_in", "fc2")]
        >>> [group_set.name for group_set in resolve_groups(create_backbone("lenet"), selectors)]
        ['conv1:filter', 'conv2:filter', 'fc2:neuron_in']
    """

    kind: str
    layers: str | Sequence[str] = EVERY
    members: str = "all"

    def __post_init__(self) -> None:
        pick("group kind", self.kind, KINDS, "register_kind")
        if self.members not in ("all", "weight"):
            raise ValueError(
                f"Groups of kind {self.kind!r}: expected members 'all' or 'weight', got "
                f"{self.members!r}. Take 'weight' for the paper's groups."
            )

        as_patterns(f"Groups of kind {self.kind!r}", self.layers)

    def patterns(self) -> list[str]:
        """Return the globs."""
        return as_patterns(f"Groups of kind {self.kind!r}", self.layers)


def as_patterns(where: str, layers: str | Sequence[str]) -> list[str]:
    """Return a glob, or several, as a list.

    Raises:
        ValueError: if there is none, or one is no string.
    """
    patterns = [layers] if isinstance(layers, str) else layers
    if not isinstance(patterns, (list, tuple)) or not patterns:
        raise ValueError(
            f"{where}: expected `layers` to be a glob or a list of globs on layer names, got "
            f"{layers!r}. Take '*' for all layers."
        )
    if wrong := [p for p in patterns if not isinstance(p, str)]:
        raise ValueError(
            f"{where}: expected globs in `layers`, got {wrong[0]!r}. Put names in quotes."
        )
    return list(patterns)


def as_list(given: Any) -> list[Any]:
    """Return several group sets or selectors, or one that stands alone, as a list.

    Example:
        >>> as_list("filter"), as_list([{"kind": "ffn"}])
        (['filter'], [{'kind': 'ffn'}])
    """
    single = isinstance(given, (str, Mapping, Selector)) or not isinstance(given, Iterable)
    return [given] if single else list(given)


def as_selector(given: Selector | Mapping[str, Any] | str) -> Selector:
    """Return a selector from a mapping of its fields, or from a kind.

    Raises:
        ValueError: for anything else, or what it holds.
    """
    if isinstance(given, Selector):
        return given
    if isinstance(given, str):
        return Selector(given)
    if not isinstance(given, Mapping):
        raise ValueError(
            f"Group selector: expected a kind, such as 'filter', or a mapping such as {{'kind': "
            f"'filter', 'layers': 'conv*'}}, got {shortened(given)}. Correct it."
        )
    check_keys("Group selector", given, ["kind", "layers", "members"])
    if "kind" not in given:
        raise ValueError(f"Group selector {dict(given)} has no kind. {nearest('', KINDS)}")
    return Selector(**given)
