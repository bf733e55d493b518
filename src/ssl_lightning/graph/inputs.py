"""What a network is called with: positional and keyword inputs, tensors or not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from torch import Tensor, cat, nn
from torch.utils import _pytree as pytree

from ssl_lightning.suggest import said_by

ORDER = "The network is the first argument, its example input the second."


class Inputs:
    """The inputs of one call of a network: ``net(*inputs.args, **inputs.kwargs)``.

    Everything that takes an ``example_input`` takes one of these too. What is not a tensor (None, a
    number, a string) is taken as part of the network: what is found holds for that value.

    Args:
        args: positional inputs: tensors, other values, and nested lists, tuples and dicts of them.
        kwargs: inputs by name.

    Example:
        >>> import torch
        >>> inputs = Inputs(torch.zeros(1, 3), mask=None)
        >>> inputs.args[0].shape, inputs.kwargs
        (torch.Size([1, 3]), {'mask': None})
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args = args
        self.kwargs = kwargs

    def __repr__(self) -> str:
        shown = [f"{value!r}" for value in self.args]
        return f"Inputs({', '.join([*shown, *(f'{k}={v!r}' for k, v in self.kwargs.items())])})"

    def run(self, network: Callable[..., Any]) -> Any:
        """Call a network with copies of the tensors: it may write into its inputs."""
        copies = self.map(lambda tensor: tensor.clone())
        return network(*copies.args, **copies.kwargs)

    def leaves(self) -> list[Any]:
        """Return all tensors and other values in the nested structure, in order."""
        return pytree.tree_leaves((self.args, self.kwargs))

    def tensors(self) -> list[Tensor]:
        """Return all tensors in the nested structure, in order."""
        return [leaf for leaf in self.leaves() if isinstance(leaf, Tensor)]

    def map(self, function: Callable[[Tensor], Tensor]) -> Inputs:
        """Return inputs of the same structure with another tensor for each."""
        args, kwargs = pytree.tree_map_only(Tensor, function, (self.args, self.kwargs))
        return Inputs(*args, **kwargs)

    def by_position(self) -> bool:
        """Whether these are tensors by position, and nothing else."""
        return not self.kwargs and all(isinstance(value, Tensor) for value in self.args)

    def advice(self) -> str:
        """Return what to do where a network refuses these inputs."""
        if len(self.args) == 1 and isinstance(self.args[0], Mapping):
            return "A mapping is one input; inputs with names are given as `Inputs(**batch)`."
        return "Check shapes, types and devices of the inputs."

    @property
    def batch(self) -> int:
        """Number of rows of the first tensor; 0 if there is none, or it is a number."""
        first = next(iter(self.tensors()), None)
        return len(first) if first is not None and first.dim() else 0

    def at_batch(self, batch: int) -> Inputs:
        """Return inputs with another batch size, whose rows are those given, over and over.

        Tensors whose first dimension is as long as the first tensor's have one row per example.

        Example:
            >>> import torch
            >>> Inputs(torch.tensor([[1], [2]])).at_batch(3).args[0].flatten().tolist()
            [1, 2, 1]
        """
        count = self.batch

        def rows(tensor: Tensor) -> Tensor:
            if not count or not tensor.dim() or len(tensor) != count:
                return tensor
            return tensor[:batch] if batch <= count else cat([tensor] * -(-batch // count))[:batch]

        return self.map(rows)


class Flat(nn.Module):
    """A network that takes all tensors by position; other values are those of an example.

    Args:
        model: the network.
        inputs: how it is called.

    Example:
        >>> import torch
        >>> flat = Flat(nn.Linear(3, 2), Inputs(input=torch.zeros(1, 3)))
        >>> flat(torch.ones(4, 3)).shape
        torch.Size([4, 2])
    """

    def __init__(self, model: nn.Module, inputs: Inputs) -> None:
        super().__init__()
        self.model = model
        self.inputs = inputs

    def forward(self, *tensors: Tensor) -> Any:
        """Call the network with these tensors in the places of the example's."""
        rest = iter(tensors)
        inputs = self.inputs.map(lambda _: next(rest))
        return self.model(*inputs.args, **inputs.kwargs)


ExampleInput: TypeAlias = Any
"""A tensor (or list, or dict) that is the only input, a tuple of all positional inputs, or
:class:`Inputs`."""


def as_inputs(given: ExampleInput) -> Inputs:
    """Return inputs given in any of the forms of :data:`ExampleInput`.

    Raises:
        ValueError: if there is no tensor among them, or the first has no rows.

    Example:
        >>> import torch
        >>> x = torch.ones(1)
        >>> as_inputs((x, None)), as_inputs([x, 2]), as_inputs(Inputs(x=x))
        (Inputs(tensor([1.]), None), Inputs([tensor([1.]), 2]), Inputs(x=tensor([1.])))
    """
    if isinstance(given, Inputs):
        inputs = given
    else:
        inputs = Inputs(*given) if type(given) is tuple else Inputs(given)
    if not inputs.tensors():
        raise ValueError(
            f"Expected tensors as example input, as the network takes them, got {described(given)}"
        )
    first = inputs.tensors()[0]
    if first.dim() and not len(first):
        raise ValueError(
            f"Expected an example input with at least one row, got the shape {tuple(first.shape)}. "
            "Give a batch of one."
        )
    return inputs


def cannot_run(model: nn.Module, inputs: Inputs, reason: str) -> str:
    """Say that a network cannot be run on inputs, why, and what to do."""
    shapes = ", ".join(str(tuple(x.shape)) for x in inputs.tensors())
    return (
        f"Cannot run {type(model).__name__} on inputs of shapes {shapes}: {reason}. "
        f"{inputs.advice()}"
    )


def run_checked(network: nn.Module, inputs: Inputs) -> Any:
    """Return what a network returns for inputs.

    Raises:
        ValueError: if its code raises, whatever that is.
    """
    try:
        return inputs.run(network)
    except Exception as error:
        raise ValueError(cannot_run(network, inputs, said_by(error))) from error


def check_network(model: nn.Module) -> None:
    """Refuse what is no network.

    Raises:
        ValueError: if it is no ``torch.nn.Module``.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"Expected a network, a torch.nn.Module, got {type(model).__name__}. {ORDER}"
        )


def described(given: Any) -> str:
    """Say what was given in place of tensors, and what to give."""
    if isinstance(given, (tuple, list)) and given and all(isinstance(n, int) for n in given):
        sizes = given if len(given) > 3 else (1, *given)
        return f"the shape {tuple(given)}. Give torch.zeros{tuple(sizes)}, say."
    what = type(given).__name__
    if isinstance(given, nn.Module):
        return f"a network, {what}. {ORDER}"
    return f"{what}. Give a batch, such as torch.zeros(1, 3, 32, 32)."
