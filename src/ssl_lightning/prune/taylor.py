"""First-order Taylor expansion of the loss: what groups are ranked by, from gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ssl_lightning.graph import ExampleInput, same_random_state
from ssl_lightning.groups import GroupSet, Selector
from ssl_lightning.groups.resolve import named_tensors
from ssl_lightning.groups.sets import norm_dtype
from ssl_lightning.groups.surroundings import Surroundings
from ssl_lightning.prune.one_shot import resolve
from ssl_lightning.prune.scores import Scores

CONDITIONS = "squared first-order change of the loss"


class Expansion:
    r"""Sums over training steps what removing each group would change the loss by, to first order.

    .. math:: \Bigl(\sum_{i \in g} \frac{\partial L}{\partial w_i} w_i\Bigr)^2

    averaged over steps. Of channels before a batch norm, the sum over the convolution's weights is
    zero, and that over scale and shift is what a gate behind the norm would have.

    Args:
        group_sets: the groups.

    Reference:
        Molchanov et al., Importance estimation for neural network pruning, 2019: the contribution
        of a group, with gates.

    Example:
        >>> from ssl_lightning.groups import Member
        >>> net = nn.Linear(2, 2, bias=False)
        >>> _ = net.weight.data.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        >>> found = Expansion([GroupSet("fc", "neuron_out", (Member("weight", (2, 2), (0,)),))])
        >>> net(torch.tensor([[1.0, 1.0]])).sum().backward()
        >>> found.add(dict(net.named_parameters()))
        >>> found.scores("a net").values
        {'fc:neuron_out': (9.0, 49.0)}
    """

    def __init__(self, group_sets: Sequence[GroupSet]) -> None:
        self.group_sets = list(group_sets)
        self.steps = 0
        self.sums = {
            s.name: torch.zeros(s.num_groups, dtype=torch.float64) for s in self.group_sets
        }

    def sizes(self) -> dict[str, int]:
        """Return name of a set -> its number of groups."""
        return {name: len(found) for name, found in self.sums.items()}

    @torch.no_grad()
    def add(self, tensors: Mapping[str, Tensor]) -> None:
        """Add the gradients that parameters have now; those without one count as 0.

        Gradients that are not finite are no step: a gradient scaler skips it.

        Args:
            tensors: name -> parameter.
        """
        totals = {}
        for group_set in self.group_sets:
            total = torch.zeros(group_set.num_groups, dtype=torch.float64)
            for member in group_set.members:
                tensor = tensors[member.parameter]
                if tensor.grad is not None:
                    product = member.view(tensor).to(norm_dtype(tensor)) * member.view(tensor.grad)
                    total += member.reduce(product, torch.sum).cpu().double()
            totals[group_set.name] = total.square()
        if all(bool(total.isfinite().all()) for total in totals.values()):
            self.steps += 1
            for name, total in totals.items():
                self.sums[name] += total

    def state_dict(self) -> dict[str, Any]:
        """Return plain values that :meth:`load_state_dict` reads."""
        sums = {name: found.tolist() for name, found in self.sums.items()}
        return {"steps": self.steps, "sums": sums}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned; sums of other groups are begun anew."""
        sums = {
            str(name): torch.tensor(found, dtype=torch.float64)
            for name, found in state["sums"].items()
        }
        if {name: len(found) for name, found in sums.items()} == self.sizes():
            self.steps, self.sums = int(state["steps"]), sums

    def scores(self, title: str) -> Scores:
        """Return the mean over the steps.

        Args:
            title: name of the network.
        """
        steps = max(self.steps, 1)
        values = {name: tuple((found / steps).tolist()) for name, found in self.sums.items()}
        return Scores(title, f"{CONDITIONS} in {self.steps} training steps", values)


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Give a network its gradients and buffers (statistics of norms) back afterwards."""
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    buffers = {name: buffer.detach().clone() for name, buffer in model.named_buffers()}
    try:
        yield
    finally:
        for name, parameter in model.named_parameters():
            parameter.grad = gradients[name]
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                if name in buffers:  # some are made when a network is run first
                    buffer.copy_(buffers[name])


def taylor(
    model: nn.Module,
    example_input: ExampleInput,
    loss: Callable[[nn.Module, Any], Tensor],
    batches: Iterable[Any],
    *,
    groups: Sequence[GroupSet | Selector | Mapping[str, Any]] | None = None,
    kind: str = "coupled",
) -> Scores:
    """Return the importance of every group by the first-order Taylor expansion of a loss.

    Args:
        model: the network, in the mode in which the loss is to be computed; it is not changed, and
            its gradients are as before.
        example_input: its inputs, shapes such as ``(1, C, H, W)``.
        loss: called with the model and a batch; returns a scalar.
        batches: of training data.
        groups: as :func:`~ssl_lightning.prune_` takes them.
        kind: of the groups in all layers, if ``groups`` is not given.

    Returns:
        What ``prune_(model, ..., importance=found)`` takes for the same groups.

    Raises:
        ValueError: if there are no batches, no finite gradients or no such groups.

    Example:
        >>> from ssl_lightning import create_backbone, prune_
        >>> net, x = create_backbone("lenet"), torch.zeros(1, 1, 28, 28)
        >>> images, labels = torch.randn(8, 1, 28, 28), torch.arange(8)
        >>> def loss(net, batch):
        ...     return nn.functional.cross_entropy(net(batch[0]), batch[1])
        >>> found = taylor(net, x, loss, [(images, labels)])
        >>> prune_(net, x, macs=0.5, importance=found).total[1]
        570
    """
    around = Surroundings(model, example_input, strict=True)
    sets = resolve(model, around, groups, kind, "taylor")
    if not sets:
        raise ValueError(
            f"taylor: expected {kind} groups that compaction could remove, got none in "
            f"{type(model).__name__}. Give other groups."
        )
    found, number = Expansion(sets), 0
    with unchanged(model), same_random_state():
        for number, batch in enumerate(batches, 1):  # noqa: B007 - their number is read below
            model.zero_grad(set_to_none=True)
            loss(model, batch).backward()
            found.add(named_tensors(model))
    if not number:
        raise ValueError("taylor: expected at least one batch, got none. Give training data.")
    if not found.steps:
        raise ValueError(
            f"taylor: expected finite gradients, got none in {number} batches. Give a network and "
            "a loss that are finite."
        )
    return found.scores(type(model).__name__)
