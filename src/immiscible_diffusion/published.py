"""The literature's numbers beside ours."""

from collections.abc import Mapping
from typing import Any

from immiscible_diffusion.experiment import built_in, read_experiment
from immiscible_diffusion.records import number

__all__ = ["published", "published_note"]


def published_note(name: str) -> str:
    """Return what is said of an experiment's published values; empty of one that does not come with the package."""
    return read_experiment(name).published.get("note", "") if name in built_in() else ""


def published(numbers: Mapping[str, Any], metric: str) -> list[list[str]]:
    """Return published values beside measured ones, and each's ratio to independent noise of the same conditions."""
    name = numbers["experiment"]
    rows = read_experiment(name).published.get("rows", []) if name in built_in() else []
    found = []
    for row in rows:
        like = [r for r in rows if _condition(r) == _condition(row) and r["arm"].endswith("independent")]
        base = like[0]["value"] if like and not row["arm"].endswith("independent") else None
        own = _measured(numbers, metric, row)
        found.append(
            [
                row["arm"],
                row["metric"],
                number(row["value"]),
                "-" if base is None else f"{row['value'] / base:.2f}",
                f"{row['train_steps']:,}" if "train_steps" in row else "-",
                str(row.get("sampling_steps", "-")),
                row["grade"],
                *own,
            ]
        )
    return found


def _condition(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row["metric"], row.get("train_steps"), row.get("sampling_steps"), row["grade"]


def _measured(numbers: Mapping[str, Any], metric: str, row: Mapping[str, Any]) -> list[str]:
    """Return our final value of the same arm, its ratio to independent noise, and at how many sampling steps."""
    same = [r for r in numbers["finals"] if (r["arm"], r["metric"]) == (row["arm"], metric)]
    if not same or row["metric"] != "frechet":
        return ["-", "-", "-"]
    wanted = row.get("sampling_steps")
    best = next((r for r in same if r["sampling_steps"] == wanted), max(same, key=lambda r: r["sampling_steps"]))
    base = best["mean"] - best["difference"] if best.get("difference") is not None else None
    ratio = "-" if base is None else f"{best['mean'] / base:.2f}"
    return [f"{number(best['mean'])} ± {number(best['sd'])}", ratio, str(best["sampling_steps"])]
