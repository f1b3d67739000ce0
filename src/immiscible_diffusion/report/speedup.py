"""How much training an arm needs to reach what another reaches."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import TypeAlias

import numpy as np

from immiscible_diffusion.report.uncertainty import Interval, Values, bootstrap_interval, t_interval

__all__ = ["Curve", "Effort", "Pair", "Speedup", "arrival", "effort", "reached", "speedup", "table_of"]

Curve = Sequence[tuple[int, float]]
"""(training step, distance) of one run, by rising step; smaller is better."""

Pair: TypeAlias = tuple[int, int]
"""A seed of the reference and the seed of the arm that is set against it."""


@dataclass(frozen=True)
class Speedup:
    """Steps to the reference's final distance, by seed, and what is known of the ratio of steps."""

    target: Mapping[int, float]
    steps: Mapping[int, float | None]
    reference_steps: Mapping[int, float]
    effort: "Effort"

    @property
    def ratio(self) -> float | None:
        """The geometric mean over seeds, None where a seed of either arm makes it a bound (``effort.ratio``)."""
        low, high = self.effort.ratio
        return low if low == high else None

    @property
    def interval(self) -> Interval | None:
        """The 95 % interval of ``ratio`` from a t distribution of the logarithms, None of one seed.

        Where every seed has a lower bound it is (that of the bounds, inf), and (0, that of the bounds) where each has
        an upper one: what is not known can only widen it.
        """
        if self.effort.t is not None or self.ratio is not None:
            return self.effort.t
        lows, highs = (np.array(each) for each in zip(*self.effort.by_pair.values(), strict=True))
        if lows.min() > 0 and (found := t_interval(np.log(lows))) is not None:
            return _exp(found[0]), math.inf
        if highs.max() < math.inf and (found := t_interval(np.log(highs))) is not None:
            return 0.0, _exp(found[1])
        return None

    @property
    def mean_steps(self) -> float | None:
        """The mean number of steps over seeds, or None where a seed did not reach the target."""
        counts = [count for count in self.steps.values() if count is not None]
        return mean(counts) if counts and len(counts) == len(self.steps) else None


def reached(curve: Curve, target: float) -> float | None:
    """Return the first step at which a curve is at or below the target, or None.

    Between two measurements the logarithm of the distance is taken as linear in the step. A curve that starts at or
    below the target reached it by its first measurement, and no earlier step is claimed.

    >>> reached([(100, 40.0), (200, 10.0)], 20.0)
    150.0
    """
    before: tuple[int, float] | None = None
    for step, value in curve:
        if value <= target:
            if before is None or value <= 0 or target <= 0:
                return float(step)
            share = math.log(before[1] / target) / math.log(before[1] / value)
            return before[0] + share * (step - before[0])
        before = (step, value)
    return None


def speedup(reference: Mapping[int, Curve], arm: Mapping[int, Curve]) -> Speedup:
    """Return how much sooner an arm reaches the reference's final distance, seed by seed.

    The rule is the same for both: the reference's own count is the first step at which it reaches its final distance,
    which is earlier than its last step where its curve is flat or noisy. Where either was there at its first
    evaluation, nothing is known but that.

    Args:
        reference: seed -> curve, of independent noise say.
        arm: seed -> curve, with the same seeds.

    Raises:
        ValueError: the seeds differ or there are none.
    """
    if not reference or set(reference) != set(arm):
        raise ValueError(f"speed-up needs the same seeds in both arms; there are {sorted(reference)} and {sorted(arm)}")
    target = {seed: curve[-1][1] for seed, curve in reference.items()}
    own = {seed: reached(curve, target[seed]) or float(curve[-1][0]) for seed, curve in reference.items()}
    steps = {seed: reached(curve, target[seed]) for seed, curve in arm.items()}
    bounds = ({(seed, seed): arrival(curve, target[seed]) for seed, curve in each.items()} for each in (reference, arm))
    return Speedup(target, steps, own, effort(*bounds))


@dataclass(frozen=True)
class Effort:
    """What both arms needed, in steps or in seconds.

    Each is a pair of bounds, equal where every arrival was seen: (low, inf) where a seed did not arrive, (0, high)
    where one was there at its first evaluation. ``ratio`` bounds the geometric mean over pairs of reference over arm:
    above 1 the arm is sooner. Its 95 % intervals, Student's t and percentile bootstrap of the logarithms, are None
    where the ratio is a bound or has too few seeds.
    """

    reference: Interval
    arm: Interval
    ratio: Interval
    t: Interval | None
    bootstrap: Interval | None
    by_pair: Mapping[Pair, Interval]


def arrival(curve: Curve, target: float) -> Interval:
    """Return bounds of the step at which a curve is first at or below a target.

    Both are the interpolated step where two evaluations enclose it; (0, first step) where the first evaluation is there
    already, (last step, inf) where none is.

    >>> arrival([(100, 40.0), (200, 10.0)], 20.0), arrival([(100, 40.0)], 50.0), arrival([(100, 40.0)], 30.0)
    ((150.0, 150.0), (0.0, 100.0), (100.0, inf))
    """
    step = reached(curve, target)
    if step is None:
        return float(curve[-1][0]), math.inf
    return (0.0, step) if curve[0][1] <= target else (step, step)


def effort(reference: Mapping[Pair, Interval], arm: Mapping[Pair, Interval]) -> Effort:
    """Return two arms' efforts and their ratio. A seed that did not arrive makes it a bound; it is never left out.

    Args:
        reference: pair -> bounds of what the reference needed.
        arm: the same pairs -> bounds of what the arm needed.

    >>> effort({(0, 0): (90.0, 90.0)}, {(0, 0): (30.0, 30.0)}).ratio
    (3.0, 3.0)
    >>> effort({(0, 0): (90.0, 90.0)}, {(0, 0): (100.0, math.inf)}).ratio
    (0.0, 0.9)
    """
    logs = {pair: (_log(reference[pair][0], arm[pair][1]), _log(reference[pair][1], arm[pair][0])) for pair in arm}
    low, high = (mean(bounds) for bounds in zip(*logs.values(), strict=True))
    t = bootstrap = None
    if low == high:
        values = table_of({pair: bounds[0] for pair, bounds in logs.items()})
        t, bootstrap = t_interval(values), bootstrap_interval(values)
    own, its = ((mean(a for a, _ in each.values()), mean(b for _, b in each.values())) for each in (reference, arm))
    by_pair = {pair: (_exp(a), _exp(b)) for pair, (a, b) in logs.items()}
    t, bootstrap = (None if each is None else (_exp(each[0]), _exp(each[1])) for each in (t, bootstrap))
    return Effort(own, its, (_exp(low), _exp(high)), t, bootstrap, by_pair)


def table_of(values: Mapping[Pair, float]) -> Values:
    """Return the values of paired seeds as (n,), or of every seed with every seed as (n, m)."""
    if all(a == b for a, b in values):
        return np.array(list(values.values()))
    first, second = (list(dict.fromkeys(seeds)) for seeds in zip(*values, strict=True))
    return np.array([[values[a, b] for b in second] for a in first])


def _log(first: float, second: float) -> float:
    """Return log(first / second): minus infinity of 0 over anything or of anything over infinity, infinity over 0."""
    if first <= 0 or math.isinf(second):
        return -math.inf
    return math.inf if second <= 0 else math.log(first / second)


def _exp(value: float) -> float:
    return math.inf if value > 700 else round(math.exp(value), 12)
