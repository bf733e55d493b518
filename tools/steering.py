"""Penalties of a steered strength, for comparison with other ways to a budget.

They were methods of the library's own and lost in every comparison (docs/budgets.md).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ssl_lightning.callbacks.methods import METHODS, Method, Window
from ssl_lightning.groups import group_norms
from ssl_lightning.groups.surroundings import Surroundings


def cost_of(window: Window) -> float:
    """Return the cost of the compact form now, in units of the limit."""
    return window.form.ask(window.network, window.costs.excess)


class Steered(Method):
    """The penalties' strength is steered so that the cost follows a line to the budget.

    The first strength would, without gradients, bring the median group to zero in the window.
    After that the logarithm of the strength moves with the distance from the line.
    """

    num_epochs = 1
    """Of the window."""

    @torch.no_grad()
    def begin(self, window: Window) -> None:
        """Set the first strength."""
        regularizer = window.sparsity.regularizer
        tensors, rates = window.tensors(), []
        for term in regularizer.terms:
            norms = group_norms(term.group_set, tensors)
            rates.append(norms / max(term.strength, 1e-30))
        median = float(torch.cat(rates).median())
        trainer = window.sparsity.module.trainer
        group = trainer.optimizers[0].param_groups[0]
        step = float(group["lr"]) / (1.0 - float(group.get("momentum", 0.0)))
        self.state["scale"] = median / (step * self.num_epochs * trainer.num_training_batches)
        self.state["start"] = cost_of(window)
        self.apply(window)

    def update(self, window: Window, progress: float) -> dict[str, float]:
        """Move the strength."""
        start = self.state["start"]
        wanted = start + (1.0 - start) * progress
        cost = cost_of(window)
        distance = (cost - wanted) / max(start - 1.0, 1e-9)
        self.state["scale"] *= 2.0 ** min(max(4.0 * distance, -3.0), 1.0)
        self.apply(window)
        return {"strength": self.state["scale"], "cost": cost, "target": wanted}

    def apply(self, window: Window) -> None:
        """Give the penalties the present strength."""
        regularizer = window.sparsity.regularizer
        regularizer.scales = [self.state["scale"]] * len(regularizer.penalties)

    def finish(self, window: Window) -> None:
        """Switch the penalties off."""
        regularizer = window.sparsity.regularizer
        regularizer.scales = [0.0] * len(regularizer.penalties)


class HeldNorms(Steered):
    """As :class:`Steered`, and layers in front of batch norms keep the norm that they had.

    Their scale does not matter for the function, but for the effective step size.
    """

    def begin(self, window: Window) -> None:
        """Note the norms."""
        super().begin(window)
        self.state["norms"] = {n: float(w.detach().norm()) for n, w in scale_free(window).items()}

    @torch.no_grad()
    def after_step(self, window: Window, progress: float) -> None:
        """Restore the norms."""
        tensors = window.tensors()
        for name, norm in self.state["norms"].items():
            weight = tensors[name]
            weight.mul_(norm / weight.norm().clamp_min(1e-30))


def scale_free(window: Window) -> dict[str, Tensor]:
    """Return the weights of layers that a batch norm alone reads."""
    network = window.sparsity.network
    around = Surroundings(network, window.form.inputs, strict=False)
    found: dict[str, Tensor] = {}
    for name, module in network.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, nn.Parameter) and weight.dim() > 1 and around.norm_after(name):
            found[f"{name}.weight"] = weight
    return found


METHODS |= {"steered": Steered, "held": HeldNorms}
