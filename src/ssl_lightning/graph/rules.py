"""What each operation does to zeros, to need, and to slices: one table, :data:`RULES`.

Four questions are asked of an operation:

* ``support``: which elements of its result can be non-zero, given which of its inputs can?
* ``needs``: which elements of its inputs does a set of elements of its result depend on?
* ``labels``: which slices of its inputs and its result must be removed together?
* ``varies``: which elements of its result can depend on the network's inputs?

An operation that only moves elements answers the first by being run on a mask, and a linear one by
being run with its weights replaced by their zero patterns; ``needs`` is then the transpose of
``support``, which autograd computes. An operation without a row is :data:`UNKNOWN`: everything it
returns can be non-zero, it needs everything it reads, and nothing it touches can be removed. That
is always sound.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from ssl_lightning.graph import (
    attention,
    constants,
    matrices,
    needs,
    products,
    recurrent,
    slices,
    support,
)
from ssl_lightning.graph.aliases import is_in_place
from ssl_lightning.graph.flow import Rule
from ssl_lightning.graph.ops import Op, Ref, refs

UNKNOWN = Rule(support.ones, slices.fix_all, needs.everything, constants.as_alive, constants=False)
MOVE = Rule(support.literal, slices.move_labels)
VIEW = Rule(support.literal, attention.split_labels)
SPLIT = Rule(support.literal, slices.split_labels)
INDEX = Rule(support.literal, slices.index_labels)
POINTWISE = Rule(
    support.pointwise, slices.keep_labels, needs.same_elements, constants.same_elements
)
IDENTITY = Rule(support.same, slices.keep_labels, needs.same_elements)
SUM = Rule(support.either, slices.tie_operands, needs.sum_needs, constants.total)
POOL = Rule(support.by_channel, slices.channel_labels, needs.channel_needs, constants.pooled)
POOL_WITH_INDICES = Rule(
    support.with_indices,
    slices.with_indices_labels,
    needs.indices_needs,
    constants.as_alive,
    constants=False,
)
UNPOOL = Rule(
    support.by_channel,
    slices.unpool_labels,
    needs.unpool_needs,
    constants.as_alive,
    constants=False,
)
REDUCE = Rule(support.literal, slices.reduced_labels)
SUM_UP = replace(REDUCE, varies=constants.added_up)
SPREAD = Rule(
    support.reduced, slices.reduced_labels, needs.reduced_needs, constants.as_alive, constants=False
)
CONV = Rule(support.convolution, slices.conv_labels, varies=constants.layer)
PAD = Rule(support.padded, slices.padded_labels, varies=constants.padded)
RESPONSE_NORM = Rule(
    support.same, slices.same_channels, needs.window_needs, constants.as_alive, constants=False
)
CONSTANT = Rule(
    support.constant_layer, slices.constant_layer_labels, needs.nothing, constants.nothing
)
TRANSPOSED = Rule(
    support.convolution,
    slices.conv_labels,
    varies=constants.as_alive,
    constants=False,
)
LAYER_NORM = Rule(
    support.layer_norm,
    slices.layer_norm_labels,
    needs.whole_groups,
    constants.normalised_together,
    constants=False,
)
RMS_NORM = replace(LAYER_NORM, support=support.rms_norm, varies=constants.as_alive)
GROUP_NORM = replace(LAYER_NORM, support=support.group_norm, labels=slices.group_norm_labels)
INSTANCE_NORM = Rule(
    support.instance_norm,
    slices.norm_labels,
    needs.whole_groups,
    constants.as_alive,
    constants=False,
)
BATCH_NORM = Rule(support.batch_norm, slices.norm_labels, varies=constants.normalised)
BATCH_STATISTICS = replace(INSTANCE_NORM, support=support.batch_statistics)
ATTENTION = Rule(
    attention.attention_support,
    attention.attention_labels,
    attention.attention_needs,
    constants.as_alive,
    constants=False,
)
PRODUCT = Rule(support.literal, products.product_labels, varies=constants.as_alive, constants=False)
ADDED_PRODUCT = replace(
    PRODUCT, support=attention.added_product_support, labels=attention.added_product_labels
)
MASKED = Rule(
    attention.masked_support,
    attention.masked_labels,
    attention.masked_needs,
    constants.as_alive,
    constants=False,
)
SOFTMAX = Rule(
    support.ones,
    attention.softmax_labels,
    attention.softmax_needs,
    constants.as_alive,
    constants=False,
)
ADDMM = Rule(
    matrices.addmm_support, matrices.addmm_labels, varies=constants.as_alive, constants=False
)
RECURRENT = Rule(
    recurrent.recurrent_support,
    recurrent.recurrent_labels,
    recurrent.recurrent_needs,
    constants.as_alive,
    constants=False,
)
ZEROS = Rule(support.zeros, slices.untouched, needs.nothing, constants.nothing)
CHECK = Rule(support.ones, slices.untouched, needs.nothing)


def rows(rule: Rule, *names: str) -> Iterable[tuple[str, Rule]]:
    """Return table rows of one rule; each argument holds names separated by blanks."""
    return ((name, rule) for line in names for name in line.split())


RULES: dict[str, Rule] = {
    "linear": Rule(support.literal, matrices.any_linear_labels, varies=constants.layer),
    "batch_norm": BATCH_NORM,
    "scaled_dot_product_attention": ATTENTION,
    **dict(rows(PRODUCT, "matmul bmm mm einsum")),
    **dict(rows(MASKED, "masked_fill where")),
    "addmm": ADDMM,
    **dict(rows(RECURRENT, "lstm gru rnn_tanh rnn_relu")),
    **dict(rows(ZEROS, "zeros zeros_like new_zeros")),
    "baddbmm": ADDED_PRODUCT,
    "softmax": SOFTMAX,
    "log_softmax": SOFTMAX,
    "embedding": Rule(
        support.embedding,
        slices.embedding_labels,
        needs.embedding_needs,
        constants.as_alive,
        constants=False,
    ),
    "glu": Rule(support.glu, slices.glu_labels, varies=constants.as_alive, constants=False),
    "layer_norm": LAYER_NORM,
    "rms_norm": RMS_NORM,
    "group_norm": GROUP_NORM,
    "instance_norm": INSTANCE_NORM,
    "mul": Rule(support.both, slices.tie_operands, varies=constants.product),
    "div": Rule(support.numerator, slices.tie_operands, needs.quotient_needs, constants.quotient),
    "prelu": Rule(support.same, slices.prelu_labels, needs.same_elements),
    "cat": Rule(support.literal, slices.cat_labels),
    "getitem": Rule(support.literal, slices.item_labels),
    "pixel_shuffle": Rule(support.literal, slices.pixel_shuffle_labels),
    "channel_shuffle": Rule(support.literal, slices.channel_shuffle_labels),
    "PadShortcut": Rule(support.shortcut, slices.shortcut_labels, constants=False),
    "ZeroLike": Rule(support.zeros, slices.keep_labels, needs.nothing, constants.nothing),
    **dict(rows(VIEW, "view reshape unflatten")),
    **dict(rows(CONV, "conv1d conv2d conv3d")),
    **dict(rows(TRANSPOSED, "conv_transpose1d conv_transpose2d conv_transpose3d")),
    **dict(rows(RESPONSE_NORM, "LocalResponseNorm ChannelResponseNorm SparseResponseNorm")),
    **dict(rows(CONSTANT, "ZeroConv ZeroLinear")),
    **dict(rows(SUM, "add sub maximum minimum")),
    "mean": REDUCE,
    "sum": SUM_UP,
    "linalg_vector_norm": replace(SPREAD, needs=None),
    "expand_as": Rule(support.expanded, slices.tie_operands),
    **dict(rows(SPREAD, "amax amin max min var std")),
    **dict(rows(UNPOOL, "max_unpool2d max_unpool3d")),
    **dict(
        rows(
            POOL_WITH_INDICES,
            "max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices",
            "adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d",
        )
    ),
    **dict(
        rows(
            PAD,
            "pad constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d",
            "replication_pad1d replication_pad2d replication_pad3d",
        )
    ),
    **dict(rows(SPLIT, "split split_with_sizes chunk")),
    **dict(rows(INDEX, "slice select narrow unbind")),
    **dict(rows(CHECK, "_assert_tensor_metadata _assert_scalar")),
    **dict(
        rows(
            IDENTITY,
            "clone contiguous detach alias to _to_copy",
        )
    ),
    **dict(
        rows(
            POOL,
            "max_pool1d max_pool2d max_pool3d",
            "avg_pool1d avg_pool2d avg_pool3d",
            "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d",
            "upsample_nearest1d upsample_nearest2d upsample_nearest3d",
            "upsample_bilinear2d upsample_bicubic2d",
        )
    ),
    **dict(
        rows(
            POINTWISE,
            "relu relu6 hardtanh leaky_relu elu selu celu silu gelu mish hardswish hardsigmoid",
            "sigmoid tanh softplus softshrink hardshrink threshold",
            "abs neg sign square pow sqrt rsqrt reciprocal exp log sin cos erf rsub",
            "clamp clamp_min clamp_max round floor ceil",
            "dropout feature_dropout alpha_dropout feature_alpha_dropout",
        )
    ),
    **dict(
        rows(
            MOVE,
            "flatten permute transpose t movedim swapaxes swapdims",
            "squeeze unsqueeze stack expand repeat_interleave numpy_T mT",
            "flip pixel_unshuffle roll repeat tile",
        )
    ),
}

SIZED = frozenset(
    {"view", "reshape", "flatten", "unflatten", "expand", "squeeze"}
    | {"split", "split_with_sizes", "chunk", "pad", "constant_pad_nd", "slice", "narrow"}
    | {"channel_shuffle"}
)
"""Operations whose sizes the model's code may have as fixed numbers."""

NORMS = frozenset({"batch_norm", "instance_norm"})
RUN_ON_MASKS = (MOVE, VIEW, SPLIT, INDEX, REDUCE, SUM_UP, RULES["cat"], RULES["pixel_shuffle"])
SEVERAL_RESULTS = (SPLIT, RULES["getitem"], INDEX, RECURRENT, POOL_WITH_INDICES)
BINARY = (SUM, RULES["mul"], RULES["div"])


def rule_of(op: Op) -> Rule:
    """Return the rule of an operation; :data:`UNKNOWN` if there is none or it does not apply."""
    rule = norm_rule(op) if op.kind in NORMS else RULES.get(op.kind, UNKNOWN)
    single = rule in (POINTWISE, IDENTITY, POOL, REDUCE, SUM_UP, PAD, SPLIT, INDEX, *BINARY)
    several = rule in SEVERAL_RESULTS or op.kind in ("max", "min")
    doubtful = (
        any(True for _ in refs(op.kwargs))
        or (rule in (POINTWISE, IDENTITY) and len(op.inputs()) != 1)
        or (rule in BINARY and not binary_operands(op))
        or (rule in RUN_ON_MASKS and is_in_place(op))
        or (not several and isinstance(op.shape, list))
        or (op.kind in ("max", "min") and not isinstance(op.shape, list))
        or (single and not op.inputs())
    )
    return UNKNOWN if doubtful else rule


def binary_operands(op: Op) -> bool:
    """Whether both operands are given by position, and are values or numbers."""
    return len(op.args) >= 2 and all(isinstance(a, (Ref, int, float)) for a in op.args[:2])


def norm_rule(op: Op) -> Rule:
    """Return the rule of a batch or instance norm: by which statistics it divides decides."""
    stored = all(isinstance(a, Ref) for a in op.args[3:5])
    if stored and op.args[5] is False:
        return RULES["batch_norm"]
    if any(isinstance(a, Ref) for a in op.args[3:5]):
        return UNKNOWN  # it changes the stored ones
    return RULES["instance_norm"] if op.kind == "instance_norm" else BATCH_STATISTICS
