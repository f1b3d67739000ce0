"""What the coupling changes by the number of coordinates: the distance of pairs, and the quality of samples."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from immiscible_diffusion.files import read_json
from immiscible_diffusion.report.record import read_record
from immiscible_diffusion.report.sentences import number
from studies.changes import changes

__all__ = ["gains_by_dimension", "nearness"]

_ARM = "assignment"
_LATENT_BATCH = 64
"""The batch whose rows of the benchmark are shown."""
_STUDIED = "few-steps-dimension/cpu", "few-steps-latents/cpu", "few-steps-latents-256/cpu"
"""Where qualities are read."""
_RECORDS = "demo", *_STUDIED, "few-steps-flow/cpu"
"""Where distances are read; of equal data and batch the first is shown."""
_CHANNELS, _FACTOR = 4, 8
"""The channels of a latent of few-steps-latents, and how many pixels one of its numbers stands for along a side."""


def gains_by_dimension(root: Path) -> list[dict[str, Any]]:
    """Return how far assignment ends from independent noise, by data set and number of sampling steps.

    ``data`` (its size), whether they are ``latents``, ``d``, ``page`` and ``arm`` of the record, ``sampling_steps``,
    and ``percent``, ``low`` and ``high`` of ``changes.change``.

    Args:
        root: the repository's root. What is not recorded there is left out.
    """
    rows = [
        row for name in _STUDIED for row in _gains(root / "results" / name / "summary.json", name.replace("/", "-"))
    ]
    return sorted(rows, key=lambda row: (row["d"], row["sampling_steps"]))


def _gains(path: Path, page: str) -> Iterator[dict[str, Any]]:
    """Yield a row for each data set and number of sampling steps of a record."""
    if not path.is_file():
        return
    numbers = read_record(path)
    changed = changes(numbers, numbers["metrics"][0])
    for arm, configuration in numbers["configurations"].items():
        if arm.rpartition("-")[2] == _ARM:
            for count in sorted({steps for name, steps in changed if name == arm}):
                _, size, d = _data(configuration["source"])
                latents = configuration["source"]["use"] == "latents"
                about = {"data": size, "latents": latents, "d": d, "arm": arm, "page": page}
                yield about | {"sampling_steps": count, **changed[arm, count]}


def _data(source: Mapping[str, Any]) -> tuple[str, str, int]:
    """Return name and size of the data of a source, and the numbers of one image; stored latents end with a size."""
    if source["use"] == "digits":
        return "digits, 8 x 8 pixels", "8 pixels", 64
    if source["use"] == "latents":
        side = int(source["path"].rpartition("-")[2])
        numbers = _CHANNELS * (side // _FACTOR) ** 2
        return f"latents of CIFAR-10 at {side} pixels", f"{side} pixels, as latents", numbers
    size = source["size"]
    return f"CIFAR-10 at {size} pixels", f"{size} pixels", 3 * size**2


def nearness(root: Path) -> list[dict[str, Any]]:
    """Return by how many percent assignment shortens distances, by data: ``data``, ``d``, ``batch``, ``percent``.

    Args:
        root: the repository's root. What is not recorded there is left out.
    """
    rows = [row for name in _RECORDS for row in _recorded(root / "results" / name / "summary.json")]
    benchmarks = root / "benchmarks" / "results"
    if (benchmarks / "dimension.json").is_file():
        rows += [
            {
                "data": f"latents of photographs at {row['pixels']} pixels",
                "d": row["d"],
                "batch": row["batch"],
                "percent": row["distance_percent"],
            }
            for row in read_json(benchmarks / "dimension.json")["rows"]
            if (row["coupling"], row["batch"]) == (_ARM, _LATENT_BATCH)
        ]
    by_data: dict[tuple[str, int], dict[str, Any]] = {}
    for row in rows:
        by_data.setdefault((row["data"], row["batch"]), row | {"shown": number(row["percent"])})
    return sorted(by_data.values(), key=lambda row: row["d"])


def _recorded(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the nearness of each data set of a record that pairs by assignment."""
    numbers = read_record(path) if path.is_file() else {"configurations": {}}
    for arm, configuration in numbers["configurations"].items():
        if arm.rpartition("-")[2] == _ARM:
            data, _, d = _data(configuration["source"])
            percent = numbers["pairs"][arm]["distance_reduction_percent"]
            yield {"data": data, "d": d, "batch": configuration["train"]["batch"], "percent": percent}
