"""Where runs stand, from what they have written; nothing of a run is loaded or disturbed."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from immiscible_diffusion.files import locked, read_json, whole_lines
from immiscible_diffusion.runs.checkpoint import newest_step
from immiscible_diffusion.runs.folder import CONFIG, EVALUATION, LOG, is_finished

__all__ = ["Status", "statuses"]

_BESIDE = "step", "sampling_steps", "start", "samples", "sample_seed", "wall_seconds"


@dataclass(frozen=True)
class Status:
    """Where one run stands.

    ``state`` is ``finished``, ``running``, ``stopped`` or ``damaged``; ``images_per_second`` and ``seconds_left`` are
    those of the last logged steps, None where fewer than two lines tell; ``measured`` names the last measurement.
    """

    name: str
    state: str
    step: int = 0
    steps: int = 0
    loss: float | None = None
    images_per_second: float | None = None
    seconds_left: float | None = None
    measured: str = ""
    checkpoint: int = 0


def statuses(folder: Path) -> Iterator[Status]:
    """Yield where every run in a folder and below stands, sorted by name.

    Raises:
        ValueError: there is no run.
    """
    configs = [path for path in folder.rglob("config.json") if "export" not in path.relative_to(folder).parts]
    runs = sorted(path.parent for path in configs)
    if not runs:
        raise ValueError(f"{folder} holds no run; name the folder of --out, or one experiment's folder in it")
    for run in runs:
        name = run.relative_to(folder).as_posix() if run != folder else run.name
        try:
            yield _status(name, run)
        except (ValueError, KeyError, OSError) as error:
            yield Status(name, "damaged", measured=str(error))


def _status(name: str, run: Path) -> Status:
    train = read_json(run / "config.json", CONFIG)["train"]
    log, evaluations = _lines(run / "log.jsonl", LOG), _lines(run / "evaluations.jsonl", EVALUATION)
    kept, steps = newest_step(run / "checkpoints"), int(train["steps"])
    step = max([kept, *(line["step"] for line in log[-1:])])
    state = "finished" if is_finished(run) else ("running" if _held(run) else "stopped")
    pace = _pace(log)
    return Status(
        name,
        state,
        steps if state == "finished" else step,
        steps,
        log[-1].get("loss") if log else None,
        None if pace is None else train["batch"] / pace,
        None if pace is None or state == "finished" else (steps - step) * pace,
        _measured(evaluations[-1]) if evaluations else "",
        kept,
    )


def _lines(path: Path, form: Mapping[str, type]) -> list[dict[str, Any]]:
    return whole_lines(path, form)[0]


def _pace(log: list[dict[str, Any]]) -> float | None:
    """Return the seconds of a step over the last ten logged lines of one session."""
    last = [line for line in log[-10:] if "step_seconds" in line]
    if len(last) < 2 or last[-1]["step"] == last[0]["step"]:
        return None
    spent = last[-1]["step_seconds"] - last[0]["step_seconds"]
    return float(spent / (last[-1]["step"] - last[0]["step"])) if spent > 0 else None


def _measured(line: Mapping[str, Any]) -> str:
    values = [f"{key} {value:.4g}" for key, value in line.items() if key not in _BESIDE and isinstance(value, float)]
    return f"{', '.join(values[:1])} in {line['sampling_steps']} steps, at {line['step']}"


def _held(run: Path) -> bool:
    """Return whether a process works in the folder."""
    if not (run / ".lock").exists():
        return False
    try:
        with locked(run):
            return False
    except (ValueError, OSError):
        return True
