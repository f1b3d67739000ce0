"""The papers' tables and figures that no training curve gives, as recorded: for the pages."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from immiscible_diffusion.files import read_json
from immiscible_diffusion.report.sentences import SURE, number
from immiscible_diffusion.report.uncertainty import Values, spread, t_test_p
from immiscible_diffusion.runs.rollout import by_arm

__all__ = ["exhibits"]

_CLUSTERS = {"independent": "0.92 ± 0.06", "assignment": "4.11 ± 0.37", "nearest": "2.17 ± 0.35"}
"""Section 4.2 of arXiv:2505.18521 (secondary: a digest): 10,000 noises; the k of nearest is not given."""
_NEAREST = "1.58"
"""Table 7 of arXiv:2505.18521 (secondary: a digest): the percentage by which nearest of 8 shortens distances."""
_LEVELS = 4
"""How many noise levels are shown of each arm."""


def exhibits(root: Path) -> list[dict[str, Any]]:
    """Return the recorded exhibits: ``title``, ``note``, ``head`` and ``rows`` of a table, ``record``, ``picture``.

    Args:
        root: the repository's root. What is not there is left out.

    Raises:
        ValueError: a record that cannot be read.
    """
    tables = []
    if (path := root / "benchmarks" / "results" / "papers.json").is_file():
        tables.append(_pairing(read_json(path)) | {"record": path.relative_to(root).as_posix(), "picture": ""})
    figures = root / "results" / "figures"
    for path, shown in [
        (figures / "miscibility.json", _miscibility),
        (figures / "levels.json", _levels),
        (figures / "perturbation.json", _perturbation),
        *((path, _denoising) for path in sorted((root / "results").rglob("denoising.json"))),
        *((path, _rollout) for path in sorted((root / "results").rglob("rollout.json"))),
    ]:
        if path.is_file():
            picture = path.with_suffix(".webp")
            drawn = picture.relative_to(root).as_posix() if picture.is_file() else ""
            tables.append(shown(read_json(path)) | {"record": path.relative_to(root).as_posix(), "picture": drawn})
    return tables


def _pairing(numbers: Mapping[str, Any]) -> dict[str, Any]:
    rows = [
        [
            f"{row['scale']}, {row['pairing']}",
            str(row["b"]),
            f"{row['distance_reduction_percent']:.2f} ± {row['standard_error']:.2f}",
            _published_percent(row),
            f"{row['median_ms']:.1f}",
            f"{row['published_ms']:g}",
        ]
        for row in numbers["rows"]
    ]
    return {
        "title": "Table 2 of both papers, and Table 7 of the second: how much nearer, and how long it takes",
        "note": f"{numbers['images']} at 32 x 32 pixels; distances in percent with the standard error over batches, "
        f"milliseconds on one thread of {numbers['environment']['processor']}. "
        "Published values are secondary, from digests; the times are said to be an A6000's by the first paper and an "
        "A5000's by the digest of the second, and the k of nearest is not given with its times.",
        "head": ["data, pairing", "batch", "distance falls by, %", "published", "ms", "published ms"],
        "rows": rows,
    }


def _published_percent(row: Mapping[str, Any]) -> str:
    if row["pairing"] == "nearest of 8" and row["scale"] == "unit variance":
        return _NEAREST
    return "-" if row["published_percent"] is None else f"{row['published_percent']:.2f}"


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
        f"paired in batches of {numbers['batch']}. Means lie apart by chance, too, but in the third column. "
        "Lines are the ways from data (squares) to noise (points); images are drawn smaller than they are, to be seen "
        "beside it. "
        "Published values are secondary, from a digest, and the k of nearest is not given.",
        "head": ["coupling", "distance between clusters", "but for chance", "published"],
        "rows": rows,
    }


def _perturbation(numbers: Mapping[str, Any]) -> dict[str, Any]:
    weights = numbers["rows"][0]["weights"]
    return {
        "title": "Figure 3 of arXiv:2505.18521: pictures of noise that is changed a little",
        "note": f"Runs of {numbers['runs']} in {numbers['sampling_steps']} sampling steps. How much the picture of a "
        "fixed noise changes where other noise of a weight is added to it, over ten of those and 32 noises, with the "
        "deviation over seeds: 0 is the same picture, 1 any other. The paper shows that a weight of 0.1 leaves a "
        "picture as it is and 0.3 begins to change its object, for independent noise.",
        "head": ["arm", *(f"weight {w:g}" for w in weights), "seeds"],
        "rows": _rows(numbers, "change", _mean_and_deviation),
    }


def _by_arm(numbers: Mapping[str, Any]) -> dict[str, list[Mapping[str, Any]]]:
    by_arm: dict[str, list[Mapping[str, Any]]] = {}
    for row in numbers["rows"]:
        by_arm.setdefault(row["arm"], []).append(row)
    return by_arm


def _rows(numbers: Mapping[str, Any], quantity: str, cell: Callable[[list[float]], str]) -> list[list[str]]:
    """Return a row an arm: a cell for each place of a quantity, made of the values over seeds, and how many seeds."""
    return [
        [arm, *(cell(list(values)) for values in zip(*(run[quantity] for run in runs), strict=True)), str(len(runs))]
        for arm, runs in _by_arm(numbers).items()
    ]


def _mean_and_deviation(values: Sequence[float]) -> str:
    middle, deviation = spread(values)
    return f"{middle:.3f} ± {deviation:.3f}" if len(values) > 1 else f"{middle:.3f}"


def _levels(numbers: Mapping[str, Any]) -> dict[str, Any]:
    sigmas = numbers["rows"][0]["sigmas"]
    return {
        "title": "Consistency training by noise level: how much of a picture its noise decides",
        "note": f"Runs of {numbers['runs']}. Error of the picture that the net makes of held-out data under the arm's "
        "own noise, in units of the data's variance: 1 is the error of the data's mean, and about 2 is reached where "
        "the net makes another picture than the one that the noise was paired with.",
        "head": ["recipe and coupling", *(f"sigma = {number(sigma)}" for sigma in sigmas), "seeds"],
        "rows": _rows(numbers, "error", lambda values: number(mean(values))),
    }


def _denoising(numbers: Mapping[str, Any]) -> dict[str, Any]:
    by_arm = _by_arm(numbers)
    times: Sequence[float] = numbers["rows"][0]["times"]
    every = max(1, (len(times) - 1) // (_LEVELS - 1))
    shown = sorted(range(len(times)), key=times.__getitem__, reverse=True)[::every][:_LEVELS]
    rows = []
    for arm, runs in by_arm.items():
        errors = [mean(run["coupled"][i] for run in runs) for i in shown]
        apart = mean(run["independent"][shown[0]] for run in runs)
        cells = [arm, number(mean(run["spread"] for run in runs)), *map(number, errors), number(apart)]
        rows.append([*cells, str(len(runs))])
    levels = [f"error at t = {times[i]:.2g}" for i in shown]
    first = {arm: {run["seed"]: run["independent"][shown[0]] for run in runs} for arm, runs in by_arm.items()}
    base, *others = first
    compared = [
        f"{arm} {number(mean(first[arm].values()))}, {base} {number(mean(first[base].values()))}"
        + ("" if (p := t_test_p(_differences(first[arm], first[base]))) is None else f" (p = {p:.2g})")
        for arm in others
    ]
    return {
        "title": "Figure 3 of arXiv:2406.12303: what the net makes of pure noise",
        "note": f"Runs of {numbers['runs']}. Spread: how much the predicted clean images of pure noise differ, in "
        "units of the data's variance; 0 is one image for all. Errors of the predicted clean image, 1 is that of the "
        "data's mean and what is above it is worse than that; on held-out data noised by the arm's own coupling. "
        f"In the last column but one they are noised independently, at t = {times[shown[0]]:.2g}: "
        f"{'; '.join(compared)}.",
        "head": ["coupling", "spread", *levels, "independently noised", "seeds"],
        "rows": rows,
    }


def _rollout(numbers: Mapping[str, Any]) -> dict[str, Any]:
    groups, rows = by_arm(numbers["lines"]), []
    for (arm, start, steps), by_seed in groups.items():
        base = groups["independent", "matched", steps]
        cells = [_rollout_cell(by_seed, base, share) for share in ("success", "minority")]
        rows.append([arm, start, str(steps), *cells, str(len(by_seed))])
    return {
        "title": "Table 6 of arXiv:2505.18521, on a task of ours: policies carried out",
        "note": f"Shares of {numbers['lines'][0]['episodes']} episodes of `detour`, with the deviation over seeds. "
        "Success: the goal is reached and the obstacle not touched. Rarer way: the share of the successes that take "
        "it; a fifth of the demonstrations do. * differs from independent noise, p < 0.05 (paired t-test over seeds).",
        "head": ["coupling", "start", "sampling steps", "success", "rarer way", "seeds"],
        "rows": rows,
    }


def _rollout_cell(by_seed: Mapping[int, Mapping[str, Any]], base: Mapping[int, Mapping[str, Any]], share: str) -> str:
    values, others = ({seed: run[share] for seed, run in runs.items()} for runs in (by_seed, base))
    p = None if by_seed is base else t_test_p(_differences(values, others))
    return _mean_and_deviation(list(values.values())) + (" *" if p is not None and p < SURE else "")


def _differences(first: Mapping[int, float], second: Mapping[int, float]) -> Values:
    return np.array([first[seed] - second[seed] for seed in sorted(set(first) & set(second))])
