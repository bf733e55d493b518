"""From the weight of a layer to those of its low rank factors, in float64, on the CPU."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ssl_lightning.compaction.factors import Factors
from ssl_lightning.suggest import require

TUCKER: dict[str, Any] = {"n_iter_max": 10, "tol": 1e-4}
CP: dict[str, Any] = {"n_iter_max": 100, "tol": 1e-7, "init": "svd", "random_state": 0}
"""Most iterations, and the change of the relative error that ends them."""

BALANCING = 100
"""Most rounds in which neighbouring factors get equal norms."""


@torch.no_grad()
def decompose(weight: Tensor, factor: Factors) -> list[Tensor]:
    r"""Return the weights of the factors of a layer, balanced, the first that is called first.

    ``svd`` gives :math:`\sqrt{\sigma_j} v_j` and :math:`\sqrt{\sigma_j} u_j`, so that both sides of
    rank :math:`j` have the norm :math:`\sqrt{\sigma_j}`. Of ``cp``, each of the ``n`` factors has
    the n-th root of the norm of the component. Of ``tucker``, what writes a channel between two
    factors has the norm of what reads it.

    Args:
        weight: ``(O, I, *kernel_size)``.
        factor: method and ranks.

    Returns:
        Tensors in float64 with as many elements as the weights of the factors, in their order.

    Reference:
        Eckart & Young, 1936; Kim et al., ICLR 2016 (Tucker-2); Lebedev et al., ICLR 2015 (CP).

    Example:
        >>> first, last = decompose(torch.eye(3)[:, :2], Factors("svd", (2,)))
        >>> torch.allclose(last @ first, torch.eye(3, dtype=torch.float64)[:, :2])
        True
    """
    return DECOMPOSERS[factor.method](weight.detach().double().cpu(), factor.ranks)


def decompose_svd(weight: Tensor, ranks: Sequence[int]) -> list[Tensor]:
    """Truncate the singular value decomposition of the matrix whose rows are the outputs."""
    u, s, v = torch.linalg.svd(weight.flatten(1), full_matrices=False)
    root = s[: ranks[0]].sqrt()
    return [root[:, None] * v[: ranks[0]], u[:, : ranks[0]] * root]


def decompose_tucker(weight: Tensor, ranks: Sequence[int]) -> list[Tensor]:
    """Return input factor, core and output factor of a Tucker-2 decomposition."""
    from tensorly.decomposition import partial_tucker

    settings = {**TUCKER, "rank": list(ranks), "modes": [0, 1], "svd": wide_svd}
    (core, (outer, inner)), _ = quietly(partial_tucker, weight, **settings)
    first, middle, last = (torch.from_numpy(np.ascontiguousarray(x)) for x in (inner, core, outer))
    return balanced(first.T.contiguous(), middle, last)


def decompose_cp(weight: Tensor, ranks: Sequence[int]) -> list[Tensor]:
    """Return the factors of a canonical polyadic decomposition: inputs, kernel, outputs."""
    from tensorly.decomposition import parafac

    sizes = [size for size in weight.shape[2:] if size > 1]
    if not bool(weight.any()):  # which has no directions to begin with
        zeros = [weight.new_zeros(ranks[0], size) for size in (weight.shape[1], *sizes)]
        return [*zeros, weight.new_zeros(len(weight), ranks[0])]
    _, found = quietly(
        parafac,
        weight.reshape(*weight.shape[:2], *sizes),
        rank=ranks[0],
        **CP,
    )
    outer, *others = (torch.from_numpy(np.ascontiguousarray(matrix)) for matrix in found)
    columns = [*others, outer]
    norms = [matrix.norm(dim=0).clamp_min(torch.finfo(matrix.dtype).tiny) for matrix in columns]
    root = torch.stack(norms).log().mean(0).exp()  # of the component's norm
    scaled = [matrix * (root / norm) for matrix, norm in zip(columns, norms, strict=True)]
    return [*(matrix.T.contiguous() for matrix in scaled[:-1]), scaled[-1]]


def balanced(first: Tensor, core: Tensor, last: Tensor) -> list[Tensor]:
    """Scale the channels between three factors so that both sides of each have one norm.

    Args:
        first: ``(R_in, I)``.
        core: ``(R_out, R_in, *kernel_size)``.
        last: ``(O, R_out)``.

    Returns:
        The three, which have the same product; of all that differ by such scales they have the
        least sum of squares.
    """
    tail = [1] * (core.dim() - 2)
    for _ in range(BALANCING):
        read = core.transpose(0, 1).flatten(1).norm(dim=1)
        inner = roots(first.norm(dim=1), read)
        first, core = first * inner[:, None], core / inner.view(1, -1, *tail)
        written = core.flatten(1).norm(dim=1)
        outer = roots(written, last.norm(dim=0))
        core, last = core * outer.view(-1, 1, *tail), last / outer
        if max(float((scale - 1).abs().max()) for scale in (inner, outer)) < 1e-12:
            break
    return [first, core, last]


def roots(before: Tensor, after: Tensor) -> Tensor:
    """Return the factors for one side of channels that give both sides one norm; 1 for zeros."""
    some = (before > 0) & (after > 0)
    return torch.where(some, (after / before.where(some, 1.0)).sqrt(), 1.0)


def wide_svd(matrix: Any, n_eigenvecs: int, **_: Any) -> tuple[Any, Any, Any]:
    """Return the largest singular values and vectors of a matrix, fast where it is wide.

    Args:
        matrix: ``(m, n)``, in numpy.
        n_eigenvecs: how many, at most ``m``.

    Returns:
        ``(m, k)``, ``(k,)`` and ``(k, n)``; the first have orthonormal columns to rounding.

    Example:
        >>> wide_svd(np.diag([1.0, 2.0]), 1)[1]
        array([2.])
    """
    squares, left = np.linalg.eigh(matrix @ matrix.T)  # ascending
    left = left[:, ::-1][:, :n_eigenvecs]
    values = np.sqrt(np.clip(squares[::-1][:n_eigenvecs], 0.0, None))
    right = left.T @ matrix / np.maximum(values, np.finfo(values.dtype).tiny)[:, None]
    return left, values, right


def quietly(function: Any, weight: Tensor, **settings: Any) -> Any:
    """Call a function of tensorly with numpy, whatever backend is set, and without its warnings.

    It warns where a kernel has fewer positions than the rank, which is no mistake.
    """
    import tensorly

    with tensorly.backend_context("numpy"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(weight.numpy(), **settings)


def require_tensorly(where: str) -> None:
    """Make sure that tensorly is installed.

    Raises:
        ValueError: saying how to install it.
    """
    require(where, ["tensorly"], "low-rank", "or take method='svd'")


@torch.no_grad()
def fill_(layers: nn.Sequential, layer: Any, factor: Factors) -> None:
    """Give new layers the factors of the weight of the layer that they replace, and its bias."""
    weights = decompose(layer.weight, factor)
    for part, weight in zip(layers, weights, strict=True):
        target: Any = part.weight
        target.copy_(weight.reshape(target.shape))
    if layer.bias is not None:
        bias: Any = layers[-1].bias
        bias.copy_(layer.bias)


DECOMPOSERS = {"svd": decompose_svd, "tucker": decompose_tucker, "cp": decompose_cp}
"""Name of a method -> weight and ranks to the factors."""
