"""What each operation does to zeros, to need and to slices: one table, :data:`RULES`.

One file per family of operations, with the functions of its rules and their rows next to each
other. An operation without a row is :data:`UNKNOWN`: everything it returns can be non-zero, it
needs everything it reads, and nothing it touches can be removed. That is always sound.
"""

from __future__ import annotations

from ssl_lightning.graph.operations import (
    attention,
    convolution,
    indexing,
    linear,
    norms,
    own,
    pointwise,
    pooling,
    products,
    recurrent,
    reductions,
    shapes,
)
from ssl_lightning.graph.ops import Op
from ssl_lightning.graph.rule import UNKNOWN, Rule

FAMILIES = (
    *(pointwise, reductions, pooling, norms, shapes, indexing, convolution, linear),
    *(products, attention, recurrent, own),
)
RULES: dict[str, Rule] = {name: rule for family in FAMILIES for name, rule in family.TABLE.items()}
"""An operation's short name -> its rule."""

REGISTERED: dict[str, Rule] = {}
"""The rules that users registered, which are in :data:`RULES` too."""


def rule_of(op: Op) -> Rule:
    """Return the rule of an operation; :data:`UNKNOWN` if there is none that covers its use."""
    rule = RULES.get(op.kind, UNKNOWN)
    rule = rule.variant(op) if rule.variant else rule
    return rule if rule.covers(op) else UNKNOWN


def is_sized(op: Op) -> bool:
    """Whether the model's code may have an operation's sizes as fixed numbers."""
    return RULES.get(op.kind, UNKNOWN).sized
