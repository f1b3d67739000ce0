"""A recorded run, once more: its configuration, and whether its numbers come out the same."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from immiscible_diffusion.experiments.config import Config, read_config
from immiscible_diffusion.experiments.values import overridden
from immiscible_diffusion.files import read_json, read_lines, write_json
from immiscible_diffusion.report.record import FORMAT
from immiscible_diffusion.runs.folder import environment

__all__ = ["keep_outcome", "recorded_config", "recorded_threads", "reruns", "unlike_record"]


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


def reruns(path: Path) -> list[dict[str, Any]]:
    """Return what trainings of recorded runs again came to, in the order of arms and seeds; see ``keep_outcome``."""
    kept = path.parent / "rerun.json"
    rows: list[dict[str, Any]] = read_json(kept, [dict]) if kept.exists() else []
    return sorted(rows, key=lambda row: (row["arm"], row["seed"]))


def keep_outcome(path: Path, arm: str, seed: int, *, numbers: int, differing: int) -> None:
    """Keep in ``rerun.json``, beside a record, how many numbers of a run came out otherwise when it was trained again.

    It takes the place of an earlier outcome of the same run.
    """
    others = [row for row in reruns(path) if (row["arm"], row["seed"]) != (arm, seed)]
    row = {"arm": arm, "seed": seed, "numbers": numbers, "differing": differing, "commit": environment()["commit"]}
    write_json(path.parent / "rerun.json", [*others, row])
