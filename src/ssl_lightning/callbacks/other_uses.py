"""What else in a LightningModule refers to layers that compaction replaces."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.optim.swa_utils import AveragedModel

from ssl_lightning.module import Sparsity

TABLES = ("_modules", "_parameters", "_buffers", "_trainer", "_fabric", "sparsity")
"""Attributes that are followed otherwise, or not at all."""


def refuse_other_uses(sparsity: Sparsity, where: str = "CompactDuringFit") -> None:
    """Refuse a module that uses parts of its network apart from the network.

    They would be the old layers after compaction, which no optimizer trains. The network itself may
    have several names.

    Raises:
        MisconfigurationException: naming the attribute, and the way out.
    """
    network = sparsity.network
    inside = {id(part): name for name, part in network.named_modules()}
    own = {id(parameter) for parameter in network.parameters()}
    named = f"the network `{sparsity.name}`" if sparsity.name else "the module"
    for owner, holder in sparsity.module.named_modules():
        if id(holder) in inside:
            continue
        if isinstance(holder, AveragedModel) and type(holder.module) is type(network):
            raise MisconfigurationException(
                f"{where}: `{owner}` holds averaged weights of {named}, which would not "
                "become smaller with it. Use the callback `WeightAveraging`, or compact after "
                "training."
            )
        for attribute, found in references(holder, top=bool(sparsity.name)):
            part = inside.get(id(found), "" if id(found) in own else None)
            if part is None or (found is network and attribute in holder._modules):
                continue
            place = ".".join(filter(None, (owner, attribute)))
            raise MisconfigurationException(
                f"{where}: `{place}` refers to {named} or a part of it, and would refer "
                "to the old layers after compaction, which are trained no more. Reach the part "
                "through the network where it is used, or let `sparsify` name the module that "
                "holds both uses."
            )


def references(holder: nn.Module, top: bool) -> Iterator[tuple[str, Any]]:
    """Yield attribute and object for what a module refers to, in containers and methods too.

    Args:
        holder: the module.
        top: whether to yield its submodules and parameters as well.
    """
    if top:
        yield from holder._modules.items()
        yield from holder._parameters.items()
    for attribute, value in vars(holder).items():
        if attribute in TABLES:
            continue
        several = value.values() if isinstance(value, dict) else value
        for found in several if isinstance(value, (list, tuple, set, dict)) else (value,):
            yield attribute, getattr(found, "__self__", found)
