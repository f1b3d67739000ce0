"""Training states on disk, to resume from. Safetensors and JSON alone, never a pickle."""

import re
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from immiscible_diffusion.files import digest_of_file, new_folder, read_json, read_tensors, write_json, write_tensors
from immiscible_diffusion.train import State, teacher_of

__all__ = ["load_average", "load_newest", "newest_step", "save"]

_DAMAGED = ".damaged"


def save(state: State, folder: Path, *, keep: int = 2, stays: Callable[[int], bool] = lambda step: False) -> Path:
    """Write the state as ``folder/step-<number>/`` and return that path.

    ``state.json`` holds the SHA-256 of every other file. A crash in mid-write leaves the earlier checkpoints.

    Args:
        state: what is written.
        folder: holds all checkpoints of a run.
        keep: how many of the newest stay.
        stays: tells of an older one's step whether it stays too.
    """
    target = folder / f"step-{state.step:09d}"
    with new_folder(target) as part:
        write_tensors(part / "net.safetensors", state.net.state_dict())
        write_tensors(part / "ema.safetensors", state.ema.state_dict())
        moments = state.optimizer.state_dict()["state"]
        write_tensors(
            part / "optimizer.safetensors",
            {f"{i}.{name}": part for i, values in moments.items() for name, part in values.items() if part is not None},
        )
        write_tensors(part / "coupling.safetensors", state.memory)
        if state.teacher is not None:
            write_tensors(part / "teacher.safetensors", state.teacher.state_dict())
        digests = {path.name: digest_of_file(path) for path in sorted(part.iterdir())}
        about = {"step": state.step, "seconds": state.seconds, "sha256": digests, "skipped": state.skipped}
        scaler = {} if state.scaler is None else {"scaler": state.scaler.state_dict()}
        write_json(part / "state.json", about | scaler)
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
        there = ", ".join(str(_number(each)) for each in _steps(folder)) or "none"
        raise ValueError(f"{folder} has no checkpoint of step {step}; there are: {there}")
    _about(path)
    net.load_state_dict(_weights(path / "ema.safetensors", net))


def newest_step(folder: Path) -> int:
    """Return the step of the newest checkpoint of the folder, whole or not; 0 if there is none."""
    return max(map(_number, _steps(folder)), default=0)


def load_newest(state: State, folder: Path) -> bool:
    """Load the newest whole checkpoint of the folder into the state; return whether the folder holds any.

    A damaged checkpoint is passed over with a warning, the one before it is loaded, and the damaged one is renamed to
    ``step-<number>.damaged``.

    Raises:
        ValueError: there are checkpoints, and all are damaged or of another net; nothing is changed on disk.
    """
    damaged: dict[Path, str] = {}
    for path in reversed(_steps(folder)):
        try:
            read = _read(path, state)
        except (ValueError, OSError) as error:
            damaged[path] = str(error)
            continue
        for other, problem in damaged.items():
            aside = other.with_name(other.name + _DAMAGED)
            shutil.rmtree(aside, ignore_errors=True)
            other.rename(aside)
            warnings.warn(
                f"the checkpoint {other} is damaged ({problem}); training goes on from step {read.step}, and the "
                f"damaged one is now {aside.name}",
                stacklevel=2,
            )
        _put(state, read)
        return True
    if damaged:
        reasons = "; ".join(f"{path.name}: {problem}" for path, problem in damaged.items())
        raise ValueError(
            f"no checkpoint in {folder} can be used ({reasons}). Nothing was changed: restore one of them, or remove "
            f"{folder.parent} to train anew"
        )
    return False


class _Read(NamedTuple):
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


def _read(path: Path, state: State) -> _Read:
    """Return a checkpoint.

    Raises:
        ValueError: a file is missing, damaged, or does not fit the state.
    """
    about = _about(path)
    weights = {name: _weights(path / f"{name}.safetensors", state.net) for name in ("net", "ema")}
    has_teacher = (path / "teacher.safetensors").exists()
    return _Read(
        step=about["step"],
        seconds=about["seconds"],
        **weights,
        teacher=_weights(path / "teacher.safetensors", state.net) if has_teacher else None,
        moments=_moments(path / "optimizer.safetensors", state.optimizer),
        memory=read_tensors(path / "coupling.safetensors"),
        skipped=int(about.get("skipped", 0)),
        scaler=about.get("scaler", {}),
    )


def _about(path: Path) -> dict[str, Any]:
    """Return the description inside a checkpoint, after comparing its files with their digests."""
    about: dict[str, Any] = read_json(path / "state.json", {"step": int, "seconds": {"*": float}})
    about = {"sha256": {}, **about}  # checkpoints of earlier versions have none
    if not isinstance(about["sha256"], dict):
        raise ValueError("state.json has no table of sha256")
    if about["step"] != _number(path):
        raise ValueError("state.json is of another step")
    for name, digest in about["sha256"].items():
        if not (path / name).is_file():
            raise ValueError(f"{name} is missing")
        if digest_of_file(path / name) != digest:
            raise ValueError(f"{name} is not as it was written")
    return about


def _weights(path: Path, net: nn.Module) -> dict[str, Tensor]:
    tensors, expected = read_tensors(path), net.state_dict()
    if unlike := sorted(set(tensors) ^ set(expected)):
        raise ValueError(f"{path.name} and the net do not both have {unlike[0]}")
    for name, value in tensors.items():
        if value.shape != expected[name].shape:
            raise ValueError(f"{path.name} has {name} of shape {tuple(value.shape)}, not {tuple(expected[name].shape)}")
        if value.dtype != expected[name].dtype:
            raise ValueError(f"{path.name} has {name} as {value.dtype}, not {expected[name].dtype}")
    _check_finite(path, tensors)
    return tensors


def _check_finite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    for name, value in tensors.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise ValueError(f"{path.name} has values in {name} that are not finite")


def _moments(path: Path, optimizer: torch.optim.Optimizer) -> dict[int, dict[str, Tensor]]:
    """Return the optimizer's state by the number of the parameter."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    moments: dict[int, dict[str, Tensor]] = {}
    tensors = read_tensors(path)
    _check_finite(path, tensors)
    for key, value in tensors.items():
        number, _, name = key.partition(".")
        if not number.isdigit() or int(number) >= len(parameters):
            raise ValueError(f"{path.name} has {key}; there are {len(parameters)} parameters")
        if value.ndim and value.shape != parameters[int(number)].shape:
            raise ValueError(f"{path.name} has {key} of another shape than its parameter")
        moments.setdefault(int(number), {})[name] = value
    if {frozenset(values) for values in moments.values()} != {_averages_of(optimizer)}:
        raise ValueError(f"{path.name} must hold the same averages of every trained parameter")
    return moments


def _averages_of(optimizer: torch.optim.Optimizer) -> frozenset[str]:
    """Return the names of the averages that an optimizer keeps for every parameter."""
    if isinstance(optimizer, torch.optim.SGD):
        return frozenset(("momentum_buffer",))
    return frozenset(("step", "exp_avg", "exp_avg_sq"))


def _put(state: State, read: _Read) -> None:
    state.net.load_state_dict(read.net)
    state.ema.load_state_dict(read.ema)
    state.teacher = None
    if read.teacher is not None:
        state.teacher = teacher_of(state.net)
        state.teacher.load_state_dict(read.teacher)
    groups = state.optimizer.state_dict()["param_groups"]
    state.optimizer.load_state_dict({"state": read.moments, "param_groups": groups})
    state.memory, state.step, state.seconds = read.memory, read.step, dict(read.seconds)
    state.skipped = read.skipped
    if state.scaler is not None and read.scaler:
        state.scaler.load_state_dict(read.scaler)
