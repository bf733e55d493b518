"""The fast form of a network that is not trained any more."""

from __future__ import annotations

import inspect
import logging
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ssl_lightning.backbones.response_norm import ChannelResponseNorm
from ssl_lightning.compaction.equality import compare, random_inputs, tensors_of
from ssl_lightning.compaction.modules import SparseResponseNorm
from ssl_lightning.graph import ExampleInput, Inputs, as_inputs, working_copy
from ssl_lightning.graph.ops import has_hooks
from ssl_lightning.kernels import ColumnSparseConv2d, local_response_norm, max_pool2d

NOTHING = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
"""Modules that do nothing in eval mode."""
RESPONSE_NORMS = (nn.LocalResponseNorm, ChannelResponseNorm, SparseResponseNorm)
"""What the kernel computes; other subclasses of the first are other functions."""
RELU = {F.relu, torch.relu, F.relu_, torch.relu_, "relu", "relu_"}
POOL = {F.max_pool2d, torch.max_pool2d}


def for_inference(model: nn.Module, example_input: ExampleInput) -> nn.Module:
    """Return a copy that computes the same in eval mode and gives no gradients, faster.

    Batch norms (also timm's, which hold an activation) become part of the convolutions before them,
    ReLU of the column-sparse convolution or the max pooling beside it, and max pooling and response
    norms run in the kernels of :mod:`ssl_lightning.kernels`. The network is traced by
    ``torch.fx``; of one that cannot be traced only the parts in ``nn.Sequential`` are changed.
    What would compute something else is returned as a plain copy. Both are logged as warnings.

    Args:
        model: a network, most gain from one that :func:`compact` made; it is not changed.
        example_input: its inputs; only shapes and types matter. The copy takes others too.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.MaxPool2d(2))
        >>> fast = for_inference(net, torch.zeros(1, 1, 8, 8))
        >>> print(fast.code.strip())
        def forward(self, input):
            input_1 = input
            _0 = getattr(self, "0")(input_1);  input_1 = None
            ...
    """
    problem = _difference(model, as_inputs(example_input))
    if problem is not None:
        _warn(f"{type(model).__name__} is unchanged for inference: made faster, {problem}.")
        return _frozen(model)
    network = _frozen(model)
    fast, obstacle = _rewrite(network)
    if obstacle is not None:
        _warn(
            f"{type(model).__name__} cannot be traced by torch.fx ({obstacle}). Only what stands "
            "in nn.Sequential is made faster for inference."
        )
    return fast


def _frozen(model: nn.Module) -> nn.Module:
    return working_copy(model, apart=False).eval().requires_grad_(False)


def _difference(model: nn.Module, example: Inputs) -> str | None:
    """Rewrite a float64 copy and say how its outputs differ, or None if they do not."""
    plain = _frozen(model).double()
    inputs = random_inputs(example)
    with torch.no_grad():
        expected = [t.clone() for t in tensors_of(inputs.run(plain))]
        try:
            found = tensors_of(inputs.run(_rewrite(plain)[0]))
        except Exception as error:
            return f"{type(error).__name__}: {error}"
    return compare(expected, found)


def _warn(text: str) -> None:
    logging.getLogger(__name__).warning("ssl_lightning: %s", text)


class _Tracer(fx.Tracer):
    """Sees the layers of this library as whole operations, like those of torch."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        own = m.__module__.startswith(("ssl_lightning.kernels.", "ssl_lightning.compaction."))
        own = own or isinstance(m, RESPONSE_NORMS)
        return own or super().is_leaf_module(m, module_qualified_name)


def _rewrite(network: nn.Module) -> tuple[nn.Module, str | None]:
    """Make a network faster, part by part and in place if it cannot be traced; say why."""
    _separate_activations(network)
    try:
        return _Rewriting(network).result(), None
    except Exception as error:
        _rewrite_parts(network)
        return network, str(error).split("\n", 1)[0]


def _separate_activations(network: nn.Module) -> None:
    """Make three modules of each batch norm of timm that holds a dropout and an activation."""
    timm = sys.modules.get("timm.layers.norm_act")
    if timm is None:  # not imported: no network holds one
        return
    for name, norm in list(network.named_modules(remove_duplicate=False)):
        if name and type(norm) is timm.BatchNormAct2d and not has_hooks(norm):
            parts = nn.Sequential(plain_norm(norm), norm.drop, norm.act)
            network.set_submodule(name, parts)


def plain_norm(norm: nn.BatchNorm2d) -> nn.BatchNorm2d:
    """Return the batch norm in a module of a subclass, with the same tensors.

    Example:
        >>> norm = nn.BatchNorm2d(4, eps=0.1).eval()
        >>> x = torch.randn(2, 4, 3, 3)
        >>> bool((plain_norm(norm)(x) == norm(x)).all())
        True
    """
    plain = nn.BatchNorm2d(
        *(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats),
        device="meta",
    )
    plain.load_state_dict(norm.state_dict(), strict=False, assign=True)
    return plain.train(norm.training).requires_grad_(False)


def _rewrite_parts(network: nn.Module) -> None:
    """Rewrite each ``nn.Sequential``, pooling and norm, as far as these can be traced.

    A sequence keeps its length, for code that asks for it or iterates over it.
    """
    for name, child in list(network.named_children()):
        layers = list(child) if type(child) is nn.Sequential else [child]
        if type(child) in (nn.Sequential, nn.MaxPool2d, *RESPONSE_NORMS):
            try:
                fast = _Rewriting(nn.Sequential(*layers)).result()
                rest = (nn.Identity() for _ in layers[1:])
                setattr(network, name, nn.Sequential(fast, *rest))
                continue
            except Exception as error:  # then its children are tried
                logging.getLogger(__name__).debug("%s: %s", name, error)
        _rewrite_parts(child)


class _Rewriting:
    """The traced graph of a network in eval mode, on its way to a faster one."""

    def __init__(self, root: nn.Module) -> None:
        self.root = root
        self.graph = _Tracer().trace(root)
        layers = [m for node in self.graph.nodes if (m := self.module(node)) is not None]
        self.calls = Counter(map(id, layers))

    def result(self) -> fx.GraphModule:
        """Carry out all steps."""
        steps: tuple[Callable[[fx.Node], None], ...] = (
            self.drop_nothing,
            self.fold_norm,
            self.use_kernels,
            self.fuse_relu,
        )
        for step in steps:
            for node in list(self.graph.nodes):
                step(node)
        return fx.GraphModule(self.root, self.graph, type(self.root).__name__)

    def module(self, node: object) -> nn.Module | None:
        """Return the module that a node calls, if it calls one."""
        if not isinstance(node, fx.Node) or node.op != "call_module":
            return None
        return self.root.get_submodule(str(node.target))

    def only_here(self, node: object) -> nn.Module | None:
        """Return the module that a node calls, if no other node calls it and no hook watches."""
        module = self.module(node)
        alone = module is not None and self.calls[id(module)] == 1 and not has_hooks(module)
        return module if alone else None

    def drop(self, node: fx.Node) -> None:
        """Let the input stand for the output."""
        node.replace_all_uses_with(node.all_input_nodes[0])
        self.graph.erase_node(node)

    def drop_nothing(self, node: fx.Node) -> None:
        """Drop what does nothing in eval mode."""
        module = self.module(node)
        if module is None or has_hooks(module) or not node.all_input_nodes:
            return
        if type(module) in NOTHING:
            self.drop(node)

    def fold_norm(self, node: fx.Node) -> None:
        """Put a batch norm into the convolution before it."""
        norm = self.module(node)
        if type(norm) is not nn.BatchNorm2d or norm.running_mean is None or has_hooks(norm):
            return
        source = node.all_input_nodes[0]
        conv = self.only_here(source)
        if len(source.users) > 1:
            return
        if type(conv) is nn.Conv2d:
            self.root.set_submodule(str(source.target), fuse_conv_bn_eval(conv, norm))
        elif isinstance(conv, ColumnSparseConv2d) and not conv.relu:
            fold_into_sparse_(conv, norm)
        else:
            return
        self.calls[id(self.module(source))] = 1
        self.drop(node)

    def use_kernels(self, node: fx.Node) -> None:
        """Call the library's own max pooling and response norm."""
        module = self.module(node)
        if type(module) is nn.MaxPool2d and not has_hooks(module) and not module.return_indices:
            window = {n: getattr(module, n) for n in (*_WINDOW, "ceil_mode")}
            self.replace(node, max_pool2d, window | {"relu": False})
        elif isinstance(module, nn.LocalResponseNorm) and not has_hooks(module):
            self.use_response_norm(node, module)
        elif node.op == "call_function" and node.target in POOL:
            bound = inspect.signature(_pool_signature).bind(*node.args, **node.kwargs).arguments
            del bound["input"]
            if not bound.pop("return_indices", False):
                self.replace(node, max_pool2d, bound | {"relu": False})
        elif node.op == "call_function" and node.target is F.local_response_norm:
            node.target = local_response_norm

    def use_response_norm(self, node: fx.Node, norm: nn.LocalResponseNorm) -> None:
        """Call the library's own response norm, unless a subclass is another function."""
        if type(norm) not in RESPONSE_NORMS:
            return
        settings: dict[str, Any] = {n: getattr(norm, n) for n in ("size", "alpha", "beta", "k")}
        if isinstance(norm, SparseResponseNorm):
            with self.graph.inserting_before(node):
                settings["positions"] = self.graph.get_attr(f"{node.target}.index")
        self.replace(node, local_response_norm, settings)

    def replace(self, node: fx.Node, function: Callable[..., Tensor], kwargs: Any) -> None:
        """Call a function on the node's input instead."""
        with self.graph.inserting_after(node):
            new = self.graph.call_function(function, (node.all_input_nodes[0],), dict(kwargs))
        node.replace_all_uses_with(new)
        self.graph.erase_node(node)

    def fuse_relu(self, node: fx.Node) -> None:
        """Put ReLU into the convolution before it, or the pooling before or behind it."""
        module = self.module(node)
        is_module = type(module) is nn.ReLU and not has_hooks(module)
        is_call = node.op in ("call_function", "call_method") and node.target in RELU
        if not (is_module or is_call):
            return
        source = node.all_input_nodes[0]
        if len(source.users) > 1:  # another sees what is negative, or what is done in place
            return
        layer = self.only_here(source)
        if isinstance(layer, ColumnSparseConv2d):
            layer.relu = True
            self.drop(node)
            return
        pools = [source, *node.users] if len(node.users) == 1 and layer is not None else [source]
        for pool in pools:
            if pool.target is max_pool2d:
                pool.kwargs = {**pool.kwargs, "relu": True}
                self.drop(node)
                return


_WINDOW = ("kernel_size", "stride", "padding", "dilation")


def _pool_signature(
    input: Any,  # noqa: A002 - torch's name
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> None:
    """Stand for the signature of torch's max pooling."""


@torch.no_grad()
def fold_into_sparse_(layer: ColumnSparseConv2d, norm: nn.BatchNorm2d) -> None:
    """Put what a batch norm does in eval mode into the weights and bias of the layer before it.

    Example:
        >>> layer, norm = ColumnSparseConv2d(2, 3, 3, rows=[0, 2]), nn.BatchNorm2d(3).eval()
        >>> _ = norm.running_mean.uniform_()
        >>> x = torch.randn(1, 2, 5, 5)
        >>> expected = norm(layer(x))
        >>> fold_into_sparse_(layer, norm)
        >>> torch.testing.assert_close(layer(x), expected)
    """
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight.double()
    shift = -norm.running_mean.double() * scale
    shift = shift if norm.bias is None else shift + norm.bias.double()
    values = layer.values.double().clone()
    for row, _, value in layer.geometry.blocks(layer.rows, layer.columns):
        block = values[value].view(row.stop - row.start, -1) if row.stop > row.start else values[:0]
        values[value] = (block * scale[layer.rows[row]][:, None]).flatten()
    bias = shift if layer.bias is None else shift + layer.bias.double() * scale
    dtype = layer.values.dtype
    layer.values = nn.Parameter(values.to(dtype), requires_grad=False)
    layer.bias = nn.Parameter(bias.to(dtype), requires_grad=False)
