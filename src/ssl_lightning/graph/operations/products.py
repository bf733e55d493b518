"""Products of two tensors, whose heads (or other batch dimensions) are removed together.

Each dimension has a letter, as in ``torch.einsum``. The slices of both operands must lie along the
same letter, which the result has too; slices along a letter that is summed over are fixed.
"""

from __future__ import annotations

from torch import Tensor

from ssl_lightning.graph.flow import Flow, Value
from ssl_lightning.graph.labels import spread, varies
from ssl_lightning.graph.operations.linear import matrix_labels, stored_matrix
from ssl_lightning.graph.ops import Op, Ref
from ssl_lightning.graph.rule import Rule, as_alive, fix_all, literal, rows

MATRIX_PRODUCTS = frozenset({"matmul", "bmm", "mm", "baddbmm"})
PRODUCTS = MATRIX_PRODUCTS | {"einsum"}
BATCH = "12345678"
"""Letters that no equation has: batch dimensions, and what the dots of an equation stand for."""


def operands_of(op: Op) -> list[Ref]:
    """Return the operands of a product."""
    start = 1 if op.kind == "baddbmm" else 0
    given = op.args[1] if op.kind == "einsum" else op.args[start : start + 2]
    return [arg for arg in given if isinstance(arg, Ref)]


def letters(op: Op, ranks: list[int]) -> tuple[list[str], str] | None:
    """Return a letter for each dimension of the operands and of the result; None if unknown."""
    equation = str(op.args[0]).replace(" ", "") if op.kind == "einsum" else "...ik,...kj->...ij"
    read, _, right = equation.partition("->")
    terms = read.split(",")
    if not right or len(terms) != len(ranks):
        return None
    pairs = zip(terms, ranks, strict=True)
    own = [rank - len(term) + 3 if "..." in term else 0 for term, rank in pairs]
    if min(own) < 0:
        return None
    wide = [
        term.replace("...", BATCH[len(BATCH) - n :]) for term, n in zip(terms, own, strict=True)
    ]
    return wide, right.replace("...", BATCH[len(BATCH) - max(own) :])


def product_labels(op: Op, flow: Flow) -> Value:
    """Slices along a dimension that both operands and the result have are tied."""
    names = [ref.name for ref in operands_of(op)]
    found = letters(op, [flow.slices[name].dim() for name in names]) if len(names) == 2 else None
    if found is None or any(len(set(term)) < len(term) for term in (*found[0], found[1])):
        return fix_all(op, flow)
    terms, result = found
    for position in (1, 0):
        if stored_matrix(flow, names[position]) is not None:
            labels = weight_labels(op, flow, names, terms, result, position)
            return fix_all(op, flow) if labels is None else labels
    shared = shared_letter(flow, names, terms, result)
    if shared is None:
        return fix_all(op, flow)
    return tie_letter(op, flow, names, terms, result, shared)


def weight_labels(
    op: Op, flow: Flow, names: list[str], terms: list[str], result: str, position: int
) -> Value | None:
    """Return the labels of a product with a stored matrix; None if it is no linear map."""
    weight, x = terms[position], terms[1 - position]
    summed = [letter for letter in weight if letter in x and letter not in result]
    written = [letter for letter in weight if letter in result and letter not in x]
    if len(weight) != 2 or len(summed) != 1 or len(written) != 1:
        return None
    return matrix_labels(
        op,
        flow,
        names[position],
        weight.index(written[0]),
        names[1 - position],
        x.index(summed[0]),
        result.index(written[0]),
    )


def shared_letter(flow: Flow, names: list[str], terms: list[str], result: str) -> str | None:
    """Return the letter along which operands have slices that a product leaves apart."""
    found = set()
    for name, term in zip(names, terms, strict=True):
        labels = flow.slices[name]
        found |= {term[d] for d in range(labels.dim()) if varies(labels, d) and term[d] in result}
    if len(found) != 1:
        return None
    (letter,) = found
    return letter if all(letter in term for term in terms) else None


def tie_letter(
    op: Op, flow: Flow, names: list[str], terms: list[str], result: str, letter: str
) -> Tensor:
    """Tie the slices of both operands along a letter; operands that repeat there remain whole."""
    size = op.shape[result.index(letter)]
    tied = []
    for name, term in zip(names, terms, strict=True):
        labels, dim = flow.slices[name], term.index(letter)
        apart = [d for d in range(labels.dim()) if d != dim and varies(labels, d)]
        if labels.shape[dim] != size or apart:
            flow.labels.fix(labels)
        if labels.shape[dim] == size:
            tied.append(flow.labels.per_index(labels, dim))
    for row in tied[1:]:
        flow.labels.union(tied[0], row)
    return spread(tied[0], op.shape, result.index(letter))


def leaves_apart(op: Op, name: str, marks: Tensor) -> bool:
    """Whether a product leaves apart what marks number in one of its operands."""
    names = [ref.name for ref in operands_of(op)]
    found = letters(op, [marks.dim()] * 2) if len(names) == 2 and name in names else None
    if found is None:
        return False
    terms, result = found
    term = terms[names.index(name)]
    along = [term[d] for d in range(marks.dim()) if varies(marks, d)]
    return all(x in result for x in along) and any(all(x in t for t in terms) for x in along)


PRODUCT = Rule(literal, product_labels, varies=as_alive, constants=False)

TABLE = dict(rows(PRODUCT, "matmul bmm mm einsum"))
