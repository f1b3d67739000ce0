"""What the detailed page says: how qualities are measured, and every comparison with where both sides end."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from immiscible_diffusion.report.sentences import number
from studies.changes import change_text
from studies.dimension import nearness

__all__ = ["details", "expected", "marked_change", "marks"]

_GAINS = ["few-steps-flow-cpu", "demo"]
"""Pages of the records that the first table is about, real images first."""
_ENDS = {
    "few-steps-flow-cpu": ["assignment", "nearest"],
    "few-steps-ddim-cpu": [f"{predict}-{arm}" for predict in ("eps", "x0", "v") for arm in ("assignment", "nearest")],
    "few-steps-16-pixels-cpu": [f"{way}-{arm}" for way in ("x0", "v", "flow") for arm in ("assignment", "nearest")],
    "few-steps-16-pixels-eps-cpu": ["assignment", "nearest"],
    "few-steps-16-pixels-consistency-cpu": [
        f"{levels}-{arm}" for levels in ("published", "weighted") for arm in ("assignment", "nearest")
    ],
    "few-steps-times-cpu": ["edm-assignment", "edm-noise-assignment"],
    "few-steps-consistency-cpu": ["published-assignment", "lognormal-assignment", "weighted-assignment"],
    "digits-consistency": ["assignment", "nearest"],
    "few-steps-data-sets-cpu": ["assignment", "semidiscrete", "oversampled", "cached"],
    "sd-unconditional-cpu": ["assignment", "nearest"],
    "painting-cpu": ["inside-nearest", "outside-nearest"],
    "sd-class-conditional-cpu": ["assignment", "assignment-per-class"],
    "sd-fine-tuning-cpu": ["assignment"],
}
"""Pages of the records that the second table is about, with the arms that it shows of them."""
_COUNTS = 1, 2, 5, 10, 50
"""The numbers of sampling steps that it has a column for."""
_FLOORS = [
    ("few-steps-flow-cpu", "assignment", "CIFAR-10 at 8 pixels"),
    ("few-steps-16-pixels-cpu", "v-assignment", "CIFAR-10 at 16 pixels"),
    ("few-steps-dimension-cpu", "32-pixels-assignment", "CIFAR-10 at 32 pixels"),
    ("few-steps-latents-cpu", "64-pixels-assignment", "latents of CIFAR-10 at 64 pixels"),
    ("few-steps-latents-cpu", "128-pixels-assignment", "latents of CIFAR-10 at 128 pixels"),
    ("few-steps-latents-256-cpu", "assignment", "latents of CIFAR-10 at 256 pixels"),
    ("few-steps-faces-cpu", "assignment", "faces, as latents"),
    ("demo", "assignment", "digits"),
]
"""Pages and arms of the records whose noise floors are named, with their data."""
_ARM = "assignment"
_ROWS = 8
_LATENT_NUMBERS = 4096
"""The numbers of a latent of 256 x 256 pixels."""
_HALF_BATCH = "few-steps-settings-cpu"
"""The page of the record that compares the gain at batch 128 with that at 64."""


def details(views: Sequence[Mapping[str, Any]], gained: Sequence[Mapping[str, Any]], root: Path) -> dict[str, Any]:
    """Return the values of the page's template.

    Args:
        views: all records, as the pages show them.
        gained: the changes by data set and sampling steps, see ``dimension.gains_by_dimension``.
        root: the repository's root. What is not recorded there is left out.
    """
    rows = nearness(root)
    by_page = {view["page"]: view for view in views}
    gains = [by_page[page] for page in _GAINS if page in by_page]
    return {
        "floors": [(name, page, _floor(by_page[page], arm)) for page, arm, name in _FLOORS if page in by_page],
        "gains": [row for view in gains for row in _gain(view)][:_ROWS],
        "digits": next((view for view in gains if view["page"] == "demo"), None),
        "ends": [row for page, arms in _ENDS.items() if page in by_page for row in _end(by_page[page], arms)],
        "columns": _COUNTS,
        "dimensions": rows,
        "qualities": _qualities(gained, by_page),
        "counts": sorted({row["sampling_steps"] for row in gained}),
        "share": _share(gained),
        "example": _example(rows, gained, by_page),
    }


def _gain(view: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a row for each number of sampling steps: how much sooner assignment is, and how much better at the end."""
    metric = view["metrics"][0]
    ends = {tuple(cells[:2]): cells for cells in view["finals"][metric]}
    for cells in view["speedups"][metric]:
        arm, steps, _, _, _, ratio, interval, _ = cells
        if arm == _ARM:
            first, last = ends["independent", steps], ends[arm, steps]
            ended = [first[2], last[2] + marks(view)[arm, steps], last[4]]
            yield {
                "title": view["title"],
                "page": view["page"],
                "cells": [view["train_steps"], steps, ratio, interval, *ended],
            }


def _end(view: Mapping[str, Any], arms: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield a row for each of these arms: where it and its independent noise end, by the number of sampling steps."""
    ends, marked = {tuple(cells[:2]): cells for cells in view["finals"][view["metrics"][0]]}, marks(view)
    grouped = "independent" not in {arm for arm, _ in ends}
    for arm in arms:
        group, _, coupling = arm.rpartition("-") if grouped else ("", "", arm)
        plain = f"{group}-independent" if group else "independent"
        pairs = [(ends.get((plain, str(steps))), ends.get((arm, str(steps)))) for steps in _COUNTS]
        said = [f"{_mean(a)} → {_mean(b)}{marked[b[0], b[1]]} ({b[4]})" if a and b else "-" for a, b in pairs]
        yield {
            "title": view["title"],
            "page": view["page"],
            "cells": [view["train_steps"], group or "-", coupling, *said],
        }


def _mean(cells: Sequence[str]) -> str:
    """Return the mean of a row of ends without its deviation."""
    return cells[2].partition(" ± ")[0]


def marks(view: Mapping[str, Any]) -> dict[tuple[str, str], str]:
    """Return (arm, sampling steps as text) -> the mark of a difference that is near the noise floor, or nothing."""
    ends = view["finals"][view["metrics"][0]]
    return {(cells[0], cells[1]): " †" if cells[3].endswith("†") else "" for cells in ends}


def marked_change(view: Mapping[str, Any], arm: str, count: int) -> str:
    """Return how far an arm ends from independent noise in so many sampling steps, with the mark of ``marks``."""
    return f"{change_text(view['changes'][arm, count])}{marks(view)[arm, str(count)]}"


def _floor(view: Mapping[str, Any], arm: str) -> str:
    """Return what real images score for the samples of an arm, in the first metric."""
    score = next(entry["floor"][view["metrics"][0]] for entry in view["instrument"] if arm in entry["arms"])
    return f"{number(score['mean'])} ± {number(score['sd'])}"


def _qualities(gained: Sequence[Mapping[str, Any]], by_page: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Return a row a data set: the change of the distance by the number of sampling steps."""
    changes = {}
    for row in gained:
        view, count = by_page[row["page"]], row["sampling_steps"]
        changes[row["data"], count] = marked_change(view, row["arm"], count)
    counts = sorted({row["sampling_steps"] for row in gained})
    sizes = dict.fromkeys((row["data"], row["d"]) for row in gained)
    return [[data, f"{d:,}", *(changes.get((data, count), "-") for count in counts)] for data, d in sizes]


def _example(
    rows: Sequence[Mapping[str, Any]], gained: Sequence[Mapping[str, Any]], by_page: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any] | None:
    """Return the measurements of latents of 256 x 256 pixels and the gain at half the batch, or None.

    ``shown``: by how many per cent their pairs come nearer. ``cells``: changes by sampling steps. ``halves``: gains at
    batch 128 and at 64, in per cent, by sampling steps. ``expected``: see ``expected``.
    """
    likely = expected(gained, by_page)
    if likely is None:
        return None
    cells = {row["sampling_steps"]: change_text(row) for row in _large(gained)}
    shown = next(row["shown"] for row in rows if row["d"] == _LATENT_NUMBERS and row["batch"] == 128)
    halves = {count: [f"{gain:.0f} %" for gain in _by_batch(by_page[_HALF_BATCH], count)] for count in (2, 5)}
    return {"shown": shown, "cells": cells, "halves": halves, "expected": likely}


def _large(gained: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the changes of latents of 256 x 256 pixels."""
    return [row for row in gained if row["latents"] and row["d"] == _LATENT_NUMBERS]


def _by_batch(view: Mapping[str, Any], count: int) -> tuple[float, float]:
    """Return what assignment gains in so many sampling steps at batch 128 and at 64, in per cent."""
    plain, half = (view["changes"][arm, count]["percent"] for arm in ("plain-assignment", "batch-64-assignment"))
    return -plain, -half


def _beside_pixels(gained: Sequence[Mapping[str, Any]], count: int) -> list[tuple[int, float, float]]:
    """Return what latents gained in so many sampling steps beside pixels, in per cent, by size: (numbers, both gains).

    The pixels are those of the most similar number of coordinates. Empty where latents or pixels were not measured.
    """
    rows = [row for row in gained if row["sampling_steps"] == count]
    pixels = {row["d"]: -row["percent"] for row in rows if not row["latents"]}
    return [
        (row["d"], -row["percent"], pixels[min(pixels, key=lambda d: abs(math.log(d / row["d"])))])
        for row in rows
        if row["latents"] and pixels
    ]


def _share(gained: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what latents gained in place of what pixels gained, at 2 and at 5 sampling steps, in words by size."""
    by_count = {count: _beside_pixels(gained, count) for count in (2, 5)}
    return [
        f"{d:,} numbers gained "
        + " and ".join(
            f"{mine:.0f} % in place of {pixels:.0f} % at {count}"
            for count, rows in by_count.items()
            for numbers, mine, pixels in rows
            if numbers == d
        )
        for d, _, _ in by_count[2]
    ]


def expected(gained: Sequence[Mapping[str, Any]], by_page: Mapping[str, Mapping[str, Any]]) -> tuple[str, str] | None:
    """Return by how many per cent latents of 256 x 256 pixels may gain at batch 64 and 4 steps, at least and at most.

    They gain between what they gained at 5 and at 2 steps and batch 128, each times the part that half the batch
    keeps of the gain in as many steps at 8 x 8 pixels.
    """
    gains = {row["sampling_steps"]: -row["percent"] for row in _large(gained)}
    if not gains or _HALF_BATCH not in by_page:
        return None
    halves = {steps: _by_batch(by_page[_HALF_BATCH], steps) for steps in (2, 5)}
    most, least = (gains[steps] * half / whole for steps, (whole, half) in halves.items())
    return f"{least:.0f}", f"{most:.0f}"
