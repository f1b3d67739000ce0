"""Large assignment problems through their few promising pairs, with a proof that the dense optimum was found.

Column generation for the linear assignment problem: solve it on some tens of pairs a row, derive potentials from that
solution, and look through all pairs once. Where no pair lies below its potentials, linear programming duality makes the
sparse optimum the dense one (Burkard, Dell'Amico and Martello, Assignment Problems, 2009, section 4.4); where some do,
they join the problem and it is solved again. The pairs come from a few rounds of Sinkhorn scaling at a temperature of a
fifth of the cost's deviation, where rows and columns have their share of them.
"""

import lap
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from immiscible_diffusion.types import Float

__all__ = ["solve_sparse"]

_TEMPERATURE = 0.2
"""Of the scaling, in standard deviations of the cost. At .1 more pairs are missing, at .3 more are superfluous."""
_ROUNDS = 3
_PAIRS = 48
"""A row of the first problem. CIFAR-10 and normal noise, 2,048 and 4,096 rows: none is missing; of 24, ten are."""
_REPAIRS = 4
"""Solutions that may miss pairs before the problem is given up. Each costs as much as the first."""
_BLOCK = 128
"""Rows seen at a time: 128 x 4,096 floats stay within the processor's cache."""

_Ints = NDArray[np.int64]
_Floats = NDArray[np.float64]


def solve_sparse(cost: Float[Tensor, "b b"]) -> _Ints | None:
    """Return the columns of a proven optimum, (b,), or None where the problem is not of the kind that this suits.

    A pair counts as missing if it lies further below the potentials than the look in float32 can tell, 1e-6 of the
    largest cost, so the total exceeds the optimum by at most b times that.

    Args:
        cost: finite, on the host, float32.
    """
    b = len(cost)
    i, j, potential = _promising(cost)
    if not 8 * b <= len(i) <= 256 * b:
        return None
    dense = cost.numpy()
    tolerance = 1e-6 * float(cost.abs().max())
    for _ in range(_REPAIRS):
        problem = _Problem(dense, i, j, potential)
        columns = problem.solved()
        if columns is None:
            return None
        shift = problem.potentials(columns)
        if shift is None:
            return None
        potential = potential + shift
        missing = _missing(cost, columns, potential, tolerance)
        if not len(missing):
            return columns
        if len(missing) > b:
            return None
        i, j = np.divmod(np.unique(np.concatenate([i * b + j, missing])), b)
    return None


def _promising(cost: Tensor) -> tuple[_Ints, _Ints, _Floats]:
    """Return rows and columns of the promising pairs, in order, and the columns' first potentials, (b,)."""
    b = len(cost)
    sample = slice(None, None, max(1, b // 64))
    first = cost[sample].mean(0)
    centred = cost[sample] - first
    unit = float((centred - centred.mean(1, keepdim=True)).std()) * _TEMPERATURE or 1.0
    kernel = torch.empty_like(cost)
    for start in range(0, b, _BLOCK):
        part = torch.sub(cost[start : start + _BLOCK], first, out=kernel[start : start + _BLOCK])
        part.sub_(part.amin(1, keepdim=True)).mul_(-1 / unit).exp_()
    columns = torch.ones(b, dtype=torch.float32)
    for _ in range(_ROUNDS):
        rows = 1 / (kernel @ columns)
        columns = 1 / (rows @ kernel)
    rows = 1 / (kernel @ columns)
    shares = (kernel[sample] * rows[sample, None] * columns).flatten()
    limit = shares.topk(_PAIRS * len(shares) // b).values[-1] / rows
    pairs = [
        (kernel[start : start + _BLOCK].mul_(columns) > limit[start : start + _BLOCK, None]).nonzero()
        + torch.tensor([start, 0])
        for start in range(0, b, _BLOCK)
    ]
    i, j = torch.cat(pairs).T.numpy()
    return i, j, (first - unit * columns.log()).double().numpy()


class _Problem:
    """The assignment over some of the pairs: compressed rows of costs less the columns' potentials."""

    def __init__(self, dense: NDArray[np.float32], i: _Ints, j: _Ints, potential: _Floats) -> None:
        self.j, self.counts = j, np.bincount(i, minlength=len(dense))
        self.starts = np.concatenate([[0], np.cumsum(self.counts)])
        self.costs = dense[i, j].astype(np.float64) - potential[j]

    def solved(self) -> _Ints | None:
        """Return the column of each row, (b,), or None where these pairs hold no perfect matching."""
        b = len(self.counts)
        if not np.isfinite(self.costs).all() or not self.counts.all() or len(np.unique(self.j)) < b:
            return None
        costs = self.costs - np.repeat(np.minimum.reduceat(self.costs, self.starts[:-1]), self.counts)
        matching = lap.lapmod(b, costs, self.starts.astype(np.int32), self.j.astype(np.int32), return_cost=False)[0]
        columns: _Ints = np.asarray(matching, dtype=np.int64)
        chosen = (self.j == np.repeat(columns, self.counts)).sum()
        return columns if chosen == b and len(np.unique(columns)) == b else None

    def potentials(self, columns: _Ints) -> _Floats | None:
        """Return what to add to the columns' potentials so that no pair lies below its row's, or None.

        Shortest paths from anywhere, by Bellman and Ford, over the graph that leads from each row's column to the
        others of the row; there is a negative circle, and no end, only where the solution is not the optimum.
        """
        b = len(columns)
        row_of = np.empty(b, np.int64)
        row_of[columns] = np.arange(b)
        length = self.costs - np.repeat(self.costs[self.j == np.repeat(columns, self.counts)], self.counts)
        tolerance = 1e-12 * float(np.abs(self.costs).max())
        potential, changed = np.zeros(b), np.arange(b)
        for _ in range(b):
            rows = row_of[changed]
            counts = self.counts[rows]
            skipped = np.repeat(self.starts[rows] - np.cumsum(counts) + counts, counts)
            edges = skipped + np.arange(len(skipped))
            reached, to = np.repeat(potential[changed], counts) + length[edges], self.j[edges]
            shorter = reached < potential[to] - tolerance
            np.minimum.at(potential, to[shorter], reached[shorter])
            changed = np.unique(to[shorter])
            if not len(changed):
                return potential
        return None


def _missing(cost: Tensor, columns: _Ints, potential: _Floats, tolerance: float) -> _Ints:
    """Return i b + j of the pairs that lie below their potentials, at most eight a row."""
    b = len(cost)
    index, shift = torch.from_numpy(columns), torch.from_numpy(potential.astype(np.float32))
    limit = cost.gather(1, index[:, None])[:, 0] - shift[index] - tolerance
    missing = []
    for start in range(0, b, _BLOCK):
        reduced, least = cost[start : start + _BLOCK] - shift, limit[start : start + _BLOCK, None]
        rows = (reduced.amin(1, keepdim=True) < least).nonzero()[:, 0]
        if len(rows):
            values, pairs = reduced[rows].topk(8, 1, largest=False)
            keys = (rows[:, None] + start) * b + pairs
            missing.append(keys[values < least[rows]].numpy())
    return np.concatenate(missing) if missing else np.empty(0, np.int64)
