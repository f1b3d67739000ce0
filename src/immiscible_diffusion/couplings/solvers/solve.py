"""The linear assignment problem: exactly on the host, or to a certified gap where the cost lies on a GPU."""

import warnings

import lap
import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from immiscible_diffusion.checks import check_cost
from immiscible_diffusion.couplings.solvers.auction import auction
from immiscible_diffusion.couplings.solvers.sparse import solve_sparse
from immiscible_diffusion.types import Float, Int

__all__ = ["solve"]

_AUCTION_ROWS = range(4096, 16385)
"""The sizes that a GPU solves by itself. Chosen with care, not measured: at 4,096 the host takes 0.7 s after a copy of
64 MB, and an auction some 700 steps of 20 kernels; above 16,384 the auction's memory passes 4 GB."""
_FAR = 1e4
"""Costs of a row or a column that reach so many times as far as those of most take digits from float32 sums of them."""
_LOOK = 32
"""Entries of a row or a column from which its reach is told."""
_SPARSE_ROWS = 1536
"""From here on ``solve_sparse`` is faster than the dense solver on images and normal noise (measured on one thread)."""


def solve(cost: Float[Tensor, "b m"], *, gap: float = 1e-6) -> Int[Tensor, " b"]:
    """Return for each row the column that the cheapest assignment gives it, (b,), on the cost's device.

    lapx's float32 Jonker-Volgenant solver takes a tenth of scipy's time and finds the same cost. Square problems of
    1,536 rows and more go through their promising pairs first (``solve_sparse``), in half of that again. Time grows as
    b^2 m at worst. Large square problems on a GPU stay there (``auction``). A compiled step calls this outside its
    graph.

    Args:
        cost: finite; a CUDA tensor may be solved in place, any other is copied to the host.
        gap: what the total may exceed the optimum by where the GPU solves, as a share of what the cheapest pairing
            gains over a random one; the solver certifies it. 0 asks for the host's exact answer.

    Raises:
        ValueError: the cost is not finite, where lapx would answer with garbage; it is empty, has fewer
            columns than rows, or is no floating-point tensor.

    >>> solve(torch.tensor([[1.0, 0.0], [0.0, 3.0]])).tolist()
    [1, 0]
    """
    if torch.compiler.is_compiling():
        return torch.compiler.disable(solve)(cost, gap=gap)  # type: ignore[no-any-return, no-untyped-call]
    check_cost(cost, "the assignment cost")
    if gap > 0 and _stays(cost):
        index, _, met = auction(cost.detach().float(), gap=gap)
        if met:
            return index
        warnings.warn(
            f"an auction of {len(cost)} rows missed the gap of {gap}; the host solved this batch", stacklevel=2
        )
    host = cost.detach().float().cpu().contiguous()
    if not bool(host.isfinite().all()):
        raise ValueError("the assignment cost holds NaN or infinity")
    return torch.from_numpy(_lapx(host).astype(np.int64)).to(cost.device)


def _stays(cost: Tensor) -> bool:
    """Whether the cost's own device solves the problem sooner than the host, and no row alone makes up the gap."""
    large = cost.is_cuda and len(cost) in _AUCTION_ROWS and cost.shape[0] == cost.shape[1]
    return large and not bool(_far(cost, 1).any())


def _far(cost: Tensor, dim: int) -> Tensor:
    """Return which rows (``dim`` 1) or columns (0) reach much farther than most, from a sample of their entries."""
    count = cost.shape[dim]
    sample = cost[:, :: -(-count // _LOOK)] if dim == 1 else cost[:: -(-count // _LOOK)]
    low, high = sample.aminmax(dim=dim)
    reach = high - low
    return reach > _FAR * reach.median()


def _lapx(cost: Tensor) -> "np.ndarray[tuple[int, ...], np.dtype[np.int64]]":
    b, m = cost.shape
    far_rows, far_columns = _far(cost, 1), _far(cost, 0)
    uneven = bool(far_rows.any() | far_columns.any())
    if b == m >= _SPARSE_ROWS and not uneven:
        columns = solve_sparse(cost)
        if columns is not None:
            return columns
    host = cost.numpy()
    reduced = host
    if b == m:
        # Constants of rows and columns change no solution, but lapx starts from them: taken off, it needs half the time
        # or less (CIFAR-10, 1,024 rows: 16 ms instead of 32).
        constants = host[~far_rows.numpy()].mean(0, dtype=np.float64).astype(np.float32)
        if uneven:  # a far column would be the least of half the rows, and take the digits of the others
            constants = np.where(far_columns.numpy(), host.min(0), constants)
        reduced = host - constants
        reduced -= reduced.min(1, keepdims=True)
    columns = np.asarray(lap.lapjvr(reduced, extend_cost=b < m, return_cost=False, precision="float32")[1])
    if len(np.unique(columns)) < b:
        warnings.warn("lapx returned no assignment; scipy solved this batch", stacklevel=4)
        columns = linear_sum_assignment(host)[1]
    return columns
