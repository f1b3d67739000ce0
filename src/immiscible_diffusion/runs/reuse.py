"""Runs that another experiment has finished already: the same training, and every measurement that is asked for."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from immiscible_diffusion.experiments.config import Config, as_stored, with_defaults
from immiscible_diffusion.experiments.experiment import Cell
from immiscible_diffusion.files import new_folder, read_json, read_lines, write_bytes, write_json
from immiscible_diffusion.runs.folder import CONFIG, EVALUATION, is_finished
from immiscible_diffusion.runs.records import alike_but_when

__all__ = ["reuse"]


def reuse(cells: Sequence[Cell], folder: Path, others: Sequence[Path]) -> list[str]:
    """Copy finished runs of other experiments that are the same, and return the names of the folders filled.

    A run is the same if its configuration is, options that it lacks at their defaults, but for when and at how many
    sampling steps it was measured, and if all that is asked for was. Images and training depend on nothing else, so
    that the numbers equal a new run's.

    Args:
        cells: the runs that are wanted.
        folder: where their run folders are; those that exist are left alone.
        others: folders of run folders, such as ``runs/fig5-table4-ddim``.

    Raises:
        ValueError: one of the other folders has no finished run, or a file of a run cannot be read.
    """
    candidates = []
    for other in others:
        runs = [path.parent for path in sorted(other.glob("*/config.json")) if is_finished(path.parent)]
        if not runs:
            raise ValueError(f"{other} has no finished run to reuse; it must hold run folders, such as runs/demo")
        candidates += [(path, with_defaults(read_json(path / "config.json", CONFIG))) for path in runs]
    filled = []
    for cell in cells:
        place, plain = folder / cell.folder, as_stored(cell.config)
        for path, config in candidates:
            if place.exists() or alike_but_when(plain) != alike_but_when(config):
                continue
            lines = _asked(read_lines(path / "evaluations.jsonl", EVALUATION), cell.config)
            if lines:
                _copy(path, place, plain, lines)
                filled.append(cell.folder)
    return filled


def _asked(lines: list[dict[str, Any]], config: Config) -> list[dict[str, Any]]:
    """Return the measurements that a run of this configuration makes, in its order; none if one is missing."""
    options = config.evaluate
    due = {(step, count) for step in options.due(config.train.steps) for count in options.steps}
    kept = [line for line in lines if (line["step"], line["sampling_steps"]) in due]
    if {(line["step"], line["sampling_steps"]) for line in kept} != due:
        return []
    return sorted(kept, key=lambda line: (line["step"], options.steps.index(line["sampling_steps"])))


def _copy(path: Path, place: Path, plain: dict[str, Any], lines: list[dict[str, Any]]) -> None:
    with new_folder(place) as part:
        shutil.copytree(path, part, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".lock"))
        write_json(part / "config.json", plain)
        write_bytes(part / "evaluations.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode())
