"""From positions along a parameter's dimension to the members of a group set."""

from __future__ import annotations

from collections.abc import Sequence

from ssl_lightning.groups.sets import Member


def members_of(
    name: str, shape: tuple[int, ...], rows: Sequence[tuple[int, ...]], dim: int = 0
) -> list[Member]:
    """Return the members that slices of a parameter are: one, if it can be viewed so, or one a row.

    Args:
        name: of the parameter.
        shape: of the parameter.
        rows: each with one position per group.
        dim: the dimension of the positions.

    Example:
        >>> members_of("qkv.weight", (12, 4), [(0, 2), (1, 3), (4, 6), (5, 7), (8, 10), (9, 11)])
        [Member(parameter='qkv.weight', shape=(3, 2, 2, 4), index_dims=(1,), index=())]
    """
    count, parts = len(rows[0]), len(rows)
    for inner in (n for n in range(1, parts + 1) if parts % n == 0):
        expected = [
            tuple(outer * count * inner + group * inner + i for group in range(count))
            for outer in range(parts // inner)
            for i in range(inner)
        ]
        if sorted(rows) == sorted(expected) and shape[dim] == count * parts:
            if parts == 1:
                return [Member(name, shape, (dim,))]
            split = (*shape[:dim], parts // inner, count, inner, *shape[dim + 1 :])
            return [Member(name, split, (dim + 1,))]
    return [Member(name, shape, (dim,), row) for row in rows]
