"""Groups: which slices of which parameters should become zero together."""

from ssl_lightning.groups.count import kept_groups
from ssl_lightning.groups.kinds import KINDS, GroupKind, register_kind, weight_axes
from ssl_lightning.groups.resolve import resolve_each, resolve_groups
from ssl_lightning.groups.selectors import Selector
from ssl_lightning.groups.sets import (
    GroupSet,
    Member,
    group_counts,
    group_norms,
    nonzero_groups,
    zero_groups_,
)

__all__ = [
    "KINDS",
    "GroupKind",
    "GroupSet",
    "Member",
    "Selector",
    "group_counts",
    "group_norms",
    "kept_groups",
    "nonzero_groups",
    "register_kind",
    "resolve_each",
    "resolve_groups",
    "weight_axes",
    "zero_groups_",
]
