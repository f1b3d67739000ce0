"""What is kept of an experiment: one JSON that every table, figure and page can be made from without the runs."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import mean, median
from typing import Any

from immiscible_diffusion.analysis.speedup import Speedup
from immiscible_diffusion.analysis.summary import Summary, counted, paired_p, spread
from immiscible_diffusion.files import read_json
from immiscible_diffusion.runs import read_lines

__all__ = [
    "FORMAT",
    "finals",
    "findings",
    "number",
    "pace",
    "record",
    "speedup_cells",
    "speedup_values",
    "speedups",
]

_SURE = 0.05
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
            if both is not None:
                row |= _difference(values, both[1].final(metric)) | {"reference": both[1].label}
            rows.append({**row, "by_seed": {str(seed): value for seed, value in values.items()}})
    return rows


def findings(rows: Sequence[Mapping[str, Any]], ends: Sequence[Mapping[str, Any]], name: str) -> list[str]:
    """Return what was found, a sentence for each number of sampling steps and group; losses are said as gains are.

    Args:
        rows: ``speedups`` of one metric; empty where it was measured once, at the end of training.
        ends: its ``finals``.
        name: how the metric is written.
    """
    if not rows:
        return _end_findings(ends, name)
    last = {(row["arm"], row["sampling_steps"]): row for row in ends}
    sentences = []
    for key in dict.fromkeys((row.get("group", ""), row["sampling_steps"]) for row in rows):
        same = [row for row in rows if (row.get("group", ""), row["sampling_steps"]) == key]
        shown = [(row["arm"], _sooner(row)) for row in same if _sooner(row)]
        rest = [row["arm"] for row in same if not _sooner(row)]
        ended = [arm for arm in rest if _ended(last.get((arm, key[1]), {}))]
        parts = [f"{arm} {words}" for arm, words in shown]
        parts += [f"{arm} ends {_ended(last[arm, key[1]])}" for arm in ended]
        if missing := [arm for arm in rest if arm not in ended]:
            parts.append(f"no speed-up is shown for {_listed(missing)}")
        count = counted(key[1]) + (f" ({key[0]})" if key[0] else "")
        reaches = f"reaches its final {name} distance, {number(same[0]['target'])}, "
        reaches += "by its first evaluation" if same[0].get("reference_at_first") else f"after {_steps(same[0])}"
        sentences.append(f"At {count} independent noise {reaches}: {'; '.join(parts)}.")
    return sentences


def _end_findings(ends: Sequence[Mapping[str, Any]], name: str) -> list[str]:
    """Return how each arm ends against its reference, a sentence for each reference and number of sampling steps."""
    sentences = []
    for key in dict.fromkeys((row["reference"], row["sampling_steps"]) for row in ends if "reference" in row):
        same = [row for row in ends if (row.get("reference"), row["sampling_steps"]) == key]
        base = same[0]["mean"] - same[0]["difference"]
        sure = [row for row in same if row["p"] is not None and row["p"] < _SURE]
        parts = [f"{row['arm']} {_percent(row)}" for row in sure]
        if rest := [row["arm"] for row in same if row not in sure]:
            parts.append(f"no difference is shown for {_listed(rest)}")
        count = counted(key[1])
        sentences.append(f"At {count} {key[0]} ends at a {name} distance of {number(base)}: {'; '.join(parts)}.")
    return sentences


def _listed(arms: Sequence[str]) -> str:
    *first, last = (arm.replace(", plain start", " (plain start)") for arm in arms)
    return f"{', '.join(first)} and {last}" if first else last


def _percent(row: Mapping[str, Any]) -> str:
    share = 100 * row["difference"] / (row["mean"] - row["difference"])
    return f"{abs(share):.0f} % {'worse' if share > 0 else 'better'} (p = {row['p']:.2g})"


def _ended(row: Mapping[str, Any]) -> str:
    """Return how much better or worse an arm ends than its reference, where a paired t-test says so; else nothing."""
    p = row.get("p")
    return "" if p is None or p >= _SURE else _percent(row)


def _steps(row: Mapping[str, Any]) -> str:
    return f"{row['reference_steps']:.0f} training steps"


def _sooner(row: Mapping[str, Any]) -> str:
    """Return how much sooner or later an arm arrives, where its interval says so or there is one seed; else nothing."""
    low, high = row["low"], row["high"]
    if row["seeds"] == 1 and row["ratio"] is not None:
        return f"after {row['steps']:.0f}, {row['ratio']:.1f} times sooner (one seed)"
    if row["ratio"] is None:
        if low is not None and low > 1:
            return f"by its first evaluation, at least {row['bounds'][0]:.1f} times sooner"
        return f"at most {row['bounds'][1]:.2f} times as soon" if low is not None and (high or 1) < 1 else ""
    if low is not None and (low > 1 or high < 1):
        way = f"{row['ratio']:.1f} times sooner" if low > 1 else f"{row['ratio']:.2f} times as soon"
        return f"after {row['steps']:.0f}, {way} ({low:.2f} to {high:.2f})"
    return ""


def number(value: float) -> str:
    """Return a distance with three digits that mean something.

    >>> [number(each) for each in (1234.5, 63.21, 0.28123, 0.00021)]
    ['1234', '63.2', '0.281', '0.00021']
    """
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def speedup_cells(row: Mapping[str, Any]) -> list[str]:
    """Return a row of ``speedups`` as text: arm, sampling steps, target, reference's steps, steps, ratio, interval.

    Where a seed did not arrive, or one of either arm was there at its first evaluation, the ratio is a bound.
    """
    low, high = row["bounds"]
    reference = f"{'≤ ' * row['reference_at_first']}{row['reference_steps']:.0f}"
    steps = "-" if row["steps"] is None else f"{'≤ ' * row['at_first']}{row['steps']:.0f}"
    cells = [row["arm"], str(row["sampling_steps"]), number(row["target"]), reference, steps]
    if row["ratio"] is not None:
        interval = "one seed" if row["low"] is None else f"{row['low']:.2f} to {row['high']:.2f}"
        return [*cells, f"{row['ratio']:.2f} x", interval]
    late = row["seeds_reached"] < row["seeds"]
    why = f"{row['seeds_reached']} of {row['seeds']} arrive" if late else "at first evaluation"
    if low > 0:
        return [*cells, f"≥ {low:.2f} x", why if row["low"] is None else f"from {row['low']:.2f}"]
    return [*cells, "no bound" if high is None else f"< {high:.2f} x", why]


def _finite(value: float | None) -> float | None:
    return None if value is None or math.isinf(value) else value


def _difference(values: Mapping[int, float], base: Mapping[int, float]) -> dict[str, float | None]:
    both = sorted(set(values) & set(base))
    difference = mean(values[seed] - base[seed] for seed in both) if both else None
    return {"difference": difference, "p": paired_p(dict(values), dict(base))}
