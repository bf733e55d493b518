"""Group lasso and l1: value, subgradient and proximal step.

:mod:`~ssl_lightning.penalties.functional` is the maths; :class:`GroupLasso` and :class:`L1` say
which groups get which strength; :class:`Regularizer` binds them to a model and runs them::

    regularizer = Regularizer(model, [GroupLasso(kind="filter", strength=1e-3)])
    regularizer.attach(optimizer)  # from now on, every optimizer.step() does it all
"""

from ssl_lightning.penalties.attach import Attachment
from ssl_lightning.penalties.functional import (
    group_lasso,
    group_lasso_subgradient,
    prox_group_lasso,
    prox_group_lasso_metric,
    prox_l1,
)
from ssl_lightning.penalties.regularizer import Regularizer
from ssl_lightning.penalties.specs import (
    L1,
    PENALTIES,
    GroupLasso,
    Penalty,
    parse_penalty,
    penalty_name,
    penalty_to_dict,
)
from ssl_lightning.penalties.terms import Term

__all__ = [
    "L1",
    "PENALTIES",
    "Attachment",
    "GroupLasso",
    "Penalty",
    "Regularizer",
    "Term",
    "group_lasso",
    "group_lasso_subgradient",
    "parse_penalty",
    "penalty_name",
    "penalty_to_dict",
    "prox_group_lasso",
    "prox_group_lasso_metric",
    "prox_l1",
]
