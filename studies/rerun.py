"""A recorded run, once more: its configuration, and whether its numbers come out the same."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from immiscible_diffusion.experiments.config import Config, read_config
from immiscible_diffusion.experiments.values import overridden
from immiscible_diffusion.files import read_json, read_lines
from immiscible_diffusion.report.record import FORMAT

__all__ = ["recorded_config", "recorded_threads", "unlike_record"]


def recorded_config(path: Path, arm: str, seed: int, overrides: Sequence[tuple[str, Any]] = ()) -> Config:
    """Return the configuration of one recorded run, with dotted keys changed, such as where its data are.

    Raises:
        ValueError: the record cannot be read, is of an older form, or has no such run.
    """
    numbers = read_json(path)
    if numbers.get("format") != FORMAT:
        raise ValueError(
            f"{path} keeps no configuration of every arm (format {numbers.get('format', 1)}); record it again"
        )
    known = [(run["arm"], run["seed"]) for run in numbers["runs"]]
    if (arm, seed) not in known:
        raise ValueError(f"{path} has no run of arm {arm!r} and seed {seed}; there are {known}")
    values = numbers["configurations"][arm]
    for key, value in [("train.seed", seed), *overrides]:
        values = overridden(values, key, value)
    return read_config(values)


def recorded_threads(path: Path) -> int:
    """Return how many threads the recorded runs computed on, on which the last bits of sums depend."""
    return int(read_json(path)["environment"][-1]["threads"])


def unlike_record(path: Path, arm: str, seed: int, folder: Path) -> tuple[list[str], int]:
    """Return a line for each recorded value that a run folder does not repeat, and how many values there were."""
    lines = read_lines(folder / "evaluations.jsonl")
    by_place = {(line["sampling_steps"], line["start"], line["step"]): line for line in lines}
    differing, count = [], 0
    for row in read_json(path)["curves"]:
        if row["arm"] != arm or str(seed) not in row["by_seed"]:
            continue
        for step, value in row["by_seed"][str(seed)]:
            repeated = by_place.get((row["sampling_steps"], row["start"], step), {}).get(row["metric"])
            count += 1
            if repeated != value:
                place = f"{row['metric']} at step {step}, {row['sampling_steps']} sampling steps, {row['start']} start"
                differing.append(f"{place}: recorded {value}, now {repeated}")
    return differing, count
