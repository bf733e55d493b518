"""The callback of ``transformers.Trainer``."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from ssl_lightning.callbacks.measuring import (
    MAX_BATCHES,
    TrainingCalls,
    changes_of_outputs,
)
from ssl_lightning.compaction import (
    Plan,
    check_sliceable,
    plan_and_compact,
    save_compact,
    slice_optimizer_,
)
from ssl_lightning.compaction.pretrained import note_plans_, plans_of
from ssl_lightning.compaction.store import RECIPE, recipe_of
from ssl_lightning.costs import parse_targets
from ssl_lightning.files import replacing
from ssl_lightning.graph import Inputs
from ssl_lightning.groups import GroupSet
from ssl_lightning.groups.surroundings import Surroundings
from ssl_lightning.hugging_face.parts import (
    as_selectors,
    become_,
    forget_best,
    inner,
    is_plain,
    plain_forward,
    precision,
    refuse_several,
    without_labels,
)
from ssl_lightning.measure import num_parameters
from ssl_lightning.penalties import Regularizer
from ssl_lightning.penalties.attach import Attachment
from ssl_lightning.penalties.specs import parse_penalties
from ssl_lightning.prune import prune_
from ssl_lightning.prune.one_shot import resolve
from ssl_lightning.prune.scores import find_importance

MEASURED = "measured"
KINDS = ("head", "ffn")
"""What may go by default, as far as a model has it: attention heads, with the heads of keys and
values that they share, and neurons of the feed-forward layers."""
BUDGETS = ("macs", "parameters", "size")
NUM_EXAMPLES = NUM_LAST = 2


class SparsityCallback(TrainerCallback, ExportableState):
    """Bring the model of a ``transformers.Trainer`` down to a budget, and train what is left.

    At the beginning of a step, the groups that the outputs need least are removed from the model.
    It remains the same object with smaller layers in place of the old ones: the trainer, its
    optimizer and its scheduler continue with it. The best checkpoint is one of those that follow.

    To write the model, call ``save_compact(folder, model, callback.plans)``; the trainer's own
    ``save_model`` writes no plan, without which no library can make layers of these sizes. Every
    checkpoint that the trainer writes afterwards has the plan, and so has ``output_dir`` at the end
    of the run; :func:`~ssl_lightning.load_compact` reads folders with a ``plan.json``. A run is
    continued from such a checkpoint with ``Trainer(load_compact(checkpoint), ...)`` and a callback
    as before, then ``train(resume_from_checkpoint=checkpoint)``; from an earlier one with the dense
    model, and measuring begins anew.

    Args:
        at: share of the run's steps from which on to do so. By default at once, which is meant for
            a model that is trained already; give an untrained one some time.
        groups: what may go, as :func:`~ssl_lightning.resolve_groups` takes it, or kinds:
            ``["ffn"]``. By default heads and feed-forward neurons, whichever the model has.
        penalties: as :class:`~ssl_lightning.Regularizer` takes them; they act until then, from the
            second step on. What they have brought to zero goes, even below the budget: begin with
            ``[{"kind": "ffn", "strength": 1e-5}]``.
        importance: ``"measured"``, by how much the outputs change without them on the training
            inputs of the next steps, up to eight; or another of :func:`~ssl_lightning.prune_`.
        multiple: retain a multiple of so many groups in each layer.
        **budget: what the model may cost at most: ``macs``, ``parameters`` or ``size`` (bytes), as
            a share of at most 1 of what it costs before, or a number above 100.

    Attributes:
        plans: that were carried out on the model, also before by other callbacks.

    Raises:
        ValueError: for no budget, or a number or name out of range; when training begins, for an
            optimizer whose state cannot be sliced, several processes or devices, or a compiled
            model; in its second step, if the model has no such groups; when it is time, if the
            budget cannot be reached.

    Example:
        >>> callback = SparsityCallback(macs=0.5)
        >>> callback.budget, callback.at, len(callback.plans)
        ({'macs': 0.5}, 0.0, 0)
    """

    def __init__(
        self,
        *,
        at: float = 0.0,
        groups: Sequence[Any] | None = None,
        penalties: Sequence[Any] | None = None,
        importance: Any = MEASURED,
        multiple: int | None = None,
        **budget: float,
    ) -> None:
        if not budget or budget.keys() - set(BUDGETS):
            got = ", ".join(sorted(budget.keys() - set(BUDGETS))) or "none"
            raise ValueError(
                f"SparsityCallback: expected a budget in some of {', '.join(BUDGETS)}, such as "
                f"macs=0.5, got {got}. Give one."
            )
        parse_targets("SparsityCallback", budget)
        find_importance(importance, MEASURED)
        if multiple is not None and (type(multiple) is not int or multiple < 1):
            raise ValueError(
                "SparsityCallback: expected a whole number >= 1 as multiple, or None, got "
                f"{multiple!r}. Give 8 or 16, say."
            )
        parse_penalties(penalties or ())
        if not 0 <= at < 1:
            raise ValueError(
                "SparsityCallback: expected `at` to be a share of the run's steps, at least 0 and "
                f"below 1, got {at}."
            )
        self.at, self.groups, self.penalties = at, as_selectors(groups), penalties
        self.importance, self.multiple, self.budget = importance, multiple, budget
        self.plans: list[Plan] = []
        self.landed = False
        self.calls = TrainingCalls()
        self._given = {"at": at, "groups": groups, "penalties": penalties, **budget}
        self._given |= {"importance": importance, "multiple": multiple}
        self._due = self._checked = False
        self._model: weakref.ref[nn.Module] | None = None
        self._attachment: Attachment | None = None

    # --- what transformers calls

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Refuse a run in which this could not be done."""
        model, optimizer = kwargs["model"], inner(kwargs["optimizer"])
        refuse_several(args)
        check_sliceable(optimizer)
        self.detach()
        self.calls, self._due = TrainingCalls(), False
        stored: Any = state.stateful_callbacks
        own = stored.get(type(self).__name__) if isinstance(stored, dict) else None
        if isinstance(own, list):
            raise ValueError(
                f"SparsityCallback: expected one in a trainer, got {len(own)}. Let one run follow "
                "the other."
            )
        if state.global_step > 0:
            self.resume(state, own)
        elif self._model is None or self._model() is not model:
            self.landed, self.plans = False, list(plans_of(model))
        self._model = weakref.ref(model)
        if isinstance(stored, dict):  # of which the trainer expects an item to write anew
            stored.setdefault(type(self).__name__, self.state())

    def resume(self, state: TrainerState, own: dict[str, Any] | None) -> None:
        """Take over what a checkpoint holds.

        Raises:
            ValueError: if it was written without such a callback, after its time.
        """
        if own is None and state.global_step > self.at * state.max_steps:
            raise ValueError(
                f"SparsityCallback: the run is resumed at step {state.global_step}, after at="
                f"{self.at}, from a checkpoint that knows nothing of this callback. Give a later "
                "`at`."
            )
        attributes = (own or {}).get("attributes", {})
        self.landed = bool(attributes.get("landed"))
        self.plans = [Plan.from_json(text) for text in attributes.get("plans", ())]

    def on_step_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Attach the penalties, note inputs, or reach the budget, when it is time."""
        model, optimizer = kwargs["model"], inner(kwargs["optimizer"])
        self.calls.end_step()
        if self.landed:
            return
        if self.calls.calls and self.penalties and self._attachment is None:
            self.attach(state, model, optimizer)
        latest = max(state.max_steps - NUM_LAST, 0)  # one step to measure in, one afterwards
        due = state.global_step >= min(self.at * state.max_steps, latest)
        if due and not self._due:  # what was noted before was for the penalties
            self._due, self.calls = True, TrainingCalls()
        most = MAX_BATCHES if self.importance == MEASURED else 1
        last = state.global_step == state.max_steps - 1  # no later step to do it in
        if due and self.calls.calls and (last or self.calls.enough(most)):
            self.land(args, model, optimizer)
            forget_best(state)
        elif due or not self.calls.calls:
            self.calls.begin_step(model)
        elif not self._checked:  # now, not when it is time
            with plain_forward(model):
                self.group_sets(model, self.example(model))
            self._checked = True

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write the plan beside the model in the checkpoint."""
        if self.plans:
            folder = Path(str(args.output_dir), f"checkpoint-{state.global_step}")
            save_compact(folder, kwargs["model"], self.plans)

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Write the plan where the trainer saves by default; say if there is none."""
        self.calls.end_step()
        self.detach()
        if self.plans and args.should_save:
            recipe = recipe_of(kwargs["model"], self.plans)
            with replacing(Path(str(args.output_dir), RECIPE)) as temporary:
                temporary.write_text(recipe.to_json())
        if not self.landed:
            rank_zero_warn(
                f"SparsityCallback: the run ended after {state.global_step} steps, before "
                f"{self.budget} was reached. Lower `at` or train on."
            )

    def state(self) -> dict[str, Any]:
        """Return what the trainer stores in its checkpoints."""
        plans = [plan.to_json() for plan in self.plans]
        given = {k: v for k, v in self._given.items() if is_plain(v)}
        return {"args": given, "attributes": {"plans": plans, "landed": self.landed}}

    # --- what is done

    def attach(self, state: TrainerState, model: nn.Module, optimizer: Optimizer) -> None:
        """Let the penalties act."""
        with plain_forward(model):
            regularizer = Regularizer(model, list(self.penalties or ()), self.example(model))
        self._attachment = regularizer.attach(optimizer, epoch=lambda: float(state.epoch or 0.0))

    def detach(self) -> None:
        """Let the penalties act no more."""
        if self._attachment is not None:
            self._attachment.detach()
            self._attachment = None

    def example(self, model: nn.Module) -> Inputs:
        """Return a few of the inputs that were noted."""
        call = without_labels(self.calls.calls[0], model)
        few = {k: v[:NUM_EXAMPLES] if isinstance(v, Tensor) and v.dim() else v
               for k, v in call.named.items()}  # fmt: skip
        return Inputs(*(x[:NUM_EXAMPLES] for x in call.arguments), **few)

    def group_sets(self, model: nn.Module, example: Inputs) -> list[GroupSet]:
        """Return what may go.

        Raises:
            ValueError: if there are no such groups.
        """
        around = Surroundings(model, example, strict=True)
        if self.groups is not None:
            return resolve(model, around, self.groups, "coupled", "SparsityCallback")
        found = [s for kind in KINDS for s in resolve(model, around, None, kind)]
        if not found:
            raise ValueError(
                f"SparsityCallback: {type(model).__name__} has neither heads nor feed-forward "
                "neurons that could be removed. Give `groups`, such as ['coupled']."
            )
        return found

    def land(self, args: TrainingArguments, model: nn.Module, optimizer: Optimizer) -> None:
        """Remove groups until the budget is reached; the model becomes smaller in place."""
        self.detach()
        before = num_parameters(model)
        with plain_forward(model):
            example = self.example(model)
            sets = self.group_sets(model, example)
            importance = self.importance
            if importance == MEASURED:
                calls = [without_labels(call, model) for call in self.calls.calls]
                importance = changes_of_outputs(lambda: precision(args), model, sets, calls)
            report = prune_(
                model,
                example,
                groups=sets,
                importance=importance,
                multiple=self.multiple,
                budget=self.budget,
            )
            plan, small = plan_and_compact(model, example, constants=False)
            small.train(model.training)
            slice_optimizer_(optimizer, model, plan, small)
            become_(model, small)
        self.plans, self.calls, self.landed = [*plans_of(model), plan], TrainingCalls(), True
        note_plans_(model, self.plans)
        rank_zero_info(
            f"SparsityCallback: {before:,} -> {num_parameters(model):,} parameters\n{report}"
        )
