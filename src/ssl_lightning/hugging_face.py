"""A callback of Hugging Face's ``transformers.Trainer``: penalties, a budget and compaction.

Needs ``pip install 'ssl_lightning[transformers]'``.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer

from ssl_lightning.callbacks.measuring import (
    MAX_BATCHES,
    Call,
    TrainingCalls,
    changes_of_outputs,
)
from ssl_lightning.compaction import (
    Plan,
    check_sliceable,
    compact,
    make_plan,
    save_compact,
    slice_optimizer_,
)
from ssl_lightning.graph import Inputs
from ssl_lightning.groups.surroundings import Surroundings
from ssl_lightning.measure import num_parameters
from ssl_lightning.penalties import Regularizer
from ssl_lightning.penalties.attach import Attachment
from ssl_lightning.prune import prune_
from ssl_lightning.prune.one_shot import resolve

try:
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
    from transformers.trainer_callback import ExportableState
except ImportError as error:
    raise ImportError(
        "ssl_lightning.hugging_face needs transformers with its trainer, which is not installed. "
        "Install it: `pip install 'ssl_lightning[transformers]'`."
    ) from error

MEASURED = "measured"
TRANSFORMER_GROUPS = ({"kind": "head"}, {"kind": "ffn"})
"""What may go by default: attention heads, with the heads of keys and values that they share, and
neurons of the feed-forward layers."""
NUM_EXAMPLES = 2
KEPT = ("forward", "_original_forward")
"""Attributes that accelerate gives a model for mixed precision; they call the model itself."""


class SparsityCallback(TrainerCallback, ExportableState):
    """Bring the model of a ``transformers.Trainer`` down to a budget, and train what is left.

    At the beginning of a step, the groups that the outputs need least are removed from the model,
    which becomes smaller in place: the trainer, its optimizer and its scheduler continue with it.
    Every checkpoint that the trainer writes afterwards gets a ``plan.json`` beside the model's own
    files, so that :func:`~ssl_lightning.load_compact` reads its folder. To continue a run, give the
    trainer that model: ``Trainer(load_compact(checkpoint), ..., callbacks=[SparsityCallback(...)])
    .train(resume_from_checkpoint=checkpoint)``.

    Args:
        at: share of the run's steps after which to do so: 0 for a model that is trained already.
        groups: what may go, as :func:`~ssl_lightning.resolve_groups` takes it.
        penalties: as :class:`~ssl_lightning.Regularizer` takes them; they act until then, from the
            second step on.
        importance: ``"measured"``, by how much the outputs change without them on the training
            inputs of up to eight steps, or another of :func:`~ssl_lightning.prune_`.
        multiple: retain a multiple of so many groups in each layer.
        **budget: what the model may cost at most: ``macs``, ``parameters`` or ``size``, as a share
            of the dense model's or a number.

    Attributes:
        plans: that were carried out; ``save_compact(folder, model, callback.plans)`` writes it.

    Raises:
        ValueError: for no budget, ``at`` out of range; when training begins, for an optimizer whose
            state cannot be sliced, several processes or devices, or a compiled model; when the
            budget is to be reached, if it cannot be.

    Example:
        >>> callback = SparsityCallback(macs=0.5)
        >>> callback.budget, callback.at, len(callback.plans)
        ({'macs': 0.5}, 0.0, 0)
    """

    def __init__(
        self,
        *,
        at: float = 0.0,
        groups: Sequence[Any] = TRANSFORMER_GROUPS,
        penalties: Sequence[Any] | None = None,
        importance: Any = MEASURED,
        multiple: int | None = None,
        **budget: float,
    ) -> None:
        if not budget:
            raise ValueError(
                "SparsityCallback: expected a budget such as macs=0.5 or parameters=0.5, got none. "
                "Give one."
            )
        if not 0 <= at < 1:
            raise ValueError(
                "SparsityCallback: expected `at` to be a share of the run's steps, at least 0 and "
                f"below 1, got {at}."
            )
        self.at, self.groups, self.penalties = at, groups, penalties
        self.importance, self.multiple, self.budget = importance, multiple, budget
        self.plans: list[Plan] = []
        self.calls = TrainingCalls()
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
        optimizer = inner(kwargs["optimizer"])
        refuse_several(args)
        refuse_best_of_both(args, self.at)
        check_sliceable(optimizer)
        self.calls = TrainingCalls()
        others: Any = state.stateful_callbacks or {}
        stored = others.get(type(self).__name__) or {}
        self.plans = [
            Plan.from_json(text) for text in stored.get("attributes", {}).get("plans", ())
        ]
        if state.global_step > self.at * state.max_steps and not self.plans:
            raise ValueError(
                f"SparsityCallback: the run is resumed at step {state.global_step}, after at="
                f"{self.at}, from a checkpoint that knows nothing of this callback. Give a later "
                "`at`."
            )

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
        if self.plans:
            return
        if self.calls.calls and self.penalties and self._attachment is None:
            self.attach(state, model, optimizer)
        due = state.global_step >= self.at * state.max_steps
        most = MAX_BATCHES if self.importance == MEASURED else 1
        last = state.global_step == state.max_steps - 1  # no later step to do it in
        if due and self.calls.calls and (last or self.calls.enough(most)):
            self.land(args, model, optimizer)
        elif due or not self.calls.calls:
            self.calls.begin_step(model)

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
        """Say if the run ended before the budget was reached."""
        self.calls.end_step()
        self.detach()
        if not self.plans:
            rank_zero_warn(
                f"SparsityCallback: the run ended after {state.global_step} steps, before "
                f"{self.budget} was reached. Lower `at` or train on."
            )

    def state(self) -> dict[str, Any]:
        """Return what the trainer stores in its checkpoints."""
        return {"args": {}, "attributes": {"plans": [plan.to_json() for plan in self.plans]}}

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

    def land(self, args: TrainingArguments, model: nn.Module, optimizer: Optimizer) -> None:
        """Remove groups until the budget is reached; the model becomes smaller in place."""
        self.detach()
        before = num_parameters(model)
        with plain_forward(model):
            example = self.example(model)
            sets = resolve(model, Surroundings(model, example, strict=True), self.groups, "coupled")
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
            plan = make_plan(model, example, constants=False)
            small = compact(model, plan).train(model.training)
            slice_optimizer_(optimizer, model, plan, small)
            become_(model, small)
        self.plans, self.calls = [plan], TrainingCalls()
        rank_zero_info(
            f"SparsityCallback: {before:,} -> {num_parameters(model):,} parameters\n{report}"
        )


def inner(optimizer: Any) -> Optimizer:
    """Return torch's optimizer of that which accelerate has wrapped."""
    found: Optimizer = getattr(optimizer, "optimizer", optimizer)
    return found


def without_labels(call: Call, model: nn.Module) -> Call:
    """Return a call of the model for its outputs alone: without labels, without a cache."""
    named = {
        key: value
        for key, value in call.named.items()
        if "label" not in key and key != "num_items_in_batch" and value is not None
    }
    if "use_cache" in inspect.signature(type(model).forward).parameters:
        named["use_cache"] = False
    return Call(call.arguments, named)


def precision(args: TrainingArguments) -> AbstractContextManager[Any]:
    """Return the context in which the trainer runs forward passes."""
    if not (args.bf16 or args.fp16):
        return nullcontext()
    return torch.autocast(args.device.type, torch.bfloat16 if args.bf16 else torch.float16)


@contextmanager
def plain_forward(model: nn.Module) -> Iterator[None]:
    """Take from a model, in the block, what accelerate put before its forward pass.

    That calls the model that it was made for, and would do so in copies of it.
    """
    taken = {name: model.__dict__.pop(name) for name in KEPT if name in model.__dict__}
    try:
        yield
    finally:
        model.__dict__.update(taken)


def become_(model: nn.Module, small: nn.Module) -> None:
    """Let a model be another of its class, for all that hold it."""
    assert type(model) is type(small)
    model.__dict__.clear()
    model.__dict__.update(small.__dict__)


def refuse_several(args: TrainingArguments) -> None:
    """Refuse runs whose parts hold the old parameters.

    Raises:
        ValueError: naming the way out.
    """
    if args.world_size > 1 or args.n_gpu > 1 or args.deepspeed or args.fsdp or args.torch_compile:
        raise ValueError(
            "SparsityCallback needs one process, one device and a model that is not compiled: "
            "others hold the parameters that they saw first. Set CUDA_VISIBLE_DEVICES to one "
            "device and leave out deepspeed, fsdp and torch_compile."
        )


def refuse_best_of_both(args: TrainingArguments, at: float) -> None:
    """Refuse to go back to a checkpoint of the dense model at the end.

    Raises:
        ValueError: naming the way out.
    """
    if args.load_best_model_at_end and at > 0:
        raise ValueError(
            "SparsityCallback: load_best_model_at_end could go back to the dense model, whose "
            f"weights do not fit any more, since at={at}. Leave it out, or give at=0."
        )
