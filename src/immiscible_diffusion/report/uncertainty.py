"""Intervals and tests for a handful of seeds, paired or not.

Values are an array, (n,), of one number a pair of equal seeds; or a table, (n, m), of one number for every seed of the
first arm with every seed of the second, where seeds are not shared.
"""

import itertools
import math
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import t as student

from immiscible_diffusion.streams import stream

__all__ = ["Interval", "bootstrap_interval", "permutation_p", "t_interval", "t_test_p"]

Values: TypeAlias = NDArray[np.float64]
Interval: TypeAlias = tuple[float, float]

_RESAMPLES = 10_000
_EXACT = 1 << 16
"""Rearrangements that are listed one and all; of more, this many are drawn."""


def t_interval(values: Values, *, level: float = 0.95) -> Interval | None:
    """Return the interval of the mean by Student's t, or None where there is nothing to estimate a variance from.

    Of a table, by Welch: the variance is that of the row means and of the column means, each over its own number. For
    differences a - b of every a with every b that is Welch's interval exactly.

    >>> low, high = t_interval(np.array([1.0, 2.0, 3.0]))
    >>> round(low, 2), round(high, 2)
    (-0.48, 4.48)
    """
    error, freedom = _error(values)
    if not error > 0:
        return (float(values.mean()), float(values.mean())) if freedom > 0 else None
    half = float(student.ppf((1 + level) / 2, freedom)) * error
    return float(values.mean()) - half, float(values.mean()) + half


def bootstrap_interval(values: Values, *, level: float = 0.95) -> Interval | None:
    """Return the percentile interval of the mean over resampled seeds, or None with fewer than three seeds an arm.

    A paired seed is drawn as a whole; the two sides of a table are drawn apart. The draws are those of one fixed
    stream, so equal values give an equal interval.

    Of few seeds it is too narrow: a normal mean of three lies in it 3 times in 4, of ten 9 times in 10.
    """
    if min(values.shape) < 3:
        return None
    generator = stream(0, 0, "sample")
    weights = [_weights(count, generator) for count in values.shape]
    means = weights[0] @ values if values.ndim == 1 else np.einsum("ri,ij,rj->r", weights[0], values, weights[1])
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def t_test_p(values: Values) -> float | None:
    """Return the two-sided p of mean zero by Student's (of a table Welch's) t, None where no variance is known."""
    error, freedom = _error(values)
    if not error > 0:
        return None
    return float(2 * student.sf(abs(values.mean()) / error, freedom))


def permutation_p(first: Values, second: Values, *, paired: bool) -> float:
    """Return the two-sided p of equal means when labels are exchanged: signs within pairs, or members of two groups.

    It supposes nothing of the distribution, and cannot be small with few seeds: at least 2 / 2^n for n pairs.
    All rearrangements are taken up to 65,536 of them, else that many are drawn from a fixed stream.

    >>> permutation_p(np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0, 6.0]), paired=True)
    0.25
    """
    count, generator = len(first), stream(0, 0, "sample")
    if paired:
        values, rearranged = first - second, 1 << count
        signs = np.array(list(itertools.product([1.0, -1.0], repeat=count))) if rearranged <= _EXACT else None
        if signs is None:
            signs = 2.0 * torch.randint(2, (_EXACT, count), generator=generator).numpy() - 1
        found, observed = signs @ values / count, values.mean()
    else:
        values = np.concatenate([first, second])
        rearranged = math.comb(len(values), count)
        if rearranged <= _EXACT:
            chosen = np.array(list(itertools.combinations(range(len(values)), count)))
        else:
            chosen = torch.rand((_EXACT, len(values)), generator=generator).argsort(1)[:, :count].numpy()
        own = values[chosen].sum(1)
        found, observed = own / count - (values.sum() - own) / len(second), first.mean() - second.mean()
    extreme = int((np.abs(found) >= abs(observed) - 1e-9 * np.abs(values).max(initial=0.0)).sum())
    return extreme / rearranged if rearranged <= _EXACT else (extreme + 1) / (_EXACT + 1)


def _error(values: Values) -> tuple[float, float]:
    """Return the standard error of the mean and its degrees of freedom, both 0 where they are not known."""
    if min(values.shape) < 2:
        return 0.0, 0.0
    sides = [values] if values.ndim == 1 else [values.mean(1), values.mean(0)]
    parts = [float(side.var(ddof=1)) / len(side) for side in sides]
    spread = [part**2 / (len(side) - 1) for part, side in zip(parts, sides, strict=True)]
    freedom = sum(parts) ** 2 / sum(spread) if sum(spread) > 0 else float(min(values.shape) - 1)
    return math.sqrt(sum(parts)), freedom


def _weights(count: int, generator: torch.Generator) -> Values:
    """Return how often each of ``count`` seeds is in each resample, over ``count``, (resamples, count)."""
    drawn = torch.randint(count, (_RESAMPLES, count), generator=generator)
    return torch.nn.functional.one_hot(drawn, count).sum(1).numpy() / count
