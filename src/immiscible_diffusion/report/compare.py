"""What an arm needs, in steps and in seconds, to reach what another reached, and whether their ends differ."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any, Literal, TypeAlias

import numpy as np

from immiscible_diffusion.registry import lookup, names
from immiscible_diffusion.report.read_runs import Arm, differences, refuse_unlike
from immiscible_diffusion.report.speedup import Curve, Effort, Pair, arrival, effort, table_of
from immiscible_diffusion.report.uncertainty import Interval, permutation_p, t_interval, t_test_p

__all__ = ["Comparison", "Cost", "Final", "Reach", "Target", "compare", "curves_of"]

Target: TypeAlias = Literal["final", "best"]
"""The reference's value to be reached, seed by seed: that of its last evaluation, or the best of all of them."""
_NO_METRIC = {"step", "sampling_steps", "start", "samples", "sample_seed", "wall_seconds"}


@dataclass(frozen=True)
class Reach:
    """One arm from one start at one number of sampling steps, on its way to one target of the reference.

    ``value`` is the target's mean over seeds; ``count`` of the ``pairs`` arrived, each at its own pair's target.
    ``seconds`` is None where there are none, or the machines differ.
    """

    label: str
    sampling_steps: int
    target: Target
    value: float
    count: int
    pairs: Sequence[Pair]
    steps: Effort
    seconds: Effort | None


@dataclass(frozen=True)
class Final:
    """The last value of one arm against the reference's: (mean, s.d.) of each, arm minus reference, two tests of it."""

    label: str
    sampling_steps: int
    reference: tuple[float, float]
    arm: tuple[float, float]
    pairs: Sequence[Pair]
    difference: float
    t: Interval | None
    p_t: float | None
    p_permutation: float


@dataclass(frozen=True)
class Cost:
    """What an arm's steps took over its runs: milliseconds a step, and those of them that went to the coupling."""

    label: str
    runs: int
    step_ms: float
    coupling_ms: float


@dataclass(frozen=True)
class Comparison:
    """The reference against every other arm, and what a reader has to know to judge it."""

    reference: str
    metric: str
    reaches: Sequence[Reach]
    finals: Sequence[Final]
    costs: Sequence[Cost]
    notes: Sequence[str]

    def rows(self) -> list[dict[str, Any]]:
        """Return everything as flat values: a row an arm and start, number of sampling steps, target and unit.

        ``ratio_by_seeds`` is JSON, "seed of the reference/seed of the arm" -> ratio, or its bounds with null for none.
        """
        finals = {(each.label, each.sampling_steps): each for each in self.finals}
        rows = []
        for reach in self.reaches:
            about: dict[str, Any] = {"reference": self.reference, "arm": reach.label, "metric": self.metric}
            about |= {"sampling_steps": reach.sampling_steps, "target": reach.target, "target_value": reach.value}
            about |= {"reached": reach.count, "pairs": len(reach.pairs), "paired": all(a == b for a, b in reach.pairs)}
            for unit, found in (("steps", reach.steps), ("seconds", reach.seconds)):
                if found is not None:
                    last = _flat_final(finals[reach.label, reach.sampling_steps])
                    rows.append({**about, "unit": unit, **_flat_effort(found), **last})
        return rows


def _flat_effort(found: Effort) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for name in ("reference", "arm", "ratio", "t", "bootstrap"):
        low, high = getattr(found, name) or (None, None)
        row |= {f"{name}_low": low, f"{name}_high": high}
    by_seeds = {f"{a}/{b}": [x if math.isfinite(x) else None for x in each] for (a, b), each in found.by_pair.items()}
    told = {pair: low if low == high else [low, high] for pair, (low, high) in by_seeds.items()}
    return {**row, "ratio_by_seeds": json.dumps(told)}


def _flat_final(found: Final) -> dict[str, Any]:
    row: dict[str, Any] = {"reference_last": found.reference[0], "reference_last_sd": found.reference[1]}
    row |= {"arm_last": found.arm[0], "arm_last_sd": found.arm[1], "difference": found.difference}
    low, high = found.t or (None, None)
    row |= {"difference_t_low": low, "difference_t_high": high}
    return {**row, "p_t": found.p_t, "p_permutation": found.p_permutation}


def curves_of(arm: Arm, metric: str, sampling_steps: int, start: str) -> dict[int, Curve]:
    """Return seed -> curve in which smaller is better: where more is better, of the reciprocal.

    A ratio of values, and so what is interpolated between two evaluations, is the same for both but for its sign.
    """
    curves = arm.curves(metric, sampling_steps, start)
    if not _larger_is_better(metric):
        return curves
    return {seed: [(step, 1 / max(value, 1e-12)) for step, value in curve] for seed, curve in curves.items()}


def compare(reference: Arm, arms: Sequence[Arm], metric: str) -> Comparison:
    """Return what every arm needs to reach the reference's final and best value, and how their final values differ.

    The reference is taken from its own (matched) start; each start of an arm is a row. Seeds that both arms have are
    pairs, for they saw the same batches, noise and times; with fewer than two in common, every seed of one is set
    against every seed of the other. Seconds are withheld where the machines differ.

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
    reaches, finals = list[Reach](), list[Final]()
    for count in sorted({count for count, _ in reference.series}):
        base = reference.curves(metric, count, "matched")
        for arm, start in [(each, start) for each in arms for steps, start in each.series if steps == count]:
            curves = arm.curves(metric, count, start)
            if not (base and curves) or (arm is reference and start == "matched"):
                continue
            label = arm.name if start == "matched" else f"{arm.name}, plain start"
            pairs = _pairs(base, curves)
            finals.append(_final(label, count, pairs, base, curves))
            sides = [(each, curves_of(each, metric, count, s)) for each, s in ((reference, "matched"), (arm, start))]
            for target in ("final", "best"):
                reaches.append(_reach(label, count, target, pairs, *sides, inverse=_larger_is_better(metric)))
    if not finals and not others:
        raise ValueError(f"there is one arm, {reference.name}; give runs of another as well")
    if not finals:
        known = sorted(
            {key for run in reference.runs.values() for line in run.evaluations for key in line} - _NO_METRIC
        )
        raise ValueError(f"nothing to compare by {metric!r} at equal sampling steps; {reference.name} has {known}")
    costs = [cost for arm in arms if (cost := _cost(arm)) is not None]
    notes = [note for arm in others for note in _notes(arm, reference)]
    return Comparison(reference.name, metric, reaches, finals, costs, notes)


def _pairs(base: Mapping[int, Curve], curves: Mapping[int, Curve]) -> list[Pair]:
    both = sorted(set(base) & set(curves))
    if len(both) > 1 or set(base) == set(curves):
        return [(seed, seed) for seed in both]
    return [(a, b) for a in base for b in curves]


def _reach(
    label: str,
    sampling_steps: int,
    target: Target,
    pairs: Sequence[Pair],
    reference: tuple[Arm, Mapping[int, Curve]],
    arm: tuple[Arm, Mapping[int, Curve]],
    *,
    inverse: bool,
) -> Reach:
    goals = {a: min(v for _, v in reference[1][a]) if target == "best" else reference[1][a][-1][1] for a, _ in pairs}
    own = {(a, b): arrival(reference[1][a], goals[a]) for a, b in pairs}
    its = {(a, b): arrival(arm[1][b], goals[a]) for a, b in pairs}
    seconds = None
    if len(reference[0].hardware | arm[0].hardware) == 1:
        own_seconds = {pair: _seconds(reference[0], pair[0], steps) for pair, steps in own.items()}
        its_seconds = {pair: _seconds(arm[0], pair[1], steps) for pair, steps in its.items()}
        known = [{pair: each for pair, each in side.items() if each is not None} for side in (own_seconds, its_seconds)]
        seconds = effort(*known) if len(known[0]) == len(known[1]) == len(pairs) else None
    value = mean(1 / goal if inverse else goal for goal in goals.values())
    arrived = sum(math.isfinite(high) for _, high in its.values())
    return Reach(label, sampling_steps, target, value, arrived, pairs, effort(own, its), seconds)


def _seconds(arm: Arm, seed: int, steps: Interval) -> Interval | None:
    low, high = (step if math.isinf(step) else arm.runs[seed].seconds(step) for step in steps)
    return None if low is None or high is None else (low, high)


def _final(
    label: str, count: int, pairs: Sequence[Pair], base: Mapping[int, Curve], curves: Mapping[int, Curve]
) -> Final:
    own = {a: base[a][-1][1] for a, _ in pairs}
    its = {b: curves[b][-1][1] for _, b in pairs}
    differ = table_of({(a, b): its[b] - own[a] for a, b in pairs})
    values = [np.array(list(each.values())) for each in (its, own)]
    return Final(
        label,
        count,
        _spread(own),
        _spread(its),
        pairs,
        float(differ.mean()),
        t_interval(differ),
        t_test_p(differ),
        permutation_p(*values, paired=differ.ndim == 1),
    )


def _spread(values: Mapping[int, float]) -> tuple[float, float]:
    return mean(values.values()), stdev(values.values()) if len(values) > 1 else 0.0


def _cost(arm: Arm) -> Cost | None:
    paces = [pace for run in arm.runs.values() if (pace := run.pace()) is not None]
    return Cost(arm.name, len(paces), mean(a for a, _ in paces), mean(b for _, b in paces)) if paces else None


def _notes(arm: Arm, reference: Arm) -> Iterator[str]:
    """Yield what a reader has to know of one arm beside its numbers."""
    if told := differences(arm, reference):
        said = "; ".join(f"{key} is {text}" for key, text in told.items())
        yield f"{arm.name} differs from {reference.name} in more than the coupling: {said}"
    if len(arm.hardware | reference.hardware) > 1:
        yield f"no seconds for {arm.name}: its machine or threads are not those of {reference.name}"
    if len(arm.software | reference.software) > 1:
        yield f"{arm.name} and {reference.name} were not all made by one commit and its package versions"
    if missing := sorted({count for count, _ in arm.series} ^ {count for count, _ in reference.series}):
        yield f"{arm.name} and {reference.name} were not both measured at {missing} sampling steps"
    both, alone = set(arm.runs) & set(reference.runs), set(arm.runs) ^ set(reference.runs)
    if alone and len(both) > 1:
        yield f"{arm.name}: seeds {sorted(alone)} have no partner in {reference.name}, or the other way; left out"
    elif alone:
        yield f"{arm.name} and {reference.name} share fewer than two seeds: each seed is set against each, unpaired"


def _larger_is_better(metric: str) -> bool:
    """Return whether a metric of this registered name rises with quality; one that does not say falls."""
    return metric in names("metric") and getattr(lookup("metric", metric), "better", "lower") == "higher"
