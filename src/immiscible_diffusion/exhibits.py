"""The papers' tables and figures that no training curve gives, as recorded: for the pages."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from immiscible_diffusion.files import read_json
from immiscible_diffusion.records import number

__all__ = ["exhibits"]

_CLUSTERS = {"independent": "0.92 ± 0.06", "assignment": "4.11 ± 0.37", "nearest": "2.17 ± 0.35"}
"""Section 4.2 of arXiv:2505.18521 (secondary: a digest): 10,000 noises, nearest of 8."""
_LEVELS = 4
"""How many noise levels are told of each arm."""


def exhibits(root: Path) -> list[dict[str, Any]]:
    """Return what is recorded of them: ``title``, ``note``, ``head`` and ``rows`` of a table, ``record``, ``picture``.

    Args:
        root: the repository's root. What is not there is left out.

    Raises:
        ValueError: a record that cannot be read.
    """
    found = []
    if (path := root / "benchmarks" / "results" / "papers.json").is_file():
        found.append(_pairing(read_json(path)) | {"record": path.relative_to(root).as_posix(), "picture": ""})
    for path, shown in [(root / "results" / "figures" / "miscibility.json", _miscibility)] + [
        (path, _denoising) for path in sorted((root / "results").rglob("denoising.json"))
    ]:
        if path.is_file():
            picture = path.with_suffix(".png")
            drawn = picture.relative_to(root).as_posix() if picture.is_file() else ""
            found.append(shown(read_json(path)) | {"record": path.relative_to(root).as_posix(), "picture": drawn})
    return found


def _pairing(numbers: Mapping[str, Any]) -> dict[str, Any]:
    rows = [
        [
            f"{row['scale']}, {row['pairing']}",
            str(row["b"]),
            f"{row['distance_reduction_percent']:.2f} ± {row['standard_error']:.2f}",
            "-" if row["published_percent"] is None else f"{row['published_percent']:.2f}",
            f"{row['median_ms']:.1f}",
            f"{row['published_ms']:g}",
        ]
        for row in numbers["rows"]
    ]
    return {
        "title": "Table 2 of both papers: how much nearer, and how long it takes",
        "note": f"{numbers['images']} at 32 x 32 pixels; distances in percent with the standard error over batches, "
        f"milliseconds on one thread of {numbers['environment']['processor']}; published times are a GPU's.",
        "head": ["data, pairing", "batch", "distance falls by, %", "published", "ms", "published ms"],
        "rows": rows,
    }


def _miscibility(numbers: Mapping[str, Any]) -> dict[str, Any]:
    rows = []
    for row in numbers["rows"]:
        published = next((value for name, value in _CLUSTERS.items() if name in row["coupling"]), "-")
        measured = f"{row['distance']:.2f} ± {row['deviation']:.2f}"
        rows.append([row["coupling"], measured, f"{row['debiased']:.2f}", published])
    first = numbers["rows"][0]
    return {
        "title": "Figure 2 of arXiv:2406.12303 and Section 4.2 of arXiv:2505.18521: miscibility",
        "note": f"Distance between the mean noises of {first['images']} images, {first['points']:,} noises each, "
        f"paired in batches of {numbers['batch']}. Means lie apart by chance, too, but in the third column.",
        "head": ["coupling", "distance between clusters", "but for chance", "published"],
        "rows": rows,
    }


def _denoising(numbers: Mapping[str, Any]) -> dict[str, Any]:
    by_arm: dict[str, list[Mapping[str, Any]]] = {}
    for row in numbers["rows"]:
        by_arm.setdefault(row["arm"], []).append(row)
    times: Sequence[float] = numbers["rows"][0]["times"]
    every = max(1, (len(times) - 1) // (_LEVELS - 1))
    shown = list(range(len(times)))[::-1][::every][:_LEVELS]
    rows = []
    for arm, runs in by_arm.items():
        errors = [mean(run["coupled"][i] for run in runs) for i in shown]
        apart = mean(run["independent"][shown[0]] for run in runs)
        cells = [arm, number(mean(run["spread"] for run in runs)), *map(number, errors), number(apart)]
        rows.append([*cells, str(len(runs))])
    levels = [f"error at t = {times[i]:.2g}" for i in shown]
    return {
        "title": "Figure 3 of arXiv:2406.12303: what the net makes of pure noise",
        "note": f"Runs of {numbers['runs']}. Spread: how much the predicted clean images of pure noise differ, in "
        "units of the data's variance; 0 is one image for all. Errors of the predicted clean image, 1 is that of the "
        "data's mean, on held-out data noised by the arm's own coupling; in the last column but one they are noised "
        "independently, at the first level.",
        "head": ["coupling", "spread", *levels, "independently noised", "seeds"],
        "rows": rows,
    }
