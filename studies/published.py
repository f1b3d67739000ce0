"""The literature's numbers beside ours."""

from collections.abc import Mapping
from typing import Any

from immiscible_diffusion.experiments.experiment import read_experiment
from immiscible_diffusion.experiments.values import built_in
from immiscible_diffusion.report.sentences import number

__all__ = ["published", "published_note", "published_thresholds"]


def published_note(name: str) -> str:
    """Return the note on an experiment's published values; empty for experiments outside the package."""
    return read_experiment(name).published.get("note", "") if name in built_in() else ""


def published_thresholds(name: str) -> list[list[str]]:
    """Return published steps to a quality: arm, quality, steps of independent noise, steps, ratio, grade."""
    rows = read_experiment(name).published.get("thresholds", []) if name in built_in() else []
    counts = ("reference_steps", "steps")
    return [
        [row["arm"], f"{row['value']:g}", *(f"{row[key]:,}" for key in counts), f"{row['ratio']:g} x", row["grade"]]
        for row in rows
    ]


def published(numbers: Mapping[str, Any], metric: str) -> list[list[str]]:
    """Return published values beside measured ones, and each's ratio to independent noise of the same conditions.

    Ours are of the end of training: they stand beside the published end, not beside the curve on the way there.
    """
    name = numbers["experiment"]
    rows = read_experiment(name).published.get("rows", []) if name in built_in() else []
    cells = []
    for row in rows:
        like = [r for r in rows if _condition(r) == _condition(row) and _is_base(r["arm"], row["arm"])]
        base = like[0]["value"] if like else None
        last = max(r.get("train_steps", 0) for r in rows if (r["arm"], r["grade"]) == (row["arm"], row["grade"]))
        measured_cells = _measured(numbers, metric, row) if row.get("train_steps", 0) == last else ["-", "-", "-"]
        cells.append(
            [
                row["arm"],
                row["metric"],
                f"{row['value']:g}",
                "-" if base is None else f"{row['value'] / base:.2f}",
                f"{row['train_steps']:,}" if "train_steps" in row else "-",
                str(row.get("sampling_steps", "-")),
                row["grade"],
                *measured_cells,
            ]
        )
    return cells


def _is_base(base: str, arm: str) -> bool:
    """Return whether an arm is independent noise in another's group: ``inside-independent``, ``inside-nearest``."""
    group = base.removesuffix("independent")
    return base.endswith("independent") and base != arm and arm.startswith(group)


def _condition(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row["metric"], row.get("train_steps"), row.get("sampling_steps"), row["grade"]


def _measured(numbers: Mapping[str, Any], metric: str, row: Mapping[str, Any]) -> list[str]:
    """Return our final value of the same arm, its ratio to independent noise, and at how many sampling steps."""
    same = [r for r in numbers["finals"] if (r["arm"], r["metric"]) == (row["arm"], metric)]
    if not same or row["metric"] != "frechet":
        return ["-", "-", "-"]
    wanted = row.get("sampling_steps")
    best = next((r for r in same if r["sampling_steps"] == wanted), max(same, key=lambda r: r["sampling_steps"]))
    ratio = f"{1 + best['difference'] / best['reference_mean']:.2f}" if "difference" in best else "-"
    return [f"{number(best['mean'])} ± {number(best['sd'])}", ratio, str(best["sampling_steps"])]
