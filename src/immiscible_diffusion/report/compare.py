"""An arm against its reference by one metric, and the runs of any folders compared so."""

import itertools
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from immiscible_diffusion.report.read_runs import Arm, Measurements, differences, refuse_unlike
from immiscible_diffusion.report.speedup import (
    Difference,
    Pair,
    Speedup,
    Target,
    difference,
    falling,
    mean_bounds,
    pairs_of,
    speedup,
)
from immiscible_diffusion.report.uncertainty import Interval

__all__ = ["Comparison", "compare", "flat_rows", "notes"]


@dataclass(frozen=True)
class Comparison:
    """One arm from one start at one number of sampling steps against its reference, by the same metric."""

    reference: Measurements
    arm: Measurements
    metric: str
    pairs: Sequence[Pair]

    @property
    def rises(self) -> bool:
        """Whether larger values are better."""
        return self.metric in self.reference.rising

    def speedup(self, target: Target = "final") -> Speedup:
        """Return how much sooner, in training steps, the arm reaches the reference's distance."""
        first, second = (measured.curves[self.metric] for measured in (self.reference, self.arm))
        if self.rises:
            first, second = falling(first), falling(second)
        return speedup(first, second, target=target, pairs=self.pairs)

    def seconds(self, target: Target = "final") -> Speedup | None:
        """Return the same in seconds of training at each arm's pace, None where hardware differs or has no log."""
        first, second = self.reference.pace, self.arm.pace
        if first is None or second is None or len(self.reference.hardware | self.arm.hardware) > 1:
            return None
        return self.speedup(target).scaled(first.step_ms / 1000, second.step_ms / 1000)

    def target(self, target: Target = "final") -> float:
        """Return the value of the reference that is to be reached, the mean over seeds."""
        goals = self.speedup(target).target.values()
        return mean(1 / goal if self.rises else goal for goal in goals)

    @property
    def difference(self) -> Difference:
        """How the final values differ."""
        return difference(self.reference.final(self.metric), self.arm.final(self.metric), self.pairs)


def compare(reference: Arm, arms: Sequence[Arm], metric: str) -> list[Comparison]:
    """Return every arm against one reference, by rising number of sampling steps.

    The reference is taken from its own (matched) start; each start of an arm is a row. Seeds that both arms have are
    pairs; with fewer than two in common, every seed of one is compared with every seed of the other.

    Args:
        reference: the arm to be reached.
        arms: all arms; the reference among them is compared from its other starts only.
        metric: a key of the evaluations, ``frechet`` say.

    Raises:
        ValueError: an arm was measured in another way, or there is nothing to compare by this metric.
    """
    others = [arm for arm in arms if arm is not reference]
    for arm in others:
        refuse_unlike(arm, reference, metric)
    rows = [
        Comparison(base, measured, metric, pairs_of(base.curves[metric], measured.curves[metric]))
        for base in reference.measured
        if base.start == "matched" and metric in base.curves
        for arm in arms
        for measured in arm.measured
        if measured.sampling_steps == base.sampling_steps and metric in measured.curves and measured is not base
    ]
    if not rows and not others:
        raise ValueError(f"there is one arm, {reference.name}; give runs of another as well")
    if not rows:
        known = sorted({key for measured in reference.measured for key in measured.curves})
        raise ValueError(f"nothing to compare by {metric!r} at equal sampling steps; {reference.name} has {known}")
    return rows


def notes(reference: Arm, arms: Sequence[Arm]) -> Iterator[str]:
    """Yield notes on each arm for the reader of its numbers."""
    for arm in (other for other in arms if other is not reference):
        names = f"{arm.name} and {reference.name}"
        if differing := differences(arm, reference):
            said = "; ".join(f"{key} is {text}" for key, text in differing.items())
            yield f"{arm.name} differs from {reference.name} in more than the coupling: {said}"
        if len(arm.hardware | reference.hardware) > 1:
            yield f"no seconds for {arm.name}: its machine or number of threads differs from {reference.name}"
        if len(arm.software | reference.software) > 1:
            yield f"{names} were not all made by one commit and its package versions"
        counts, base_counts = ({measured.sampling_steps for measured in side.measured} for side in (arm, reference))
        if missing := sorted(counts ^ base_counts):
            yield f"{names} were not both measured at {missing} sampling steps"
        both, alone = set(arm.runs) & set(reference.runs), set(arm.runs) ^ set(reference.runs)
        if alone and len(both) > 1:
            yield f"{arm.name}: seeds {sorted(alone)} have no partner in {reference.name}, or the other way; left out"
        elif alone:
            yield f"{names} share fewer than two seeds: each seed is set against each, unpaired"


def flat_rows(comparisons: Sequence[Comparison]) -> Iterator[dict[str, Any]]:
    """Yield everything as flat values: a row an arm and start, number of sampling steps, target and unit.

    ``ratio_by_seeds`` is JSON, "seed of the reference/seed of the arm" -> ratio, or its bounds with null for none.
    """
    targets: tuple[Target, ...] = ("final", "best")
    for comparison, target in itertools.product(comparisons, targets):
        about: dict[str, Any] = {
            "reference": comparison.reference.arm,
            "arm": comparison.arm.label,
            "metric": comparison.metric,
        }
        about |= {
            "sampling_steps": comparison.arm.sampling_steps,
            "target": target,
            "target_value": comparison.target(target),
        }
        last = comparison.difference
        ends: dict[str, Any] = {"reference_last": last.reference[0], "reference_last_sd": last.reference[1]}
        ends |= {"arm_last": last.arm[0], "arm_last_sd": last.arm[1], "difference": last.mean}
        ends |= {**_bounds("difference_t", last.interval), "p_t": last.p_t, "p_permutation": last.p_permutation}
        for unit, gain in (("steps", comparison.speedup(target)), ("seconds", comparison.seconds(target))):
            if gain is not None:
                row: dict[str, Any] = {
                    "reached": gain.arrived,
                    "pairs": len(comparison.pairs),
                    "paired": all(a == b for a, b in comparison.pairs),
                }
                row |= {"unit": unit, **_bounds("reference", mean_bounds(gain.reference))}
                row |= {**_bounds("arm", mean_bounds(gain.arm)), **_bounds("ratio", gain.bounds)}
                row |= {**_bounds("t", gain.interval), **_bounds("bootstrap", gain.bootstrap)}
                by_seeds = {f"{a}/{b}": _known(*bounds) for (a, b), bounds in gain.by_pair.items()}
                yield {**about, **row, "ratio_by_seeds": json.dumps(by_seeds), **ends}


def _bounds(name: str, bounds: Interval | None) -> dict[str, Any]:
    low, high = bounds or (None, None)
    return {f"{name}_low": low, f"{name}_high": high}


def _known(low: float, high: float) -> float | list[float | None]:
    return low if low == high else [bound if math.isfinite(bound) else None for bound in (low, high)]
