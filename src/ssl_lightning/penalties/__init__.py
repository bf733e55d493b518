"""Penalty functions on groups: value, subgradient and proximal step.

:class:`PenaltyFunction` is what a group costs, :class:`Penalty` says which groups get which
function and strength, and :class:`Regularizer` binds penalties to a model and runs them::

    regularizer = Regularizer(model, [Penalty(kind="filter", strength=1e-3)])
    regularizer.attach(optimizer)  # from now on, every optimizer.step() does it all
"""

from ssl_lightning.penalties.attach import Attachment
from ssl_lightning.penalties.functional import (
    group_lasso,
    group_lasso_subgradient,
    prox_group_lasso,
)
from ssl_lightning.penalties.functions import (
    MCP,
    SCAD,
    CappedLasso,
    GroupLasso,
    PenaltyFunction,
)
from ssl_lightning.penalties.regularizer import Regularizer
from ssl_lightning.penalties.specs import Penalty, parse_penalty, register_penalty_function

__all__ = [
    "MCP",
    "SCAD",
    "Attachment",
    "CappedLasso",
    "GroupLasso",
    "Penalty",
    "PenaltyFunction",
    "Regularizer",
    "group_lasso",
    "group_lasso_subgradient",
    "parse_penalty",
    "prox_group_lasso",
    "register_penalty_function",
]
