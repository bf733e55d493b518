"""What a trainer of transformers holds: its model, its optimizer, and how it calls them."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from transformers import TrainerState, TrainingArguments

from ssl_lightning.callbacks.measuring import Call
from ssl_lightning.groups import GroupSet
from ssl_lightning.groups.selectors import as_list, as_selector

KEPT = ("forward", "_original_forward")
"""Attributes that accelerate gives a model for mixed precision; they call the model itself."""


def inner(optimizer: Any) -> Optimizer:
    """Return torch's optimizer of that which accelerate has wrapped."""
    found: Optimizer = getattr(optimizer, "optimizer", optimizer)
    return found


def as_selectors(groups: Sequence[Any] | None) -> list[Any] | None:
    """Return selectors of groups, of which kinds may be named alone.

    Example:
        >>> as_selectors(["ffn", {"kind": "head"}]), as_selectors(None)
        ([Selector(kind='ffn', layers='*', members='all'), ...], None)
    """
    if groups is None:
        return None
    return [g if isinstance(g, GroupSet) else as_selector(g) for g in as_list(groups)]


def is_plain(value: Any) -> bool:
    """Whether JSON holds a value.

    Example:
        >>> is_plain([{"kind": "ffn"}]), is_plain(object())
        (True, False)
    """
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


def forget_best(state: TrainerState) -> None:
    """Let the best checkpoint be one of those to come: earlier ones are of another model."""
    state.best_metric = state.best_model_checkpoint = None
    if hasattr(state, "best_global_step"):
        state.best_global_step = None


def without_labels(call: Call, model: Any) -> Call:
    """Return a call of the model for its outputs alone: without labels, without a cache.

    A decoder's inputs, which such models make of labels, are made before.
    """
    labels, prepare = call.named.get("labels"), "prepare_decoder_input_ids_from_labels"
    decoder = "decoder_input_ids" in call.named or "decoder_inputs_embeds" in call.named
    made = {}
    if labels is not None and hasattr(model, prepare) and not decoder:
        made = {"decoder_input_ids": getattr(model, prepare)(labels=labels)}
    named = {
        key: value
        for key, value in (call.named | made).items()
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
