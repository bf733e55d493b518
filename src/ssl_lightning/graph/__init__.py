"""Which tensor slices belong together and which of them are provably zero or never read."""

from ssl_lightning.graph.analysis import analyse
from ssl_lightning.graph.branches import ResidualBranch, norm_followers, residual_branches
from ssl_lightning.graph.copies import same_random_state, working_copy
from ssl_lightning.graph.coupling import CoupledFamily, coupled_families
from ssl_lightning.graph.inputs import ExampleInput, Inputs, as_inputs
from ssl_lightning.graph.kept import SiteSlices
from ssl_lightning.graph.ops import LayerWrapper, LeafOperation, Trace, layer_names
from ssl_lightning.graph.rules import SIZED
from ssl_lightning.graph.trace import has_equivalent_forward, trace

__all__ = [
    "SIZED",
    "CoupledFamily",
    "ExampleInput",
    "Inputs",
    "LayerWrapper",
    "LeafOperation",
    "ResidualBranch",
    "SiteSlices",
    "Trace",
    "analyse",
    "as_inputs",
    "coupled_families",
    "has_equivalent_forward",
    "layer_names",
    "norm_followers",
    "residual_branches",
    "same_random_state",
    "trace",
    "working_copy",
]
