"""Training states on disk, to resume from. Safetensors and JSON alone, never a pickle."""

import re
import shutil
import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from immiscible_diffusion.files import digest_of_file, new_folder, read_json, read_tensors, write_json, write_tensors
from immiscible_diffusion.runs.checkpoint_parts import (
    SHARDS,
    checked_moments,
    checked_weights,
    put_weights,
    read_average,
    read_parts,
    write_parts,
)
from immiscible_diffusion.runs.team import ALONE, Team
from immiscible_diffusion.train import State, teacher_of

__all__ = ["load_average", "load_newest", "newest_step", "save"]

_DAMAGED = ".damaged"


def save(
    state: State,
    folder: Path,
    *,
    keep: int = 2,
    stays: Callable[[int], bool] = lambda step: False,
    team: Team = ALONE,
) -> Path:
    """Write the state as ``folder/step-<number>/`` and return that path; all processes must call this.

    ``state.json`` holds the SHA-256 of every other file. A crash in mid-write leaves the earlier checkpoints. The first
    process writes; where weights are sharded, every process writes its own shards.

    Args:
        state: what is written.
        folder: holds all checkpoints of a run.
        keep: how many of the newest stay.
        stays: tells of an older one's step whether it stays too.
        team: the processes that train the state.

    Raises:
        OSError: a process could not write its part.
    """
    if state.shards is None:
        return team.once(lambda: _saved(state, folder, keep, stays, ALONE))
    return _saved(state, folder, keep, stays, team)


def _saved(state: State, folder: Path, keep: int, stays: Callable[[int], bool], team: Team) -> Path:
    """Write the state in those processes of a team that are here, which are all or the first."""
    target = folder / f"step-{state.step:09d}"
    with ExitStack() as opened:
        part = team.once(lambda: opened.enter_context(new_folder(target)))
        write_parts(state, part)
        team.once(lambda: write_tensors(part / "coupling.safetensors", state.memory))
        about = {"step": state.step, "seconds": state.seconds, "sha256": _digests(part, team), "skipped": state.skipped}
        scaler = {} if state.scaler is None else {"scaler": state.scaler.state_dict()}
        team.once(lambda: write_json(part / "state.json", about | scaler))
    if team.first:
        for old in _steps(folder)[:-keep]:
            if not stays(_number(old)):
                shutil.rmtree(old)
    return target


def load_average(net: nn.Module, folder: Path, step: int) -> None:
    """Load the averaged weights of one checkpoint of the folder into a net.

    Raises:
        ValueError: there is no checkpoint of this step, or it is damaged or of another net.
    """
    path = folder / f"step-{step:09d}"
    if not path.is_dir():
        steps = ", ".join(str(_number(checkpoint)) for checkpoint in _steps(folder)) or "none"
        raise ValueError(f"{folder} has no checkpoint of step {step}; there are: {steps}")
    _about(path)
    net.load_state_dict(checked_weights("ema", read_average(path), net))


def newest_step(folder: Path) -> int:
    """Return the step of the newest checkpoint of the folder, whole or not; 0 if there is none."""
    return max(map(_number, _steps(folder)), default=0)


def load_newest(state: State, folder: Path, team: Team = ALONE) -> bool:
    """Load the newest whole checkpoint of the folder into the state; return whether the folder holds any.

    A damaged checkpoint is passed over with a warning, the one before it is loaded, and the damaged one is renamed to
    ``step-<number>.damaged``. Any number of processes can load what any number wrote.

    Args:
        state: changed in place.
        folder: holds all checkpoints of a run.
        team: the processes that train the state, all of which call this.

    Raises:
        ValueError: there are checkpoints, and all are damaged or of another net; nothing is changed on disk.
    """
    damaged: dict[Path, str] = {}
    for path in team.once(lambda: _steps(folder)[::-1]):
        read, problem = None, ""
        try:
            read = _read(path, state, team)
        except (ValueError, OSError) as error:
            problem = str(error)
        problems = [text for text in team.gathered(problem) if text]
        if read is None or problems:
            damaged[path] = problems[0]
            continue
        team.once(lambda: _set_aside(damaged, read.step))  # noqa: B023
        _put(state, read)
        return True
    if damaged:
        reasons = "; ".join(f"{path.name}: {problem}" for path, problem in damaged.items())
        raise ValueError(
            f"no checkpoint in {folder} can be used ({reasons}). Nothing was changed: restore one of them, or remove "
            f"{folder.parent} to train anew"
        )
    return False


def _set_aside(damaged: Mapping[Path, str], step: int) -> None:
    """Rename the damaged checkpoints that are newer than the one of this step, with a warning for each."""
    for path, problem in damaged.items():
        aside = path.with_name(path.name + _DAMAGED)
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
        warnings.warn(
            f"the checkpoint {path} is damaged ({problem}); training goes on from step {step}, and the damaged one is "
            f"now {aside.name}",
            stacklevel=4,
        )


class _Checkpoint(NamedTuple):
    """A checkpoint as read from disk, every tensor checked against the state that it is for."""

    step: int
    seconds: dict[str, float]
    net: dict[str, Tensor]
    ema: dict[str, Tensor]
    teacher: dict[str, Tensor] | None
    moments: dict[int, dict[str, Tensor]]
    memory: dict[str, Tensor]
    skipped: int
    scaler: dict[str, float]


def _steps(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*") if re.fullmatch(r"step-\d{9}", path.name))


def _number(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _read(path: Path, state: State, team: Team) -> _Checkpoint:
    """Return a checkpoint, of sharded tensors this process's shards.

    Raises:
        ValueError: a file is missing, damaged, or does not fit the state.
    """
    about = _about(path, team)
    tensors = read_parts(path, state)
    return _Checkpoint(
        step=about["step"],
        seconds=about["seconds"],
        net=checked_weights("net", tensors["net"], state.net),
        ema=checked_weights("ema", tensors["ema"], state.net),
        teacher=checked_weights("teacher", tensors["teacher"], state.net) if "teacher" in tensors else None,
        moments=checked_moments(tensors["optimizer"], state.optimizer),
        memory=read_tensors(path / "coupling.safetensors"),
        skipped=int(about.get("skipped", 0)),
        scaler=about.get("scaler", {}),
    )


def _digests(part: Path, team: Team) -> dict[str, str]:
    """Return the digest of every file of a checkpoint; the processes read a part of the files each."""
    rank, world = team.share
    names = team.once(lambda: sorted(path.relative_to(part).as_posix() for path in part.rglob("*") if path.is_file()))
    mine = {name: digest_of_file(part / name) for name in names[rank::world]}
    digests = {name: digest for those in team.gathered(mine) for name, digest in those.items()}
    return {name: digests[name] for name in names}


def _about(path: Path, team: Team = ALONE) -> dict[str, Any]:
    """Return the description inside a checkpoint, after the processes have compared its files with their digests."""
    about: dict[str, Any] = read_json(path / "state.json", {"step": int, "seconds": {"*": float}})
    about = {"sha256": {}, **about}  # checkpoints of earlier versions have none
    if not isinstance(about["sha256"], dict):
        raise ValueError("state.json has no table of sha256")
    if about["step"] != _number(path):
        raise ValueError("state.json is of another step")
    if strange := {f"{SHARDS}/{file.name}" for file in (path / SHARDS).glob("*")} - set(about["sha256"]):
        raise ValueError(f"{min(strange)} is none of its files")
    rank, world = team.share
    for name, digest in list(about["sha256"].items())[rank::world]:
        if not (path / name).is_file():
            raise ValueError(f"{name} is missing")
        if digest_of_file(path / name) != digest:
            raise ValueError(f"{name} is not as it was written")
    return about


def _put(state: State, read: _Checkpoint) -> None:
    put_weights(state.net, read.net)
    put_weights(state.ema, read.ema)
    state.teacher = None
    if read.teacher is not None:
        state.teacher = teacher_of(state)
        put_weights(state.teacher, read.teacher)
    groups = state.optimizer.state_dict()["param_groups"]
    state.optimizer.load_state_dict({"state": read.moments, "param_groups": groups})
    state.memory, state.step, state.seconds = read.memory, read.step, dict(read.seconds)
    state.skipped = read.skipped
    if state.scaler is not None and read.scaler:
        state.scaler.load_state_dict(read.scaler)
