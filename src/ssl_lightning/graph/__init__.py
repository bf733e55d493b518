"""Which tensor slices belong together and which of them are provably zero or never read."""

from ssl_lightning.graph.analysis import analyse, is_cut, retained_whole
from ssl_lightning.graph.branches import ResidualBranch, norm_followers, residual_branches
from ssl_lightning.graph.copies import same_random_state, working_copy
from ssl_lightning.graph.coupling import (
    CoupledFamily,
    coupled_channels,
    coupled_families,
    missing_heads,
    weight_places,
    written,
)
from ssl_lightning.graph.inputs import ExampleInput, Flat, Inputs, as_inputs
from ssl_lightning.graph.kept import SiteSlices
from ssl_lightning.graph.ops import LayerWrapper, LeafOperation, Trace, layer_names
from ssl_lightning.graph.plain import (
    computed_tensors,
    computing_modules,
    how_to_remove,
    make_plain_,
    scale_of_outputs,
    with_plain_weights,
)
from ssl_lightning.graph.rules import SIZED
from ssl_lightning.graph.trace import has_equivalent_forward, trace

__all__ = [
    "SIZED",
    "CoupledFamily",
    "ExampleInput",
    "Flat",
    "Inputs",
    "LayerWrapper",
    "LeafOperation",
    "ResidualBranch",
    "SiteSlices",
    "Trace",
    "analyse",
    "as_inputs",
    "computed_tensors",
    "computing_modules",
    "coupled_channels",
    "coupled_families",
    "has_equivalent_forward",
    "how_to_remove",
    "is_cut",
    "layer_names",
    "make_plain_",
    "missing_heads",
    "norm_followers",
    "residual_branches",
    "retained_whole",
    "same_random_state",
    "scale_of_outputs",
    "trace",
    "weight_places",
    "with_plain_weights",
    "working_copy",
    "written",
]
