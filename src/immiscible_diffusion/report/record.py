"""What is kept of an experiment: one JSON that every table, figure and page can be made from without the runs."""

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from immiscible_diffusion.files import read_json
from immiscible_diffusion.report.speedup import Speedup, mean_bounds
from immiscible_diffusion.report.summary import Summary
from immiscible_diffusion.report.uncertainty import spread

__all__ = ["FORMAT", "finals", "pace", "read_record", "record", "speedup_values", "speedups"]

FORMAT = 2
"""Number of the form of ``summary.json``. Records without it have no curves, no pace and one configuration."""


def record(summary: Summary) -> dict[str, Any]:
    """Return all numbers of an experiment, with where they come from.

    ``configurations`` holds each arm's resolved configuration; the runs of an arm differ in ``train.seed`` alone.
    """
    return {
        "format": FORMAT,
        **{key: summary.index[key] for key in ("experiment", "title", "source", "question")},
        "runs": [run for run in summary.index["runs"] if run["folder"] not in summary.unfinished],
        "unfinished": summary.unfinished,
        "metrics": summary.metrics,
        "configurations": {arm.name: arm.first.config for arm in summary.arms},
        "environment": summary.arms[0].first.environment,
        "pairs": summary.pairs,
        "pace": {arm.name: pace(summary, arm.name) for arm in summary.arms},
        "curves": _curves(summary),
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


def pace(summary: Summary, arm: str) -> dict[str, float] | None:
    """Return an arm's ``Pace`` as flat values, None where none of its runs is finished or has a log."""
    found = next((each.pace for each in summary.arms if each.name == arm), None)
    return None if found is None else asdict(found)


def speedups(summary: Summary, metric: str) -> list[dict[str, Any]]:
    """Return a row an arm and number of sampling steps: steps to its reference's final distance, and their ratio.

    ``seconds_ratio`` is the ratio of training seconds: steps at each arm's own pace. No rows without curves.
    """
    rows = []
    for label, count in [] if summary.measured_once else _series(summary):
        comparison = summary.comparison(label, count, metric)
        if comparison is None:
            continue
        found, seconds = comparison.speedup(), comparison.seconds()
        rows.append(
            {
                "arm": label,
                "reference": comparison.reference.label,
                "group": summary.group(comparison.arm.arm),
                "sampling_steps": count,
                "metric": metric,
                "target": comparison.target(),
                **speedup_values(found),
                "seconds_ratio": None if seconds is None else seconds.ratio,
                "by_seed": {str(seed): _finite(high) for (_, seed), (_, high) in found.arm.items()},
                "reference_by_seed": {str(seed): high for (seed, _), (_, high) in found.reference.items()},
            }
        )
    return rows


def speedup_values(found: Speedup) -> dict[str, Any]:
    """Return a speed-up of paired seeds as flat values; ``bounds`` of the ratio, (0, None) where nothing is known."""
    low, high = found.interval or (None, None)
    (first, last), (earliest, latest) = mean_bounds(found.arm), mean_bounds(found.reference)
    return {
        "reference_steps": latest,
        "reference_at_first": earliest != latest,
        "steps": _finite(last),
        "at_first": first != last and math.isfinite(last),
        "seeds": len(found.arm),
        "seeds_reached": found.arrived,
        "ratio": found.ratio,
        "low": low,
        "high": _finite(high),
        "bounds": [_finite(bound) for bound in found.bounds],
    }


def finals(summary: Summary, metric: str) -> list[dict[str, Any]]:
    """Return a row an arm and number of sampling steps: the last distance over seeds, against its reference.

    ``difference`` and ``reference_mean`` are over common seeds; ``p`` is of a paired t-test of at least three of them.
    """
    rows = []
    for label, count in _series(summary):
        measured, comparison = summary.find(label, count), summary.comparison(label, count, metric)
        if measured is None:
            continue
        values = measured.final(metric)
        middle, deviation = spread(values.values())
        row = {"arm": label, "sampling_steps": count, "metric": metric, "mean": middle, "sd": deviation}
        if comparison is not None:
            found = comparison.difference
            row |= {"difference": found.mean, "reference_mean": found.reference[0], "p": found.p_t}
            row |= {"reference": comparison.reference.label}
        rows.append({**row, "by_seed": {str(seed): value for seed, value in values.items()}})
    return rows


def _curves(summary: Summary) -> list[dict[str, Any]]:
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


def _series(summary: Summary) -> list[tuple[str, int]]:
    return [(label, count) for label in summary.labels for count in summary.sampling_steps]


def _finite(value: float | None) -> float | None:
    return None if value is None or math.isinf(value) else value
