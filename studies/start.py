"""What the page in two minutes says: gains, costs and limits, every number taken from a record."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from immiscible_diffusion.files import read_json
from immiscible_diffusion.report.sentences import counted, floor_mark, number
from immiscible_diffusion.runs.rollout import by_arm
from studies.changes import change_text
from studies.details import expected, marked_change, marks

__all__ = ["start"]

_HEADLINE = [
    ("few-steps-flow-cpu", "assignment", "flow matching", "8 x 8 pixels"),
    ("few-steps-dimension-cpu", "16-pixels-assignment", "flow matching", "16 x 16 pixels"),
    ("few-steps-dimension-cpu", "32-pixels-assignment", "flow matching", "32 x 32 pixels"),
    ("few-steps-latents-cpu", "64-pixels-assignment", "flow matching", "latents of 64 x 64 pixels"),
    ("few-steps-latents-256-cpu", "assignment", "flow matching", "latents of 256 x 256 pixels"),
    ("few-steps-ddim-cpu", "x0-assignment", "DDIM, predicts the image", "8 x 8 pixels"),
    ("few-steps-ddim-cpu", "v-assignment", "DDIM, predicts v", "8 x 8 pixels"),
    ("few-steps-ddim-cpu", "eps-assignment", "DDIM, predicts the noise", "8 x 8 pixels"),
    ("few-steps-16-pixels-cpu", "x0-assignment", "DDIM, predicts the image", "16 x 16 pixels"),
    ("few-steps-16-pixels-cpu", "v-assignment", "DDIM, predicts v", "16 x 16 pixels"),
    ("few-steps-16-pixels-eps-cpu", "assignment", "DDIM, predicts the noise", "16 x 16 pixels"),
    ("few-steps-consistency-cpu", "published-assignment", "consistency, published levels", "8 x 8 pixels"),
    ("few-steps-consistency-cpu", "lognormal-assignment", "consistency, lognormal levels", "8 x 8 pixels"),
    ("few-steps-consistency-cpu", "weighted-assignment", "consistency, weighted levels", "8 x 8 pixels"),
    ("few-steps-16-pixels-consistency-cpu", "published-assignment", "consistency, published levels", "16 x 16 pixels"),
    ("few-steps-16-pixels-consistency-cpu", "weighted-assignment", "consistency, weighted levels", "16 x 16 pixels"),
]
"""Pages and arms of the first table, with method and images of CIFAR-10 as it names them."""
_COUNTS = 1, 2, 5, 10, 50
"""The numbers of sampling steps that it has a column for."""
_SOONER = "few-steps-flow-cpu"
"""The page of the record whose curves are shown."""
_FACES = "few-steps-faces-cpu"
"""The page of the record whose samples are shown."""
_LIMITS = [
    ("digits-consistency", "assignment", 2, "Digits by consistency training with lognormal levels"),
    ("sd-fine-tuning-cpu", "assignment", 20, "A small net of Stable Diffusion's kind, trained before without coupling"),
]
"""Pages and arms in which assignment gains nothing, with the sampling steps shown and what they are."""
_POLICY = "diffusion-policy-cpu"
"""The page of the record whose policies were carried out."""
_ARM = "assignment"
_SHARE = "few-steps-dimension-cpu"
"""The page of the record whose coupling is shown as a share of a training step."""
_SIZES = [(64, 3072), (64, 16384), (256, 4096), (1024, 4096)]
"""(batch, coordinates) of the table of costs."""
CONTENDERS = ["this library, fp32", "torch.cdist + scipy (denoising-diffusion-pytorch)", "official"]
"""The columns of the table of costs, as the benchmark names them."""


def start(views: Sequence[Mapping[str, Any]], gained: Sequence[Mapping[str, Any]], root: Path) -> dict[str, Any]:
    """Return the values of the page's template.

    Args:
        views: all records, as the pages show them.
        gained: the changes by data set and sampling steps, see ``dimension.gains_by_dimension``.
        root: the repository's root. What is not recorded there is left out.
    """
    by_page = {view["page"]: view for view in views}
    faces = by_page.get(_FACES)
    return {
        "headline": [_change(by_page[page], *about) for page, *about in _HEADLINE if page in by_page],
        "columns": _COUNTS,
        "curves": by_page.get(_SOONER),
        "sooner": _sooner(by_page[_SOONER]) if _SOONER in by_page else [],
        "faces": faces,
        "face_changes": _listed([change_text(row) for row in faces["changes"].values()]) if faces else "",
        "faces_in_four": marked_change(faces, _ARM, 4) if faces else "",
        "face_counts": _listed([str(count) for _, count in faces["changes"]]) if faces else "",
        "limits": list(_limits(by_page, root)),
        "costs": _costs(root),
        "shares": _shares(by_page[_SHARE]) if _SHARE in by_page else None,
        "short": _short(gained, by_page),
        "expected": expected(gained, by_page),
        "picture": "results/figures/dimension.svg" if (root / "results/figures/dimension.svg").is_file() else "",
    }


def _change(view: Mapping[str, Any], arm: str, method: str, images: str) -> dict[str, Any]:
    """Return a row of the first table: how far an arm ends from independent noise, by the number of sampling steps."""
    cells = [marked_change(view, arm, count) if (arm, count) in view["changes"] else "-" for count in _COUNTS]
    return {"method": method, "page": view["page"], "cells": [images, view["train_steps"], *cells]}


def _sooner(view: Mapping[str, Any]) -> list[list[str]]:
    """Return a row for each number of sampling steps: how much sooner assignment is, and both at their best."""
    metric, shown = view["metrics"][0], []
    for arm, steps, _, _, _, ratio, interval, _ in view["speedups"][metric]:
        if arm == _ARM:
            best = view["best_changes"][arm, int(steps)]
            compared = {"arm": arm, "metric": metric, "difference": best["best"] - best["reference"]}
            ends = [
                number(best["reference"]),
                number(best["best"]),
                change_text(best) + floor_mark(compared, view["instrument"]),
            ]
            shown.append([steps, f"{ratio} ({interval})", *ends])
    return shown


def _limits(by_page: Mapping[str, Mapping[str, Any]], root: Path) -> Iterator[tuple[str, str, str]]:
    """Yield page, training and finding of each record in which assignment gains nothing."""
    for page, arm, count, words in _LIMITS:
        if page in by_page and (arm, count) in by_page[page]["changes"]:
            view = by_page[page]
            change = marked_change(view, arm, count)
            ends = {(cells[0], cells[1]): cells[2] for cells in view["finals"][view["metrics"][0]]}
            plain, coupled = ends[arm.replace(_ARM, "independent"), str(count)], ends[arm, str(count)]
            yield page, words, f"At {counted(count)} {plain} becomes {coupled}: {change}."
    policies = by_page.get(_POLICY)
    if policies and (record := root / policies["folder"] / "rollout.json").is_file():
        yield _POLICY, "A diffusion policy", _policy(record)


def _policy(record: Path) -> str:
    """Return how policies fare that were trained with assignment, in one sentence a coupling."""
    groups = by_arm(read_json(record)["lines"])
    most = max(steps for _, _, steps in groups)

    def shown(arm: str) -> list[str]:
        runs = groups[arm, "matched", most].values()
        return [f"{mean(run[share] for run in runs):.3f}" for share in ("success", "minority")]

    plain, paired, aware = map(shown, ("independent", "assignment", "conditional"))
    return (
        f"At {most} sampling steps a share of {plain[0]} of the episodes succeed with independent noise, {plain[1]} of "
        f"them by the rarer of two ways; with plain assignment {paired[0]} and {paired[1]}, because what the policy "
        f"observes decides its actions; with `conditional` {aware[0]} and {aware[1]} ([table](../diffusion-policy.md))."
    )


def _short(gained: Sequence[Mapping[str, Any]], by_page: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return the changes of the largest images and of latents in several sampling steps."""
    several = [row for row in gained if row["sampling_steps"] > 1]
    counts = sorted({row["sampling_steps"] for row in several})
    pixels = [row for row in several if not row["latents"]]
    if not pixels:
        return None
    largest = [row for row in pixels if row["d"] == pixels[-1]["d"]]
    latents = [row for row in several if row["latents"]]
    latents = [row for row in latents if row["d"] == latents[-1]["d"]]
    return {
        "counts": _listed([str(count) for count in counts]),
        "largest": {"data_name": f"CIFAR-10 at {largest[0]['data']}", "changes": _changes(largest, by_page)},
        "latents": {"data_name": _enlarged(latents[-1]), "changes": _changes(latents, by_page)} if latents else None,
    }


def _enlarged(row: Mapping[str, Any]) -> str:
    """Return how a sentence names latents of the data of this row."""
    return f"latents of CIFAR-10 enlarged to {row['data'].partition(',')[0]}"


def _changes(rows: Sequence[Mapping[str, Any]], by_page: Mapping[str, Mapping[str, Any]]) -> str:
    marked = [marks(by_page[row["page"]])[row["arm"], str(row["sampling_steps"])] for row in rows]
    return _listed([f"{row['percent']:+.0f} %{mark}" for row, mark in zip(rows, marked, strict=True)])


def _listed(words: Sequence[str]) -> str:
    """Return words as a sentence lists them: "2, 5 and 10"."""
    return f"{', '.join(words[:-1])} and {words[-1]}" if words else ""


def _shares(view: Mapping[str, Any]) -> list[str]:
    """Return the coupling's share of a training step in per cent, at 8 and at 32 pixels."""
    return [f"{view['pace'][f'{size}-pixels-{_ARM}']['coupling_percent']:.0f}" for size in (8, 32)]


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
