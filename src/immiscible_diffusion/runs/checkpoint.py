"""Training states on disk, to resume from. Safetensors and JSON alone, never a pickle."""

import re
import shutil
import warnings
from pathlib import Path

from torch import Tensor

from immiscible_diffusion.files import new_folder, read_json, read_tensors, write_json, write_tensors
from immiscible_diffusion.train import State, teacher_of

__all__ = ["load_newest", "save"]


def save(state: State, folder: Path, *, keep: int = 2) -> Path:
    """Write the state as ``folder/step-<number>/`` and return that path.

    A crash in mid-write leaves the earlier ones; the newest ``keep`` stay.
    """
    target = folder / f"step-{state.step:09d}"
    with new_folder(target) as part:
        write_tensors(part / "net.safetensors", state.net.state_dict())
        write_tensors(part / "ema.safetensors", state.ema.state_dict())
        moments = state.optimizer.state_dict()["state"]
        write_tensors(
            part / "optimizer.safetensors",
            {f"{i}.{name}": value for i, values in moments.items() for name, value in values.items()},
        )
        write_tensors(part / "coupling.safetensors", state.memory)
        if state.teacher is not None:
            write_tensors(part / "teacher.safetensors", state.teacher.state_dict())
        write_json(part / "state.json", {"step": state.step, "seconds": state.seconds})
    for old in _steps(folder)[:-keep]:
        shutil.rmtree(old)
    return target


def load_newest(state: State, folder: Path) -> bool:
    """Load the newest whole checkpoint of the folder into the state; return whether there was one.

    A checkpoint that cannot be read is passed over with a warning, and the one before it is taken.
    """
    for path in reversed(_steps(folder)):
        try:
            _load_state(state, path)
        except (ValueError, RuntimeError, KeyError) as error:
            warnings.warn(f"the checkpoint {path} cannot be used and is passed over: {error}", stacklevel=2)
        else:
            return True
    return False


def _steps(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*") if re.fullmatch(r"step-\d{9}", path.name))


def _load_state(state: State, path: Path) -> None:
    index = read_json(path / "state.json")
    net, ema = read_tensors(path / "net.safetensors"), read_tensors(path / "ema.safetensors")
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in read_tensors(path / "optimizer.safetensors").items():
        i, _, moment = name.partition(".")
        moments.setdefault(int(i), {})[moment] = value
    memory = read_tensors(path / "coupling.safetensors")
    teacher = None
    if (path / "teacher.safetensors").exists():
        teacher = teacher_of(state.net)
        teacher.load_state_dict(read_tensors(path / "teacher.safetensors"))
    state.net.load_state_dict(net)
    state.ema.load_state_dict(ema)
    groups = state.optimizer.state_dict()["param_groups"]
    state.optimizer.load_state_dict({"state": moments, "param_groups": groups})
    state.memory, state.teacher = memory, teacher
    state.step, state.seconds = int(index["step"]), dict(index["seconds"])
