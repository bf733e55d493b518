"""What compaction would leave of a network, asked again and again while it trains."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

from ssl_lightning.compaction import make_plan
from ssl_lightning.compaction.rewrite import apply_slices
from ssl_lightning.graph import (
    ExampleInput,
    SiteSlices,
    Trace,
    analyse,
    as_inputs,
    trace,
    with_plain_weights,
    working_copy,
)
from ssl_lightning.graph.copies import outside_inference
from ssl_lightning.measure.macs import count_macs

Answer = TypeVar("Answer")


class CompactForm:
    """Asks what a network would be if it were compacted now, again and again as its zeros change.

    The network is captured once, and only analysed anew. Nothing is compared with the network's
    function, as :func:`~ssl_lightning.compaction.make_plan` does, unless its sizes are fixed by
    code.

    Args:
        example_input: as :func:`~ssl_lightning.compaction.make_plan` takes it.
        constants: whether what is constant without being zero counts as removed, too.

    Example:
        >>> from ssl_lightning.backbones import create_backbone
        >>> net, form = create_backbone("lenet"), CompactForm(torch.zeros(1, 1, 28, 28))
        >>> with torch.no_grad():
        ...     net.conv1.weight[10:] = 0
        ...     net.conv1.bias[10:] = 0
        >>> form.ask(net, lambda small: small.conv2.in_channels)
        10
    """

    def __init__(self, example_input: ExampleInput, *, constants: bool = True) -> None:
        self.inputs = as_inputs(example_input)
        self.constants = constants
        self._traced: tuple[nn.Module, nn.Module, Trace] | None = None

    @outside_inference
    def ask(self, model: nn.Module, question: Callable[[nn.Module], Answer]) -> Answer:
        """Return what a question about the compact form of a network is answered.

        Args:
            model: the network, with its present zeros; unchanged.
            question: called with the compact form, in evaluation mode.

        Raises:
            ValueError: if the network cannot be captured, or its weights are not finite.
        """
        try:
            return question(self._small(model, self._analysed(model)))
        except Exception:  # sizes that code fixes raise anything; only a plan finds what may go
            plan = make_plan(model, self.inputs, constants=self.constants)
            return question(self._small(model, plan.modules))

    def _small(self, model: nn.Module, modules: dict[str, SiteSlices]) -> nn.Module:
        return apply_slices(working_copy(model, apart=False), modules).eval()

    def _analysed(self, model: nn.Module) -> dict[str, SiteSlices]:
        """Return what can be removed, from a trace that is made once."""
        plain = with_plain_weights(working_copy(model, torch.float64))
        if self._traced is None or self._traced[0] is not model:
            inputs = self.inputs.map(lambda x: x.double() if x.is_floating_point() else x)
            self._traced = model, plain, trace(plain, inputs)
        else:
            self._traced[1].load_state_dict(plain.state_dict())
        return analyse(self._traced[1], self._traced[2], constants=self.constants)


class MacsLeft:
    """Counts the multiply-adds that a network would have if it were compacted now.

    It is analysed anew only where other weights are zero than the last time; while nothing is
    zero, not even that.

    Args:
        example_input: as :func:`~ssl_lightning.compaction.make_plan` takes it.
        measure: from a network and its inputs to what is counted, if not multiply-adds.

    Example:
        >>> from ssl_lightning.backbones import create_backbone
        >>> net, left = create_backbone("lenet"), MacsLeft(torch.zeros(1, 1, 28, 28))
        >>> left(net)
        2293000
        >>> with torch.no_grad():
        ...     net.conv1.weight[10:] = 0
        ...     net.conv1.bias[10:] = 0
        >>> left(net)
        1349000
    """

    def __init__(
        self,
        example_input: ExampleInput,
        measure: Callable[[nn.Module, ExampleInput], int] = count_macs,
    ) -> None:
        self.form, self.measure = CompactForm(example_input), measure
        self._last: tuple[nn.Module, str, int] | None = None

    def __call__(self, model: nn.Module) -> int:
        """Return the multiply-adds of one forward pass after compaction.

        Raises:
            ValueError: if the network cannot be captured, or its weights are not finite.
        """
        pattern = zero_pattern(model)
        if self._last is None or self._last[0] is not model or self._last[1] != pattern:
            self._last = model, pattern, self.count(model, dense=not pattern)
        return self._last[2]

    def count(self, model: nn.Module, *, dense: bool) -> int:
        """Return the multiply-adds, of the network as it is if nothing in it is zero."""
        return self.counted(model) if dense else self.form.ask(model, self.counted)

    def counted(self, model: nn.Module) -> int:
        """Return what is counted of a network."""
        return self.measure(model, self.form.inputs)


@torch.no_grad()
def zero_pattern(model: nn.Module) -> str:
    """Return a digest of which parameters' elements are zero; empty if no weight is.

    Biases are zero in many networks that nothing can be removed from, so they alone do not count.

    Example:
        >>> zero_pattern(nn.Linear(3, 2)) == ""
        True
    """
    digest, some = hashlib.blake2b(digest_size=16), False
    for name, parameter in model.named_parameters():
        zero = parameter == 0
        some |= bool(zero.any()) and not (parameter.dim() < 2 and name.endswith("bias"))
        digest.update(zero.cpu().numpy().tobytes())
    return digest.hexdigest() if some else ""
