"""Which module an operation belongs to, found by the parameters that it reads.

``torch.export`` names modules by the way that led to them, which need not be a name in the model: a
slice of a ``Sequential``, a plain list, a call of a function with another module's weight.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from torch import fx, nn

from ssl_lightning.graph.layers import ANY_CHANNEL_NORM, LAYER_KINDS, WEIGHTED, class_name
from ssl_lightning.graph.ops import Op

LAYERS = (*WEIGHTED, nn.PReLU, ANY_CHANNEL_NORM)


def call_types(graph: fx.Graph) -> dict[str, str]:
    """Return the class's name of the module of each call in an exported graph."""
    types: dict[str, str] = {}
    for node in graph.nodes:
        for call, (_, kind) in (node.meta.get("nn_module_stack") or {}).items():
            types[call] = kind if isinstance(kind, str) else class_name(kind)
    return types


def by_parameters(
    ops: Iterable[Op], types: Mapping[str, str], names: Mapping[str, str], model: nn.Module
) -> Iterator[Op]:
    """Yield the operations with the names that their modules have in the model.

    An operation of a layer that another module calls as a function, with the layer's weight,
    counts as the layer's and is marked ``outside``.

    Args:
        ops: as exported.
        types: from :func:`call_types`.
        names: value name -> qualified name, of parameters and buffers.
        model: the network.
    """
    ops = list(ops)
    modules = dict(model.named_modules())
    owners = {op.name: owner_of(op, names, modules) for op in ops}
    own = {
        op.call: owner
        for op in ops
        if (owner := owners[op.name]) is not None
        and op.module not in modules
        and types.get(op.call) == class_name(type(modules[owner]))
    }
    paths = aliases((op.module, own[op.call]) for op in ops if op.call in own)
    for op in ops:
        module = own.get(op.call) or resolved(op.module, paths, modules)
        owner = owners[op.name]
        if owner is not None and owner != module and not reads_own(op, names, modules[module]):
            yield replace(op, module=owner, outside=True)
        else:
            yield replace(op, module=module)


def owner_of(op: Op, names: Mapping[str, str], modules: Mapping[str, nn.Module]) -> str | None:
    """Return the module that holds the first parameter a layer's operation reads."""
    if op.kind not in LAYER_KINDS:
        return None
    owners = [names[name].rpartition(".")[0] for name in op.inputs()[1:] if name in names]
    known = [owner for owner in owners if isinstance(modules.get(owner), LAYERS)]
    return known[0] if known else None


def reads_own(op: Op, names: Mapping[str, str], module: nn.Module) -> bool:
    """Whether a module itself holds, under any name, a tensor that its operation reads."""
    held = {*module._parameters, *module._buffers}
    return any(names[n].rpartition(".")[2] in held for n in op.inputs() if n in names)


def aliases(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return path -> name in the model, from pairs of them, of their common ends' beginnings too.

    A path that leads to several modules is omitted.

    Example:
        >>> sorted(aliases([("a.slice.0.conv", "a.0.conv")]).items())
        [('a.slice', 'a'), ('a.slice.0', 'a.0'), ('a.slice.0.conv', 'a.0.conv')]
    """
    found: dict[str, set[str]] = {}
    for path, name in pairs:
        while path:
            found.setdefault(path, set()).add(name)
            if path.rpartition(".")[2] != name.rpartition(".")[2]:
                break
            path, name = path.rpartition(".")[0], name.rpartition(".")[0]
    return {path: names.pop() for path, names in found.items() if len(names) == 1}


def resolved(path: str, paths: Mapping[str, str], modules: Mapping[str, nn.Module]) -> str:
    """Return the name in the model of what a path leads to, or of what surrounds it."""
    if path in modules:
        return path
    start, rest = path, ""
    while start:
        name = f"{paths[start]}{rest}" if start in paths else ""
        if name and name in modules:
            return name
        if start in modules:
            return start
        start, _, last = start.rpartition(".")
        rest = f".{last}{rest}"
    return ""
