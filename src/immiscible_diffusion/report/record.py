"""What is kept of an experiment: one JSON that every table, figure and page can be made from without the runs."""

import math
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from statistics import mean, median
from typing import Any

from immiscible_diffusion.files import read_json, read_lines
from immiscible_diffusion.report.speedup import Speedup
from immiscible_diffusion.report.summary import Summary, paired_p, spread

__all__ = [
    "FORMAT",
    "finals",
    "pace",
    "read_record",
    "record",
    "speedup_values",
    "speedups",
]

FORMAT = 2
"""Number of the form of ``summary.json``. Records without it have no curves, no pace and one configuration."""


def record(summary: Summary) -> dict[str, Any]:
    """Return everything that is said of an experiment, with where it comes from.

    ``configurations`` holds each arm's resolved configuration; the runs of an arm differ in ``train.seed`` alone.
    """
    runs = [run for run in summary.index["runs"] if run["folder"] not in summary.unfinished]
    first = {run["arm"]: summary.folder / run["folder"] for run in reversed(runs)}
    arms = list(dict.fromkeys(run["arm"] for run in runs))
    return {
        "format": FORMAT,
        **{key: summary.index[key] for key in ("experiment", "title", "source", "question")},
        "runs": runs,
        "unfinished": summary.unfinished,
        "metrics": summary.metrics,
        "configurations": {arm: read_json(first[arm] / "config.json") for arm in arms},
        "environment": read_json(first[arms[0]] / "environment.json"),
        "pairs": summary.pairs,
        "pace": {arm: pace(summary, arm) for arm in arms},
        "curves": curves(summary),
        "speedups": [row for metric in summary.metrics for row in speedups(summary, metric)],
        "finals": [row for metric in summary.metrics for row in finals(summary, metric)],
    }


def read_record(path: Path) -> dict[str, Any]:
    """Return a record, with what those of the first form lack: the bounds of a ratio, and the reference's mean.

    Raises:
        ValueError: it cannot be read.
    """
    numbers: dict[str, Any] = read_json(path)
    if numbers.get("format") == FORMAT:
        return numbers
    for row in numbers["speedups"]:
        exact = None if row["at_first"] else row["ratio"]
        row |= {"bounds": [row["ratio"] or 0.0, exact], "ratio": exact, "reference_at_first": False}
    for row in numbers["finals"]:
        if row.get("difference") is not None:
            row["reference_mean"] = row["mean"] - row["difference"]
    return numbers


def curves(summary: Summary) -> list[dict[str, Any]]:
    """Return every measured curve: arm, start, sampling steps, metric -> seed -> [[training step, value], ...]."""
    return [
        {
            "label": each.label,
            "arm": each.arm,
            "start": each.start,
            "group": summary.group(each.arm),
            "sampling_steps": each.sampling_steps,
            "metric": metric,
            "by_seed": {str(seed): [list(point) for point in curve] for seed, curve in by_seed.items()},
        }
        for each in summary.measured
        for metric, by_seed in each.curves.items()
    ]


def pace(summary: Summary, arm: str) -> dict[str, float] | None:
    """Return milliseconds a training step and the coupling's share of them: medians over an arm's logged intervals.

    A mean would count what other programs took of the machine meanwhile.
    """
    steps, couplings = list[float](), list[float]()
    for run in summary.index["runs"]:
        if run["arm"] == arm and run["folder"] not in summary.unfinished:
            lines = read_lines(summary.folder / run["folder"] / "log.jsonl")
            start = dict.fromkeys(("step", "step_seconds", "coupling_seconds", "waiting_seconds"), 0.0)
            for before, after in pairwise([start, *lines]):
                count = after["step"] - before["step"]
                spent = {key: (after[key] - before[key]) / count for key in start if key != "step"}
                steps.append(spent["step_seconds"])
                # A prefetched pairing costs what the step waited for it; that is never less than it otherwise.
                couplings.append(min(spent["coupling_seconds"], spent["waiting_seconds"]))
    if not steps:
        return None
    step, coupling = median(steps), median(couplings)
    return {"step_ms": round(1000 * step, 3), "coupling_percent": round(100 * coupling / step, 3)}


def speedups(summary: Summary, metric: str) -> list[dict[str, Any]]:
    """Return a row an arm and number of sampling steps: steps to its reference's final distance, and their ratio.

    ``seconds_ratio`` is the ratio of training seconds: steps at each arm's own pace.
    """
    rows = []
    for label in summary.labels:
        for count in summary.sampling_steps:
            found, both = summary.speedup(label, count, metric), summary.against(label, count)
            if found is None or both is None:
                continue
            own, other = (pace(summary, each.arm) for each in both)
            faster = None if own is None or other is None else other["step_ms"] / own["step_ms"]
            rows.append(
                {
                    "arm": label,
                    "reference": both[1].label,
                    "group": summary.group(both[0].arm),
                    "sampling_steps": count,
                    "metric": metric,
                    "target": mean(found.target.values()),
                    **speedup_values(found),
                    "seconds_ratio": None if found.ratio is None or faster is None else found.ratio * faster,
                    "by_seed": {str(seed): steps for seed, steps in found.steps.items()},
                    "reference_by_seed": {str(seed): steps for seed, steps in found.reference_steps.items()},
                }
            )
    return rows


def speedup_values(found: Speedup) -> dict[str, Any]:
    """Return a speed-up as flat values; ``bounds`` of the ratio, (0, None) where nothing is known of it."""
    low, high = found.interval or (None, None)
    earliest, latest = found.effort.reference
    return {
        "reference_steps": mean(found.reference_steps.values()),
        "reference_at_first": earliest != latest,
        "steps": found.mean_steps,
        "at_first": found.mean_steps is not None and found.effort.arm[0] != found.effort.arm[1],
        "seeds": len(found.steps),
        "seeds_reached": sum(steps is not None for steps in found.steps.values()),
        "ratio": found.ratio,
        "low": low,
        "high": _finite(high),
        "bounds": [_finite(bound) for bound in found.effort.ratio],
    }


def finals(summary: Summary, metric: str) -> list[dict[str, Any]]:
    """Return a row an arm and number of sampling steps: the last distance over seeds, against its reference."""
    rows = []
    for label in summary.labels:
        for count in summary.sampling_steps:
            measured, both = summary.find(label, count), summary.against(label, count)
            if measured is None:
                continue
            values = measured.final(metric)
            middle, deviation = spread(list(values.values()))
            row = {"arm": label, "sampling_steps": count, "metric": metric, "mean": middle, "sd": deviation}
            if both is not None and set(values) & set(both[1].final(metric)):
                row |= _difference(values, both[1].final(metric)) | {"reference": both[1].label}
            rows.append({**row, "by_seed": {str(seed): value for seed, value in values.items()}})
    return rows


def _finite(value: float | None) -> float | None:
    return None if value is None or math.isinf(value) else value


def _difference(values: Mapping[int, float], base: Mapping[int, float]) -> dict[str, float | None]:
    """Return the mean difference over common seeds, the reference's mean over the same, and the p value."""
    both = sorted(set(values) & set(base))
    difference = mean(values[seed] - base[seed] for seed in both)
    reference = mean(base[seed] for seed in both)
    return {"difference": difference, "reference_mean": reference, "p": paired_p(dict(values), dict(base))}
