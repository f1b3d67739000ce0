"""What the coupling changes by the number of coordinates: the distance of pairs, and the quality of samples."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from immiscible_diffusion.files import read_json
from immiscible_diffusion.report.record import read_record
from immiscible_diffusion.report.sentences import number
from immiscible_diffusion.report.uncertainty import t_interval

__all__ = ["gains_by_dimension", "nearness"]

_ARM, _REFERENCE = "assignment", "independent"
_LATENT_BATCH = 64
"""The batch whose rows of the benchmark are shown."""
_STUDIED = "few-steps-dimension/cpu"
_RECORDS = "demo", _STUDIED, "few-steps-flow/cpu"
"""Where distances are read; of equal data and batch the first is shown."""


def gains_by_dimension(root: Path) -> list[dict[str, Any]]:
    """Return how far assignment ends from independent noise, by data set and number of sampling steps.

    ``data``, ``d``, ``sampling_steps``, and ``percent``: the change of the distance at the end of training in the
    geometric mean over paired seeds, with its 95 % interval ``low`` to ``high`` by Student's t of the logarithms.

    Args:
        root: the repository's root. What is not recorded there is left out.
    """
    path = root / "results" / _STUDIED / "summary.json"
    if not path.is_file():
        return []
    numbers = read_record(path)
    metric = numbers["metrics"][0]
    ends = {(row["arm"], row["sampling_steps"]): row["by_seed"] for row in numbers["finals"] if row["metric"] == metric}
    rows = []
    for arm, configuration in numbers["configurations"].items():
        data, _, coupling = arm.rpartition("-")
        if coupling == _ARM:
            d = 3 * configuration["source"]["size"] ** 2
            for count in sorted({steps for name, steps in ends if name == arm}):
                pair = ends[f"{data}-{_REFERENCE}", count], ends[arm, count]
                rows.append({"data": data, "d": d, "sampling_steps": count, **_change(*pair)})
    return sorted(rows, key=lambda row: (row["d"], row["sampling_steps"]))


def _change(reference: Mapping[str, float], arm: Mapping[str, float]) -> dict[str, float]:
    seeds = sorted(set(reference) & set(arm))
    logs = np.array([np.log(arm[seed] / reference[seed]) for seed in seeds])
    low, high = t_interval(logs) or (logs.mean(), logs.mean())
    percent, least, most = (100 * float(np.expm1(value)) for value in (logs.mean(), low, high))
    return {"percent": percent, "low": least, "high": most}


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
            source, batch = configuration["source"], configuration["train"]["batch"]
            d, data = 64, "digits, 8 x 8 pixels"
            if source["use"] != "digits":
                d, data = 3 * source["size"] ** 2, f"CIFAR-10 at {source['size']} pixels"
            percent = numbers["pairs"][arm]["distance_reduction_percent"]
            yield {"data": data, "d": d, "batch": batch, "percent": percent}
