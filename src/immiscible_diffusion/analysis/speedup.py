"""How many training steps an arm needs to reach what another reaches."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from scipy.stats import t as student

__all__ = ["Curve", "Speedup", "reached", "speedup"]

Curve = Sequence[tuple[int, float]]
"""(training step, distance) of one run, by rising step; smaller is better."""


@dataclass(frozen=True)
class Speedup:
    """Steps to the reference's final distance, by seed, and the ratio of steps.

    ``ratio`` is the geometric mean over the seeds that reached the target, with its 95 % interval ``low`` to ``high``
    from a t distribution of the logarithms; they are None where a seed did not reach it, which is then a lower bound
    nobody measured.
    """

    target: Mapping[int, float]
    steps: Mapping[int, float | None]
    reference_steps: Mapping[int, float]
    ratio: float | None
    low: float | None
    high: float | None

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
    which is earlier than its last step where its curve is flat or noisy.

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
    logs = [math.log(own[seed] / count) for seed, count in steps.items() if count is not None]
    if len(logs) < len(steps):
        return Speedup(target, steps, own, None, None, None)
    middle = mean(logs)
    if len(logs) < 2:
        return Speedup(target, steps, own, math.exp(middle), None, None)
    half = float(student.ppf(0.975, len(logs) - 1)) * stdev(logs) / math.sqrt(len(logs))
    return Speedup(target, steps, own, math.exp(middle), math.exp(middle - half), math.exp(middle + half))
