"""What a model's graph says about its layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from ssl_lightning.graph import (
    ANY_BATCH_NORM,
    CoupledFamily,
    ExampleInput,
    ResidualBranch,
    Trace,
    as_inputs,
    check_network,
    computed_tensors,
    coupled_channels,
    how_to_remove,
    norm_followers,
    residual_branches,
    scale_of_outputs,
    trace,
    with_plain_weights,
)
from ssl_lightning.groups.kinds import FFN, HEAD, layer_type


class Surroundings:
    """What a model's graph says about a layer; traced on first use, for it takes seconds."""

    def __init__(self, model: nn.Module, example_input: ExampleInput, strict: bool) -> None:
        check_network(model)
        self.model = model
        self.strict = strict
        self.example_input = None if example_input is None else as_inputs(example_input)
        self.modules = dict(model.named_modules())
        self.plain = with_plain_weights(model)
        self._traced: Trace | None = None
        self._found: tuple[dict[str, str], list[ResidualBranch]] | None = None
        self._families: list[CoupledFamily] | None = None
        self.retained: dict[str, str] = {}

    def traced(self, reason: str) -> Trace:
        """Return the model's trace."""
        if self._traced is None:
            if self.example_input is None:
                raise ValueError(
                    f"resolve_groups: {reason}, which takes a run of the model to find out. Pass "
                    "`example_input` (SSLLightningModule: `input_shape`, such as [3, 32, 32])."
                )
            self._traced = trace(self.plain, self.example_input)
        return self._traced

    def find(self, reason: str) -> tuple[dict[str, str], list[ResidualBranch]]:
        """Return norms that follow layers, and residual branches."""
        if self._found is None:
            traced = self.traced(reason)
            self._found = norm_followers(traced), residual_branches(traced)
        return self._found

    def families(self) -> list[CoupledFamily]:
        """Return the channels that can be removed, with all that writes them."""
        if self._families is None:
            traced = self.traced("coupled groups are what the layers have in common")
            found, self.retained = coupled_channels(self.plain, traced)
            self._families = [f for f in found if not unreachable(self.modules, f)]
            for layer in filter(None, (unreachable(self.modules, f) for f in found)):
                call = how_to_remove(layer, self.modules[layer])
                self.retained[layer] = f"its weight is no parameter but computed; call {call} first"
        return self._families

    def has_kind(self, kind: str) -> bool:
        """Whether the model has groups of a coupled kind."""
        return any(has_family_kind(self, family, kind) for family in self.families())

    def norm_after(self, layer: str) -> str | None:
        """Return the batch norm that alone reads a layer's output."""
        if not any(isinstance(m, ANY_BATCH_NORM) for m in self.modules.values()):
            return None
        return self.find(f"the batch norm behind `{layer}` belongs to its groups")[0].get(layer)

    def has_shortcut(self, layer: str) -> bool:
        """Whether a layer is in a residual branch, so that the network is not cut without it."""
        branches = self.find(f"depth groups need a shortcut around `{layer}`")[1]
        return any(layer in branch.weighted for branch in branches)

    def last_of_branches(self, able: Sequence[str]) -> list[str]:
        """Return the last layer of each residual branch, of those that are able to have groups.

        Raises:
            ValueError: if ``strict`` and there is none.
        """
        branches = self.find("depth groups need shortcuts around layers")[1]
        last = {branch.last for branch in branches}
        if not last & set(able) and self.strict:
            raise ValueError(
                f"Groups of kind 'depth': no layer of {type(self.model).__name__} has a shortcut "
                "around it, so none can be collapsed. Choose groups of another kind."
            )
        return [layer for layer in able if layer in last]

    def require_shortcut(self, layer: str) -> None:
        """Reject a depth group without which the network would be cut."""
        if not self.has_shortcut(layer):
            raise ValueError(
                f"Cannot collapse `{layer}`: it has no shortcut, so the network would be cut. "
                "Exclude it from the depth groups."
            )


def has_family_kind(around: Surroundings, family: CoupledFamily, kind: str) -> bool:
    """Whether the channels of a family are what a selector of that kind asks for."""
    if kind != FFN:
        return family.heads == (kind == HEAD)
    found = [(n, around.modules[n]) for n in layers_of(family)]
    writers = [(n, m) for n, m in found if n in family.owners or layer_type(m)]
    parents = {name.rpartition(".")[0] for name, _ in writers}
    return not family.heads and len(parents) == 1 and all(is_pointwise(m) for _, m in writers)


def layers_of(family: CoupledFamily) -> list[str]:
    """Return the modules whose weights write a family's channels."""
    return list(dict.fromkeys((*(name for name, _ in family.writers), *family.owners)))


def is_pointwise(module: nn.Module) -> bool:
    """Whether a layer is linear, or a 1x1 convolution."""
    if isinstance(module, (nn.RNNBase, nn.MultiheadAttention)):
        return False
    sizes = getattr(module, "kernel_size", 1)
    return isinstance(module, nn.Linear) or sizes in (1, (1,), (1, 1), (1, 1, 1))


def unreachable(modules: Mapping[str, nn.Module], family: CoupledFamily) -> str:
    """Return a layer of a family whose weight cannot be zeroed in slices, or "".

    It is computed from other parameters in such a way that no slice of them is zero alone.
    """
    for name, _ in family.writers:
        for tensor in computed_tensors(modules[name]):
            if scale_of_outputs(modules[name], tensor) is None:
                return name
    return ""
