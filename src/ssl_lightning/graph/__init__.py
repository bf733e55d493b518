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
from ssl_lightning.graph.inputs import (
    ExampleInput,
    Flat,
    Inputs,
    as_inputs,
    cannot_run,
    check_network,
    run_checked,
)
from ssl_lightning.graph.kept import SiteSlices
from ssl_lightning.graph.layers import (
    ANY_BATCH_NORM,
    BATCH_NORMS,
    CHANNEL_NORMS,
    CONVS,
    TRANSPOSED,
    WEIGHTED,
    LayerType,
    own_layer,
)
from ssl_lightning.graph.operations import REGISTERED, is_sized
from ssl_lightning.graph.ops import LayerWrapper, LeafOperation, Op, Trace, layer_names
from ssl_lightning.graph.plain import (
    computed_tensors,
    computing_modules,
    how_to_remove,
    make_plain_,
    scale_of_outputs,
    with_plain_weights,
)
from ssl_lightning.graph.positions import is_same_everywhere, may_be_same_everywhere
from ssl_lightning.graph.registering import register_rule, register_shrinker
from ssl_lightning.graph.rule import Rule
from ssl_lightning.graph.trace import has_equivalent_forward, trace

__all__ = [
    "ANY_BATCH_NORM",
    "BATCH_NORMS",
    "CHANNEL_NORMS",
    "CONVS",
    "REGISTERED",
    "TRANSPOSED",
    "WEIGHTED",
    "CoupledFamily",
    "ExampleInput",
    "Flat",
    "Inputs",
    "LayerType",
    "LayerWrapper",
    "LeafOperation",
    "Op",
    "ResidualBranch",
    "Rule",
    "SiteSlices",
    "Trace",
    "analyse",
    "as_inputs",
    "cannot_run",
    "check_network",
    "computed_tensors",
    "computing_modules",
    "coupled_channels",
    "coupled_families",
    "has_equivalent_forward",
    "how_to_remove",
    "is_cut",
    "is_same_everywhere",
    "is_sized",
    "layer_names",
    "make_plain_",
    "may_be_same_everywhere",
    "missing_heads",
    "norm_followers",
    "own_layer",
    "register_rule",
    "register_shrinker",
    "residual_branches",
    "retained_whole",
    "run_checked",
    "same_random_state",
    "scale_of_outputs",
    "trace",
    "weight_places",
    "with_plain_weights",
    "working_copy",
    "written",
]
