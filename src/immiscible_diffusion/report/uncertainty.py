"""Intervals and tests for a handful of seeds, paired or not.

Values are an array, (n,), of one number for each pair of equal seeds; or a table, (n, m), of one number for every seed
of the first arm with every seed of the second, where the arms share no seeds.
"""

import warnings
from collections.abc import Iterable
from statistics import mean, stdev
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import stats

__all__ = ["Interval", "Values", "bootstrap_interval", "permutation_p", "spread", "t_interval", "t_test_p"]

Values: TypeAlias = NDArray[np.float64]
Interval: TypeAlias = tuple[float, float]

_RESAMPLES, _REARRANGED = 10_000, 20_000


def spread(values: Iterable[float]) -> tuple[float, float]:
    """Return mean and standard deviation, 0 for a single value."""
    listed = list(values)
    return mean(listed), stdev(listed) if len(listed) > 1 else 0.0


def t_interval(values: Values) -> Interval | None:
    """Return the 95 % interval of the mean by Student's t, or None of fewer than two seeds an arm.

    Of a table, by Welch: the variance is the sum of the variances of the row means and of the column means. For
    differences a - b of every a with every b this is exactly Welch's interval.

    >>> low, high = t_interval(np.array([1.0, 2.0, 3.0]))
    >>> round(low, 2), round(high, 2)
    (-0.48, 4.48)
    """
    if min(values.shape) < 2:
        return None
    test = _t_test(values)
    low, high = (values.mean(), values.mean()) if test is None else test.confidence_interval(0.95)
    return float(low), float(high)


def t_test_p(values: Values) -> float | None:
    """Return the two-sided p of mean zero by the same t-test.

    None of fewer than three pairs, of fewer than two seeds an arm without pairs, and where nothing varies.

    >>> round(t_test_p(np.array([1.0, 1.5, 1.0])), 3)
    0.02
    """
    test = None if min(values.shape) < (3 if values.ndim == 1 else 2) else _t_test(values)
    return None if test is None else float(test.pvalue)


def bootstrap_interval(values: Values) -> Interval | None:
    """Return the 95 % percentile interval of the mean over resampled seeds, None of fewer than three seeds an arm.

    A paired seed is drawn as a whole; the two sides of a table are drawn independently. The random seed is fixed, so
    equal values give an equal interval.

    Of few seeds it is too narrow: it holds the mean of three normal values 3 times in 4, of ten 9 times in 10.
    """
    if min(values.shape) < 3:
        return None

    def resampled_mean(*drawn: Any, axis: int) -> Any:  # of numbers of rows, and of columns of a table: (resamples, n)
        if values.ndim == 1:
            return values[drawn[0]].mean(axis)
        return values[drawn[0][..., :, None], drawn[1][..., None, :]].mean((-2, -1))

    numbers, generator = [np.arange(count) for count in values.shape], np.random.default_rng(0)
    result = stats.bootstrap(numbers, resampled_mean, n_resamples=_RESAMPLES, method="percentile", rng=generator)
    low, high = result.confidence_interval
    return float(low), float(high)


def permutation_p(first: Values, second: Values, *, paired: bool) -> float | None:
    """Return the two-sided p of equal means when labels are exchanged: signs within pairs, or members of two groups.

    It assumes nothing of the distribution. With few seeds it cannot be small: at least 2 / 2^n for n pairs. Up to
    20,000 rearrangements all are counted, else that many are drawn with a fixed random seed. None of a single seed.

    >>> permutation_p(np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0, 6.0]), paired=True)
    0.25
    """
    if min(len(first), len(second)) < 2:
        return None
    unit = (
        1e-9 * float(max(np.abs(first).max(), np.abs(second).max())) or 1.0
    )  # differences that rounding makes are none

    def apart(a: Any, b: Any, axis: int) -> Any:  # scipy's own two-sided p doubles a tail; this counts both
        return np.round(np.abs(a.mean(axis) - b.mean(axis)) / unit)

    kind, generator = "samples" if paired else "independent", np.random.default_rng(0)
    result = stats.permutation_test(
        (first, second), apart, permutation_type=kind, n_resamples=_REARRANGED, alternative="greater", rng=generator
    )
    return float(result.pvalue)


def _t_test(values: Values) -> Any:
    """Return scipy's test of mean zero, of a table of row against column means; None where no mean varies."""
    sides = [values] if values.ndim == 1 else [values.mean(1), values.mean() - values.mean(0)]
    if not any(np.ptp(side) for side in sides):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # that one side of a table is constant
        return stats.ttest_1samp(values, 0.0) if values.ndim == 1 else stats.ttest_ind(*sides, equal_var=False)
