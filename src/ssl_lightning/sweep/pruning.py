"""When a trial is not worth finishing: the median rule for two objectives."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

STARTUP = 5
"""Finished trials that a trial is compared with; it goes on while there are fewer."""

Curve = Mapping[int, tuple[float, float]]
"""Epoch -> validation error and cost after it."""


def worth_stopping(curve: Curve, finished: Iterable[Curve], warmup: int) -> bool:
    """Whether a trial's error is above the median of trials that were no more costly.

    Compared are finished trials whose cost after the same epoch was at most this trial's. Where
    the trial's lowest error so far is above the median of their errors, at least half of them beat
    it there in error, and none of them in cost only. So a trial that is cheaper than all others is
    never stopped, which a comparison of errors alone would do. The median is that of
    :class:`optuna.pruners.MedianPruner`.

    Args:
        curve: of the trial; its last epoch counts.
        finished: of all finished trials.
        warmup: number of epochs at the beginning after which no trial is stopped.

    Example:
        >>> others = [{0: (error, 50.0)} for error in (1.0, 2.0, 3.0, 4.0, 5.0)]
        >>> worth_stopping({0: (3.5, 60.0)}, others, 0), worth_stopping({0: (3.5, 40.0)}, others, 0)
        (True, False)
    """
    import optuna
    from optuna.trial import TrialState

    if not curve:
        return False
    epoch = max(curve)
    cost = curve[epoch][1]
    peers = [each for each in finished if epoch in each and each[epoch][1] <= cost]
    study = optuna.create_study(storage=optuna.storages.InMemoryStorage(), direction="minimize")
    study.add_trials([as_trial(each, TrialState.COMPLETE) for each in peers])
    pruner = optuna.pruners.MedianPruner(n_startup_trials=STARTUP, n_warmup_steps=warmup)
    return bool(pruner.prune(study, as_trial(curve, TrialState.RUNNING)))


def as_trial(curve: Curve, state: object) -> FrozenTrial:
    """Return a trial of one objective with the errors as intermediate values."""
    from optuna.trial import TrialState, create_trial

    errors = {epoch: error for epoch, (error, _) in curve.items()}
    value = errors[max(errors)] if state == TrialState.COMPLETE else None
    return create_trial(state=state, value=value, intermediate_values=errors)  # type: ignore[arg-type]
