"""What the page in two minutes says: gains, costs and limits, every number taken from a record."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from immiscible_diffusion.files import read_json
from immiscible_diffusion.runs.rollout import by_arm
from studies.dimension import gains_by_dimension, nearness

__all__ = ["start"]

_GAINS = ["few-steps-flow-cpu", "demo"]
"""Pages of the records that the first table is about, real images first."""
_ENDS = {
    "few-steps-ddim-cpu": ["eps-assignment", "x0-assignment", "v-assignment"],
    "few-steps-16-pixels-cpu": ["x0-assignment", "v-assignment"],
    "few-steps-16-pixels-consistency-cpu": ["published-assignment", "weighted-assignment"],
    "few-steps-times-cpu": ["edm-assignment", "edm-noise-assignment"],
    "few-steps-consistency-cpu": ["published-assignment", "lognormal-assignment", "weighted-assignment"],
    "few-steps-data-sets-cpu": ["semidiscrete", "oversampled", "cached"],
    "sd-unconditional-cpu": ["assignment", "nearest"],
    "painting-cpu": ["inside-nearest", "outside-nearest"],
    "sd-class-conditional-cpu": ["assignment", "assignment-per-class"],
}
"""Pages of the records that the second table is about, with the arms that it shows of them."""
_COUNTS = 1, 2, 5, 10, 50
"""The numbers of sampling steps that it has a column for."""
_FACES = "few-steps-faces-cpu"
"""The page of the record whose samples are shown."""
_LIMITS = ["few-steps-data-sets-cpu", "few-steps-16-pixels-consistency-cpu", "digits-consistency", "sd-fine-tuning-cpu"]
"""Pages of the records in which assignment gains nothing, each with the finding at its most sampling steps."""
_POLICY = "diffusion-policy-cpu"
"""The page of the record whose policies were carried out."""
_FLOORS = {
    "few-steps-flow-cpu": "CIFAR-10 at 8 pixels",
    "few-steps-16-pixels-cpu": "at 16",
    "few-steps-latents-cpu": "its latents",
    "few-steps-faces-cpu": "faces",
    "demo": "digits",
}
"""Pages of the records whose noise floors are named, with their data."""
_ARM = "assignment"
_ROWS = 8
_SIZES = [(64, 3072), (64, 16384), (256, 4096), (256, 16384), (1024, 4096)]
"""(batch, coordinates) of the table of costs."""
CONTENDERS = ["this library, fp32", "torch.cdist + scipy (denoising-diffusion-pytorch)", "official"]
"""The columns of the table of costs, as the benchmark names them."""
_LATENT_NUMBERS = 4096
"""The numbers of a latent of 256 x 256 pixels."""


def start(views: Sequence[Mapping[str, Any]], root: Path) -> dict[str, Any]:
    """Return the values of the page's template.

    Args:
        views: all records, as the pages show them.
        root: the repository's root. What is not recorded there is left out.
    """
    rows, gained = nearness(root), gains_by_dimension(root)
    by_page = {view["page"]: view for view in views}
    gains = [by_page[page] for page in _GAINS if page in by_page]
    return {
        "gains": [row for view in gains for row in _gain(view)][:_ROWS],
        "ends": [row for page, arms in _ENDS.items() if page in by_page for row in _end(by_page[page], arms)],
        "columns": _COUNTS,
        "floors": ", ".join(f"{name} {_floor(by_page[page])}" for page, name in _FLOORS.items() if page in by_page),
        "faces": by_page.get(_FACES),
        "figures": [view for view in gains if view["figure"]],
        "limits": list(_limits(by_page, root)),
        "costs": _costs(root),
        "shares": [(view, view["costs"]) for view in gains],
        "dimensions": rows,
        "qualities": _qualities(gained),
        "largest": _largest(rows, gained),
        "share": _share(gained),
        "short": _short(gained),
        "counts": sorted({row["sampling_steps"] for row in gained}),
        "latents": next((row for row in rows if row["d"] == _LATENT_NUMBERS), None),
        "picture": "results/figures/dimension.svg" if (root / "results/figures/dimension.svg").is_file() else "",
    }


def _gain(view: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a row for each number of sampling steps: how much sooner assignment is, and how much better at the end."""
    metric = view["metrics"][0]
    ends = {tuple(cells[:2]): cells for cells in view["finals"][metric]}
    for cells in view["speedups"][metric]:
        arm, steps, _, _, _, ratio, interval, _ = cells
        if arm == _ARM:
            first, last = ends["independent", steps], ends[arm, steps]
            ended = [first[2], last[2] + _mark(last), last[4]]
            yield {
                "title": view["title"],
                "page": view["page"],
                "cells": [view["train_steps"], steps, ratio, interval, *ended],
            }


def _end(view: Mapping[str, Any], arms: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield a row for each of these arms: where it and its independent noise end, by the number of sampling steps."""
    ends = {tuple(cells[:2]): cells for cells in view["finals"][view["metrics"][0]]}
    grouped = "independent" not in {arm for arm, _ in ends}
    for arm in arms:
        group, _, coupling = arm.rpartition("-") if grouped else ("", "", arm)
        plain = f"{group}-independent" if group else "independent"
        pairs = [(ends.get((plain, str(steps))), ends.get((arm, str(steps)))) for steps in _COUNTS]
        said = [f"{_mean(a)} → {_mean(b)}{_mark(b)} ({b[4]})" if a and b else "-" for a, b in pairs]
        yield {
            "title": view["title"],
            "page": view["page"],
            "cells": [view["train_steps"], group or "-", coupling, *said],
        }


def _mean(cells: Sequence[str]) -> str:
    """Return the mean of a row of ends without its deviation."""
    return cells[2].partition(" ± ")[0]


def _mark(cells: Sequence[str]) -> str:
    """Return the mark of a difference that is near the noise floor."""
    return " †" if cells[3].endswith("†") else ""


def _floor(view: Mapping[str, Any]) -> str:
    """Return what real images score, the last row of a table of ends, without its deviation."""
    return _mean(view["finals"][view["metrics"][0]][-1])


def _last_finding(view: Mapping[str, Any]) -> str:
    """Return the sentence about the most sampling steps."""
    sentence = str([text for text in view["findings"] if text.startswith("At ")][-1])
    first, _, others = sentence.partition(": ")
    parts = [part for part in others.rstrip(".").split("; ") if _ARM in part]
    return f"{first}: {'; '.join(parts)}."


def _limits(by_page: Mapping[str, Mapping[str, Any]], root: Path) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Yield each record in which assignment gains nothing, with the sentence that says so."""
    for page in _LIMITS:
        if page in by_page:
            yield by_page[page], _last_finding(by_page[page])
    policies = by_page.get(_POLICY)
    if policies and (record := root / policies["folder"] / "rollout.json").is_file():
        yield policies, _policy(record)


def _policy(record: Path) -> str:
    """Return how policies fare that were trained with assignment, in one sentence a coupling."""
    groups = by_arm(read_json(record)["lines"])
    most = max(steps for _, _, steps in groups)

    def shown(arm: str) -> list[str]:
        runs = groups[arm, "matched", most].values()
        return [f"{mean(run[share] for run in runs):.3f}" for share in ("success", "minority")]

    plain, paired, aware = map(shown, ("independent", "assignment", "conditional"))
    return (
        f"At {most} sampling steps a share of {paired[0]} of the episodes succeed with plain assignment and {plain[0]} "
        f"with independent noise, and of these {paired[1]} and {plain[1]} take the rarer of two ways: what the policy "
        "observes decides most of its actions, and plain assignment lets the noise tell it. With `conditional`, which "
        f"compares the observations, too, {aware[0]} succeed and {aware[1]} of these take the rarer way."
    )


def _largest(rows: Sequence[Mapping[str, Any]], gained: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return name, nearness and changes by sampling steps of the largest images whose quality was measured, or None."""
    if not gained:
        return None
    cells = {row["sampling_steps"]: _change(row) for row in gained if row["d"] == gained[-1]["d"]}
    shown = next(row["shown"] for row in rows if row["d"] == gained[-1]["d"])
    return {"name": gained[-1]["data"], "shown": shown, "cells": cells}


def _qualities(gained: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Return a row a data set: the change of the distance by the number of sampling steps."""
    changes = {(row["data"], row["sampling_steps"]): _change(row) for row in gained}
    counts = sorted({row["sampling_steps"] for row in gained})
    sizes = dict.fromkeys((row["data"], row["d"]) for row in gained)
    return [[data, f"{d:,}", *(changes.get((data, count), "-") for count in counts)] for data, d in sizes]


def _change(row: Mapping[str, Any]) -> str:
    return f"{row['percent']:+.0f} % ({row['low']:+.0f} to {row['high']:+.0f})"


def _share(gained: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return how much latents gained in place of what pixels gained, at 2 and at 5 sampling steps.

    The pixels are those of the most similar number of coordinates. Empty where latents were not measured.
    """
    latents = [row for row in gained if row["latents"]]
    if not latents:
        return []
    pixels = [row for row in gained if not row["latents"]]
    nearest = min((row["d"] for row in pixels), key=lambda d: abs(d - latents[0]["d"]))
    by_steps = {(row["sampling_steps"], row["d"]): -row["percent"] for row in gained}
    return [f"{by_steps[n, latents[0]['d']]:.0f} % in place of {by_steps[n, nearest]:.0f} %" for n in (2, 5)]


def _short(gained: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return the changes of the largest images and of latents, and what to expect of large latents in 4 steps."""
    if not gained:
        return None
    several = [row for row in gained if row["sampling_steps"] > 1]
    counts = sorted({row["sampling_steps"] for row in several})
    largest = [row for row in several if row["d"] == gained[-1]["d"]]
    latents = [row for row in several if row["latents"]]
    by_steps = {row["sampling_steps"]: -row["percent"] for row in largest}
    enlarged = {"data_name": "latents of CIFAR-10 enlarged to 64 pixels", "changes": _changes(latents)}
    return {
        "counts": _listed([str(count) for count in counts]),
        "largest": {"data_name": f"CIFAR-10 at {largest[0]['data']}", "changes": _changes(largest)},
        "latents": enlarged if latents else None,
        "low": f"{by_steps[5] / 2:.0f}",
        "high": f"{by_steps[2]:.0f}",
    }


def _changes(rows: Sequence[Mapping[str, Any]]) -> str:
    return _listed([f"{row['percent']:+.0f} %" for row in rows])


def _listed(words: Sequence[str]) -> str:
    """Return words as a sentence lists them: "2, 5 and 10"."""
    return f"{', '.join(words[:-1])} and {words[-1]}" if words else ""


def _costs(root: Path) -> list[list[str]]:
    """Return the milliseconds of exact assignment by batch and number of coordinates, a column a contender."""
    path = root / "benchmarks" / "results" / "couplings.json"
    if not path.is_file():
        return []
    times = {
        (row["b"], row["d"], row["name"]): f"{row['median_ms']:.1f}"
        for row in read_json(path)["rows"]
        if row["task"] == "assignment" and row.get("median_ms")
    }
    return [[f"{b:,}", f"{d:,}", *(times.get((b, d, name), "-") for name in CONTENDERS)] for b, d in _SIZES]
