"""Plans that were just carried out and compared: ``compact`` need not do it again."""

from __future__ import annotations

from dataclasses import replace
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from ssl_lightning.compaction.plan import Plan

PROVEN: Any = WeakIdKeyDictionary()
"""Network -> its fingerprint and the plan that it was compared with; the last one each."""
PLAIN = (bool, int, float, str, tuple, type(None))


def remember(model: nn.Module, plan: Plan) -> None:
    """Note that a plan was carried out on a copy of a network, and computed the same."""
    PROVEN[model] = (fingerprint(model), replace(plan, modules=dict(plan.modules)))


def is_proven(model: nn.Module, plan: Plan) -> bool:
    """Whether nothing of a network has changed since this plan was made for it.

    Example:
        >>> net = nn.Linear(2, 2)
        >>> plan = Plan({}, ((1, 2),), ("float32",))
        >>> remember(net, plan)
        >>> is_proven(net, plan), is_proven(nn.Linear(2, 2), plan)
        (True, False)
        >>> _ = net.weight.data.mul_(2)
        >>> is_proven(net, plan)
        False
    """
    if model not in PROVEN:
        return False
    print_of_it, known = PROVEN[model]
    same = (known.modules, known.input_shapes, known.input_types, known.structure) == (
        plan.modules,
        plan.input_shapes,
        plan.input_types,
        plan.structure,
    )
    return bool(same and print_of_it == fingerprint(model))


@torch.no_grad()
def fingerprint(model: nn.Module) -> bytes:
    """Return a hash of all weights and buffers, the types of modules and their plain attributes."""
    found = blake2b(repr(model).encode())
    for name, module in model.named_modules():
        plain = {k: v for k, v in vars(module).items() if isinstance(v, PLAIN)}
        found.update(f"{name}{type(module)}{sorted(plain.items(), key=str)}".encode())
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        found.update(f"{name}{tensor.shape}{tensor.dtype}{tensor.device}".encode())
        found.update(as_bytes(tensor))
    return found.digest()


def as_bytes(tensor: Tensor) -> Any:
    """Return the memory of a tensor's elements, in order."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
