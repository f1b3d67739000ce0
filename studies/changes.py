"""By how many per cent an arm ends from independent noise, with its interval over paired seeds."""

from collections.abc import Mapping
from statistics import mean
from typing import Any

import numpy as np

from immiscible_diffusion.report.sentences import measured_once, of_metric
from immiscible_diffusion.report.uncertainty import t_interval

__all__ = ["best_changes", "change", "change_text", "changes"]


def change(reference: Mapping[str, float], arm: Mapping[str, float]) -> dict[str, float]:
    """Return ``percent``: the mean difference over paired seeds by the reference's mean; ``low``, ``high``: its range.

    The range is the 95 % interval of the paired differences by Student's t, so that it holds 0 where the paired t-test
    of a record has p above .05; of one seed it has no width.

    Args:
        reference: seed -> distance of independent noise.
        arm: seed -> distance of the arm.
    """
    seeds = sorted(set(reference) & set(arm))
    differences = np.array([arm[seed] - reference[seed] for seed in seeds])
    unit = float(np.mean([reference[seed] for seed in seeds])) / 100
    middle = float(differences.mean())
    low, high = t_interval(differences) or (middle, middle)
    return {"percent": middle / unit, "low": low / unit, "high": high / unit}


def changes(numbers: Mapping[str, Any], metric: str) -> dict[tuple[str, int], dict[str, float]]:
    """Return (arm, sampling steps) -> ``change`` from its reference at the end of training, of a record.

    Args:
        numbers: a record.
        metric: a distance. Where larger values are better nothing is returned.
    """
    rows = [] if metric in numbers["rising"] else of_metric(numbers["finals"], metric)
    ends = {(row["arm"], row["sampling_steps"]): row["by_seed"] for row in rows}
    return {
        (row["arm"], row["sampling_steps"]): change(ends[row["reference"], row["sampling_steps"]], row["by_seed"])
        for row in rows
        if "reference" in row
    }


def best_changes(numbers: Mapping[str, Any], metric: str) -> dict[tuple[str, int], dict[str, float]]:
    """Return (arm, sampling steps) -> ``change`` between the best qualities on the way, with both means, of a record.

    The means are ``reference`` and ``best``: an engineer who keeps the best checkpoint has these.

    Args:
        numbers: a record.
        metric: a distance. Where larger values are better nothing is returned.
    """
    curves = [] if metric in numbers["rising"] else of_metric(numbers["curves"], metric)
    best = {
        (row["label"], row["sampling_steps"]): {
            seed: min(value for _, value in curve) for seed, curve in row["by_seed"].items()
        }
        for row in curves
        if not measured_once([row])
    }
    changed = {}
    for row in of_metric(numbers["finals"], metric):
        pair = [best.get((row.get(key, ""), row["sampling_steps"]), {}) for key in ("reference", "arm")]
        if all(pair):
            means = {name: mean(side.values()) for name, side in zip(("reference", "best"), pair, strict=True)}
            changed[row["arm"], row["sampling_steps"]] = means | change(*pair)
    return changed


def change_text(row: Mapping[str, Any]) -> str:
    """Return a change as the cells of tables show it.

    >>> change_text({"percent": -45.2, "low": -48.1, "high": -41.9})
    '-45 % (-48 to -42)'
    """
    return f"{row['percent']:+.0f} % ({row['low']:+.0f} to {row['high']:+.0f})"
