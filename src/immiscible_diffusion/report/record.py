"""What is kept of an experiment: one JSON that every table, figure and page can be made from without the runs."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from immiscible_diffusion.files import read_index, read_json
from immiscible_diffusion.report.compare import Comparison
from immiscible_diffusion.report.measures import rises
from immiscible_diffusion.report.read_runs import Arm, Measurements, read_arms
from immiscible_diffusion.report.sentences import measured_once
from immiscible_diffusion.report.speedup import Speedup, mean_bounds
from immiscible_diffusion.report.uncertainty import spread
from immiscible_diffusion.runs.folder import INSTRUMENT, is_finished

__all__ = ["FORMAT", "read_record", "record", "speedup_values"]

FORMAT = 2
"""Number of the form of ``summary.json``. Records without it have no curves, no pace and one configuration."""
_REFERENCE = "independent"


def record(folder: Path) -> dict[str, Any]:
    """Return all numbers of the experiment whose runs lie in a folder; unfinished runs are named and left out.

    ``configurations`` holds each arm's resolved configuration; the runs of an arm differ in ``train.seed`` alone.
    ``rising`` are the metrics of which larger values are better. ``instrument`` holds what real images score in place
    of samples; it is empty for runs of earlier versions.
    ``curves`` has a row for each arm, start, number of sampling steps and metric, ``by_seed`` of them is
    [[training step, value], ...]. ``speedups`` and ``finals`` compare each with independent noise that is like it in
    everything else that varies; there are no speed-ups at sampling steps that were measured once, at the end of
    training.

    Raises:
        ValueError: there is no index, no finished run, or a file that cannot be read.
    """
    index, pairs = read_index(folder), read_json(folder / "pairs.json", _PAIRS)
    if lacking := sorted({run["arm"] for run in index["runs"]} - set(pairs)):
        raise ValueError(f"{folder / 'pairs.json'} lacks {lacking[0]}; `immiscible train` writes it again at its start")
    unfinished = [run["folder"] for run in index["runs"] if not is_finished(folder / run["folder"])]
    if len(unfinished) == len(index["runs"]):
        raise ValueError(f"{folder} holds no finished run; run `immiscible train {index['experiment']}` first")
    measuring = folder / "instrument.json"
    arms, _ = read_arms([folder])
    groups = {arm.name: _group(arm) for arm in arms}
    measured = [series for arm in arms for series in arm.measured]
    metrics = list(dict.fromkeys(metric for series in measured for metric in series.curves))
    if not metrics:
        raise ValueError(f"no run in {folder} holds a measurement; `immiscible train` again measures them")
    curves: list[dict[str, Any]] = [
        {
            "label": series.label,
            "arm": series.arm,
            "start": series.start,
            "group": groups[series.arm],
            "sampling_steps": series.sampling_steps,
            "metric": metric,
            "by_seed": {str(seed): [list(point) for point in curve] for seed, curve in by_seed.items()},
        }
        for series in measured
        for metric, by_seed in series.curves.items()
    ]
    followed = {(row["sampling_steps"], row["metric"]) for row in curves if not measured_once([row])}
    labels = list(dict.fromkeys(series.label for series in measured))
    ordered = sorted(measured, key=lambda series: (labels.index(series.label), series.sampling_steps))
    references = {arm.name: _reference(arm, arms) for arm in arms}
    rows = [
        (series, _against(series, references[series.arm], measured, metric), metric)
        for metric in metrics
        for series in ordered
    ]
    return {
        "format": FORMAT,
        "reaches": "best",
        "experiment": index["experiment"],
        **{key: str(index.get(key, "")) for key in ("title", "source", "question")},
        "runs": [run for run in index["runs"] if run["folder"] not in unfinished],
        "unfinished": unfinished,
        "metrics": metrics,
        "rising": [metric for metric in metrics if metric in measured[0].rising],
        "configurations": {arm.name: arm.first.config for arm in arms},
        "environment": arms[0].first.environment,
        "pairs": pairs,
        "instrument": read_json(measuring, INSTRUMENT) if measuring.exists() else [],
        "pace": {arm.name: None if arm.pace is None else asdict(arm.pace) for arm in arms},
        "curves": curves,
        "speedups": [
            _speedup(comparison, groups[series.arm])
            for series, comparison, metric in rows
            if comparison is not None and (series.sampling_steps, metric) in followed
        ],
        "finals": [_final(series, comparison, metric) for series, comparison, metric in rows],
    }


_PAIRS = {"*": dict.fromkeys(("distance_reduction_percent", "noise_square", "milliseconds"), float)}
"""The form of ``pairs.json``."""


def read_record(path: Path) -> dict[str, Any]:
    """Return a record, with what earlier ones lack: rising metrics, and in the first form bounds and reference's mean.

    Raises:
        ValueError: it cannot be read.
    """
    numbers: dict[str, Any] = read_json(path, {"speedups": [dict], "finals": [dict]})
    numbers.setdefault("reaches", "final")
    numbers.setdefault("instrument", [])
    if "rising" not in numbers:
        configuration = numbers.get("configuration") or next(iter(numbers["configurations"].values()))
        metrics = dict.fromkeys(row["metric"] for row in numbers["finals"])
        numbers["rising"] = [metric for metric in metrics if rises(metric, configuration)]
    if numbers.get("format") == FORMAT:
        return numbers
    for row in numbers["speedups"]:
        exact = None if row["at_first"] else row["ratio"]
        row |= {"bounds": [row["ratio"] or 0.0, exact], "ratio": exact, "reference_at_first": False}
    for row in numbers["finals"]:
        if row.get("difference") is not None:
            row["reference_mean"] = row["mean"] - row["difference"]
    return numbers


def speedup_values(gain: Speedup) -> dict[str, Any]:
    """Return a speed-up of paired seeds as flat values; ``bounds`` of the ratio, (0, None) where nothing is known."""
    low, high = gain.interval or (None, None)
    (first, last), (earliest, latest) = mean_bounds(gain.arm), mean_bounds(gain.reference)
    return {
        "reference_steps": latest,
        "reference_at_first": earliest != latest,
        "steps": _finite(last),
        "at_first": first != last and math.isfinite(last),
        "seeds": len(gain.arm),
        "seeds_reached": gain.arrived,
        "ratio": gain.ratio,
        "low": low,
        "high": _finite(high),
        "bounds": [_finite(bound) for bound in gain.bounds],
    }


def _speedup(comparison: Comparison, group: str) -> dict[str, Any]:
    """Return steps to the best distance that the reference had, and their ratio; in seconds at each arm's own pace."""
    steps, seconds = comparison.speedup("best"), comparison.seconds("best")
    return {
        "arm": comparison.arm.label,
        "reference": comparison.reference.label,
        "group": group,
        "sampling_steps": comparison.arm.sampling_steps,
        "metric": comparison.metric,
        "target": comparison.target("best"),
        **speedup_values(steps),
        "seconds_ratio": None if seconds is None else seconds.ratio,
        "by_seed": {str(seed): _finite(high) for (_, seed), (_, high) in steps.arm.items()},
        "reference_by_seed": {str(seed): high for (seed, _), (_, high) in steps.reference.items()},
    }


def _final(measured: Measurements, comparison: Comparison | None, metric: str) -> dict[str, Any]:
    """Return the last distance over seeds; its difference from the reference is over the seeds that both have."""
    values = measured.final(metric)
    middle, deviation = spread(values.values())
    row = {"arm": measured.label, "sampling_steps": measured.sampling_steps, "metric": metric}
    row |= {"mean": middle, "sd": deviation}
    if comparison is not None:
        last = comparison.difference
        row |= {"difference": last.mean, "reference_mean": last.reference[0], "p": last.p_t}
        row |= {"reference": comparison.reference.label}
    return {**row, "by_seed": {str(seed): value for seed, value in values.items()}}


def _reference(arm: Arm, arms: Sequence[Arm]) -> str:
    """Return the name of the arm of independent noise that is like this one in everything else that varies."""
    point = {**arm.point, "coupling": _REFERENCE}
    return next((other.name for other in arms if other.point and other.point == point), _REFERENCE)


def _group(arm: Arm) -> str:
    """Return the options that an arm shares with its reference, in words; empty where the coupling alone varies."""
    rest = {key: label for key, label in arm.point.items() if key != "coupling"}
    return ", ".join(f"{key.partition(',')[0].rpartition('.')[2]} {label}" for key, label in rest.items())


def _against(measured: Measurements, name: str, others: Sequence[Measurements], metric: str) -> Comparison | None:
    """Return the comparison over common seeds with what has this label; None where there are none, and of itself."""
    key = (name, measured.sampling_steps)
    reference = next((other for other in others if (other.label, other.sampling_steps) == key), None)
    if reference is None or reference is measured:
        return None
    common = sorted(set(measured.curves[metric]) & set(reference.curves[metric]))
    return Comparison(reference, measured, metric, [(seed, seed) for seed in common]) if common else None


def _finite(value: float | None) -> float | None:
    return None if value is None or math.isinf(value) else value
