"""Multiply-adds, parameters and bytes of a model."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, overload

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.hooks import RemovableHandle

from ssl_lightning.graph import (
    CONVS,
    ExampleInput,
    as_inputs,
    run_checked,
    same_random_state,
    working_copy,
)


@overload
def count_macs(
    model: nn.Module, example_input: ExampleInput, per_layer: Literal[False] = False
) -> int: ...
@overload
def count_macs(
    model: nn.Module, example_input: ExampleInput, per_layer: Literal[True]
) -> dict[str, int]: ...
def count_macs(
    model: nn.Module, example_input: ExampleInput, per_layer: bool = False
) -> int | dict[str, int]:
    """Count the multiply-adds of one forward pass in evaluation mode.

    Half of what :class:`torch.utils.flop_counter.FlopCounterMode` counts: convolutions and
    matrix products (linear layers and both products of attention); element-wise work, pooling and
    normalisation count nothing, nor do the zeros of a matrix in compressed sparse rows. FLOPs are
    twice this number. An operator that torch does not know counts nothing either, unless its
    formula was registered with :func:`torch.utils.flop_counter.register_flop_formula`.

    The model is unchanged: a copy is run.

    Args:
        model: any module.
        example_input: batch ``(N, ...)``, or a tuple of all inputs; the whole batch is counted.
        per_layer: return each module's own count instead of the total.

    Returns:
        The total, or a dict from module name (``""`` is the model itself) to the multiply-adds
        done in that module and not in its children. Zeros have no entry; the sum is the total.

    Raises:
        ValueError: if there is no network or no batch, or the network cannot be run on it.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 10))
        >>> count_macs(model, torch.zeros(1, 1, 4, 4))
        152
        >>> count_macs(model, torch.zeros(1, 1, 4, 4), per_layer=True)
        {'0': 72, '2': 80}
    """
    inputs = as_inputs(example_input)
    counter = FlopCounterMode(display=False, custom_mapping=PRODUCTS)
    copied = working_copy(model).requires_grad_(False).eval()  # hooks fail on views that need them
    with ExitStack() as stack:
        stack.enter_context(same_random_state())
        recurrent = any(isinstance(module, nn.RNNBase) for module in copied.modules())
        stack.enter_context(_countable_products(recurrent))
        stack.enter_context(torch.no_grad())
        own = stack.enter_context(_own_flops(copied, counter)) if per_layer else {}
        stack.enter_context(counter)
        run_checked(copied, inputs)
    if per_layer:
        return {name: int(flops // 2) for name, flops in own.items() if flops}
    return int(counter.get_total_flops() // 2)


def count_sparse_macs(model: nn.Module, example_input: ExampleInput) -> int:
    """Count multiply-adds without those of zero rows and zero columns of convolutions.

    That is what is left if each convolution is column-sparse: a row is a filter, a column a filter
    shape, ``W[:, c, h, w]`` (Wen et al. 2016, section 3.1).

    Args:
        model: any module.
        example_input: as for :func:`count_macs`.

    Example:
        >>> conv = nn.Conv2d(2, 4, 3, bias=False)
        >>> _ = nn.init.zeros_(conv.weight[:, :, :, 0])
        >>> x = torch.zeros(1, 2, 3, 3)
        >>> count_macs(conv, x), count_sparse_macs(conv, x)
        (72, 48)
    """
    modules = dict(model.named_modules())
    counts = count_macs(model, example_input, per_layer=True)
    return round(sum(count * nonzero_share(modules[name]) for name, count in counts.items()))


def nonzero_share(module: nn.Module) -> float:
    """Return the share of a convolution's products that are left without zero rows and columns.

    1 for other modules, and for column-sparse ones, which have left them out.
    """
    if not isinstance(module, CONVS):
        return 1.0
    used = (module.weight != 0).flatten(1).view(module.groups, -1, module.weight[0].numel())
    products = used.any(2).sum(1) * used.any(1).sum(1)
    return float(products.sum()) / module.weight.numel()


def _product_flops(first: Any, second: Any, *_: Any, **__: Any) -> int:
    """Return the FLOPs of a matrix product; in compressed sparse rows zeros count nothing."""
    elements = first._nnz() if first.layout == torch.sparse_csr else first.numel()
    return 2 * int(elements) * int(second.shape[1])


_product_flops._get_raw = True  # type: ignore[attr-defined]  # given tensors, not their shapes


def _vector_flops(matrix: Any, vector: Any, *_: Any, **__: Any) -> int:
    """Return the FLOPs of the product of a matrix and a vector, whose shapes are given."""
    return 2 * int(matrix[0]) * int(vector[0])


PRODUCTS = {torch.ops.aten.mm: _product_flops, torch.ops.aten.mv: _vector_flops}
"""Operators of torch -> how their FLOPs are counted here."""


@contextmanager
def _own_flops(model: nn.Module, counter: FlopCounterMode) -> Iterator[dict[str, int]]:
    """Charge what the counter gained since the last change of module to the innermost module."""
    own = {name: 0 for name, _ in model.named_modules()}
    running: list[str] = []
    charged = 0

    def charge() -> None:
        nonlocal charged
        if running:
            own[running[-1]] += counter.get_total_flops() - charged
        charged = counter.get_total_flops()

    def leave(*_: Any) -> None:
        charge()
        running.pop()

    def enter(name: str) -> None:
        charge()
        running.append(name)

    handles: list[RemovableHandle] = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(lambda *_, name=name: enter(name)))
        handles.append(module.register_forward_hook(leave))
    try:
        yield own
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model into evaluation mode and give each module its own mode back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def _countable_products(recurrent: bool) -> Iterator[None]:
    """Make attention and recurrent layers run as products: fused operators are not counted."""
    attention = torch.backends.mha.get_fastpath_enabled()
    # slower without these libraries, whose recurrent layers are one operator
    libraries: list[Any] = [torch.backends.mkldnn, torch.backends.cudnn] if recurrent else []
    enabled = [library.enabled for library in libraries]
    torch.backends.mha.set_fastpath_enabled(False)
    for library in libraries:
        library.enabled = False
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(attention)
        for library, value in zip(libraries, enabled, strict=True):
            library.enabled = value


def num_parameters(model: nn.Module) -> int:
    """Return the number of elements of all parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def num_bytes(model: nn.Module) -> int:
    """Return the bytes of all parameters and buffers."""
    tensors = [*model.parameters(), *model.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
