"""How much training an arm needs to reach what its reference reaches, and how their final distances differ."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import mean
from typing import Literal, TypeAlias

import numpy as np

from immiscible_diffusion.report.uncertainty import (
    Interval,
    Values,
    bootstrap_interval,
    permutation_p,
    spread,
    t_interval,
    t_test_p,
)

__all__ = [
    "Curve",
    "Difference",
    "Pair",
    "Speedup",
    "Target",
    "arrival",
    "difference",
    "falling",
    "mean_bounds",
    "pairs_of",
    "speedup",
]

Curve: TypeAlias = Sequence[tuple[int, float]]
"""(training step, distance) of one run, by rising step; smaller is better."""
Pair: TypeAlias = tuple[int, int]
"""A seed of the reference and the seed of the arm that is compared with it."""
Target: TypeAlias = Literal["final", "best"]
"""The reference's distance to be reached, seed by seed: of its last evaluation, or the lowest of all."""


@dataclass(frozen=True)
class Speedup:
    """What both arms needed to reach the reference's distance, in training steps or in seconds.

    Attributes:
        target: seed of the reference -> the distance to be reached.
        reference: pair -> bounds of what the reference needed. They are equal where the arrival was seen, (0, first
            step) where the first evaluation was there already, (last step, inf) where no evaluation was.
        arm: the same pairs -> bounds of what the arm needed.
    """

    target: Mapping[int, float]
    reference: Mapping[Pair, Interval]
    arm: Mapping[Pair, Interval]

    @property
    def by_pair(self) -> dict[Pair, Interval]:
        """Bounds of reference over arm by pair; above 1 the arm is sooner."""
        return {pair: (_exp(low), _exp(high)) for pair, (low, high) in self._logs.items()}

    @property
    def bounds(self) -> Interval:
        """Bounds of the geometric mean over pairs. A seed that did not arrive bounds it; it is never left out."""
        low, high = mean_bounds(self._logs)
        return _exp(low), _exp(high)

    @property
    def ratio(self) -> float | None:
        """The geometric mean over pairs, None where only bounds are known."""
        low, high = self.bounds
        return low if low == high else None

    @property
    def interval(self) -> Interval | None:
        """The 95 % interval of the ratio from a t distribution of the logarithms, None of one seed.

        Where every pair has a lower bound it is (interval of the bounds, inf), and (0, interval of the bounds) where
        every pair has an upper one: what is not known can only widen it.
        """
        low, high = (t_interval(table) if np.isfinite(table).all() else None for table in self._tables)
        if low is None and high is None:
            return None
        return 0.0 if low is None else _exp(low[0]), math.inf if high is None else _exp(high[1])

    @property
    def bootstrap(self) -> Interval | None:
        """The 95 % percentile interval of the ratio over resampled seeds, None of a bound or fewer than three seeds."""
        interval = None if self.ratio is None else bootstrap_interval(self._tables[0])
        return None if interval is None else (_exp(interval[0]), _exp(interval[1]))

    @property
    def arrived(self) -> int:
        """How many pairs' arms arrived."""
        return sum(math.isfinite(high) for _, high in self.arm.values())

    def scaled(self, reference: float, arm: float) -> "Speedup":
        """Return the same in another unit: each arm's steps times its seconds a step, say."""
        return Speedup(self.target, _times(self.reference, reference), _times(self.arm, arm))

    @property
    def _logs(self) -> dict[Pair, Interval]:
        return {
            pair: (_log(first[0], self.arm[pair][1]), _log(first[1], self.arm[pair][0]))
            for pair, first in self.reference.items()
        }

    @property
    def _tables(self) -> list[Values]:
        return [_table({pair: bounds[side] for pair, bounds in self._logs.items()}) for side in (0, 1)]


@dataclass(frozen=True)
class Difference:
    """Final values of an arm and of its reference, mean and s.d. over seeds each, and arm minus reference.

    ``mean`` of the differences has a 95 % ``interval`` by Student's t, the p of that test and of exchanged labels.
    """

    reference: tuple[float, float]
    arm: tuple[float, float]
    mean: float
    interval: Interval | None
    p_t: float | None
    p_permutation: float | None


def mean_bounds(needed: Mapping[Pair, Interval]) -> Interval:
    """Return the mean over pairs of lower and of upper bounds."""
    lows, highs = zip(*needed.values(), strict=True)
    return mean(lows), mean(highs)


def difference(reference: Mapping[int, float], arm: Mapping[int, float], pairs: Sequence[Pair]) -> Difference:
    """Return how the values of two arms, seed -> value each, differ over these pairs of seeds.

    >>> difference({0: 1.0, 1: 2.0}, {0: 3.0, 1: 5.0}, [(0, 0), (1, 1)]).mean
    2.5
    """
    table = _table({(a, b): arm[b] - reference[a] for a, b in pairs})
    seeds, arm_seeds = (dict.fromkeys(side) for side in zip(*pairs, strict=True))
    first, second = [reference[seed] for seed in seeds], [arm[seed] for seed in arm_seeds]
    p = permutation_p(np.array(second), np.array(first), paired=table.ndim == 1)
    middle = mean(arm[b] - reference[a] for a, b in pairs)
    return Difference(spread(first), spread(second), middle, t_interval(table), t_test_p(table), p)


def pairs_of(reference: Mapping[int, object], arm: Mapping[int, object]) -> list[Pair]:
    """Return the pairs of seeds to compare: equal seeds, as these runs saw the same batches, noise and times.

    With fewer than two seeds in common, every seed of the reference is compared with every seed of the arm.
    """
    both = sorted(set(reference) & set(arm))
    if len(both) > 1 or set(reference) == set(arm):
        return [(seed, seed) for seed in both]
    return [(a, b) for a in sorted(reference) for b in sorted(arm)]


def arrival(curve: Curve, target: float) -> Interval:
    """Return bounds of the step at which a curve is first at or below a target, as ``Speedup`` has them.

    Between two evaluations the logarithm of the distance is taken as linear in the step.

    >>> arrival([(100, 40.0), (200, 10.0)], 20.0), arrival([(100, 40.0)], 50.0), arrival([(100, 40.0)], 30.0)
    ((150.0, 150.0), (0.0, 100.0), (100.0, inf))
    """
    if curve[0][1] <= target:
        return 0.0, float(curve[0][0])
    for (before, above), (step, value) in pairwise(curve):
        if value <= target:
            known = value > 0 and target > 0
            share = math.log(above / target) / math.log(above / value) if known else 1.0
            return (before + share * (step - before),) * 2
    return float(curve[-1][0]), math.inf


def falling(curves: Mapping[int, Curve]) -> dict[int, Curve]:
    """Return the curves of a metric of which larger values are better as curves to ``speedup``: the reciprocals.

    A ratio of values, and so what is interpolated between two evaluations, is the same for both but for its sign.

    >>> falling({0: [(100, 0.5), (200, 0.8)]})
    {0: [(100, 2.0), (200, 1.25)]}
    """
    return {seed: [(step, 1 / max(value, 1e-12)) for step, value in curve] for seed, curve in curves.items()}


def speedup(
    reference: Mapping[int, Curve],
    arm: Mapping[int, Curve],
    *,
    target: Target = "final",
    pairs: Sequence[Pair] | None = None,
) -> Speedup:
    """Return how much sooner an arm reaches the reference's distance, seed by seed.

    The reference is counted by the same rule: up to the first step at which it reaches its own target, which is earlier
    than its last step where its curve is flat or noisy.

    Args:
        reference: seed -> curve, of independent noise say.
        arm: seed -> curve.
        target: which distance of the reference is to be reached.
        pairs: the seeds to compare; by default equal seeds, which both must have.

    Raises:
        ValueError: no pairs are given and the seeds differ or there are none.

    >>> result = speedup({0: [(10, 9.0), (90, 3.0)]}, {0: [(10, 9.0), (30, 3.0)]})
    >>> result.ratio, result.interval
    (3.0, None)
    """
    if pairs is None:
        if not reference or set(reference) != set(arm):
            seeds = f"there are {sorted(reference)} and {sorted(arm)}"
            raise ValueError(f"speed-up needs the same seeds in both arms; {seeds}")
        pairs = [(seed, seed) for seed in reference]
    lowest = {a: min(value for _, value in reference[a]) if target == "best" else reference[a][-1][1] for a, _ in pairs}
    return Speedup(
        lowest,
        {(a, b): arrival(reference[a], lowest[a]) for a, b in pairs},
        {(a, b): arrival(arm[b], lowest[a]) for a, b in pairs},
    )


def _table(values: Mapping[Pair, float]) -> Values:
    """Return the values of paired seeds as (n,), or of every seed with every seed as (n, m)."""
    if all(a == b for a, b in values):
        return np.array(list(values.values()))
    first, second = (list(dict.fromkeys(seeds)) for seeds in zip(*values, strict=True))
    return np.array([[values[a, b] for b in second] for a in first])


def _times(needed: Mapping[Pair, Interval], factor: float) -> dict[Pair, Interval]:
    return {pair: (low * factor, high * factor) for pair, (low, high) in needed.items()}


def _log(first: float, second: float) -> float:
    """Return log(first / second): minus infinity of 0 over anything or of anything over infinity, infinity over 0."""
    if first <= 0 or math.isinf(second):
        return -math.inf
    return math.inf if second <= 0 else math.log(first / second)


def _exp(value: float) -> float:
    return math.inf if value > 700 else round(math.exp(value), 12)
