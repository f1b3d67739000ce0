"""What a run writes beside its checkpoints: configuration, environment, log and evaluations; read again to go on."""

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from immiscible_diffusion.experiments.config import Config, as_stored, with_defaults
from immiscible_diffusion.files import digest_of, read_json, whole_lines, write_json, write_lines
from immiscible_diffusion.runs.folder import CONFIG, EVALUATION, LOG, SESSIONS, environment
from immiscible_diffusion.types import HasListing

__all__ = ["Records", "alike_but_when", "but_evaluate", "read_records"]

Line = dict[str, Any]
_WHEN = "every", "growth", "steps", "last_steps"


@dataclass(frozen=True)
class Records:
    """The lines of one run's log and evaluations; both lists grow while it trains.

    ``sessions`` are the environments of the earlier sessions of this run, oldest first.
    """

    folder: Path
    log: list[Line]
    evaluations: list[Line]
    sessions: list[Line]

    @property
    def last_step(self) -> int:
        """The last training step that a line speaks of, 0 without lines."""
        return max((int(line["step"]) for line in [*self.log, *self.evaluations]), default=0)

    def measured(self, step: int) -> list[tuple[int, str]]:
        """Return the sampling steps and the start of every measurement of this training step."""
        return [(line["sampling_steps"], line["start"]) for line in self.evaluations if line["step"] == step]

    def cut(self, step: int) -> None:
        """Drop the lines of later steps, which are trained again."""
        for lines in (self.log, self.evaluations):
            lines[:] = [line for line in lines if line["step"] <= step]

    def write(self) -> None:
        """Write both files, each atomically."""
        write_lines(self.folder / "log.jsonl", self.log)
        write_lines(self.folder / "evaluations.jsonl", self.evaluations)

    def begin_session(self, config: Config, step: int) -> Line:
        """Write the configuration, add this session's environment to the earlier ones, and return it."""
        session = {"from_step": step, "data": _listing(config), **environment()}
        write_json(self.folder / "config.json", as_stored(config))
        write_json(self.folder / "environment.json", [*self.sessions, session])
        return session


def read_records(config: Config, folder: Path) -> Records:
    """Return the records of this run in a run folder; empty for a new run.

    Measurements made under another ``evaluate`` table, but for when and at how many sampling steps, are not comparable:
    they are moved to ``evaluations-<digest>.jsonl``. Lines that are damaged are left out with a warning.

    Raises:
        ValueError: the folder holds another run, the data have changed since, or a file is damaged.
    """
    path = folder / "config.json"
    if not path.exists():
        return Records(folder, [], [], [])
    before, plain = with_defaults(read_json(path, CONFIG)), as_stored(config)
    if but_evaluate(before) != but_evaluate(plain):
        raise ValueError(f"{folder} holds a run with another configuration; choose another folder")
    log, evaluations = _lines(folder / "log.jsonl", LOG), _lines(folder / "evaluations.jsonl", EVALUATION)
    if evaluations and alike_but_when(before) != alike_but_when(plain):
        text = json.dumps(alike_but_when(before)["evaluate"], sort_keys=True)
        aside = f"evaluations-{digest_of(text.encode())[:8]}.jsonl"
        warnings.warn(
            f"{folder} was measured under another evaluate table; its {len(evaluations)} measurements are kept in "
            f"{aside}, and evaluations.jsonl holds those made from here on",
            stacklevel=2,
        )
        write_lines(folder / aside, evaluations)
        write_lines(folder / "evaluations.jsonl", [])
        evaluations = []
    path = folder / "environment.json"
    sessions = read_json(path, SESSIONS) if path.exists() else []
    records = Records(folder, log, evaluations, sessions)
    _compare_session(config, records)
    return records


def alike_but_when(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's plain values without when, and at how many sampling steps, it is measured."""
    return {**plain, "evaluate": {key: value for key, value in plain["evaluate"].items() if key not in _WHEN}}


def but_evaluate(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's plain values without all that is measured: those that training depends on."""
    return {key: value for key, value in plain.items() if key != "evaluate"}


def _lines(path: Path, form: Mapping[str, type]) -> list[Line]:
    lines, damaged = whole_lines(path, form)
    if damaged:
        warnings.warn(f"{len(damaged)} lines of {path} are damaged and left out", stacklevel=3)
    return lines


def _listing(config: Config) -> str | None:
    return config.source.listing_digest() if isinstance(config.source, HasListing) else None


def _compare_session(config: Config, records: Records) -> None:
    """Compare this session with the last: refuse changed data, and tell that another number of threads computes."""
    if not records.sessions:
        return
    last, data = records.sessions[-1], _listing(config)
    if last.get("data") not in (None, data):
        raise ValueError(
            f"the data of {records.folder} are not those that it was trained on so far: files were added, removed or "
            "changed, so that other rows would be held out. Restore the data, or train in another folder (--out)"
        )
    threads = environment()["threads"]
    if last.get("threads") not in (None, threads):
        warnings.warn(
            f"{records.folder} was trained on {last['threads']} CPU threads so far and goes on with {threads}: the "
            "last digits of its weights depend on that. For equal digits set OMP_NUM_THREADS, or --workers, as before",
            stacklevel=2,
        )
