"""The tensors of a training state, as a checkpoint holds them: whole, or the shards of this process."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from immiscible_diffusion.files import read_tensors, write_tensors
from immiscible_diffusion.runs.shard_files import read_shards, write_shards
from immiscible_diffusion.train import State
from immiscible_diffusion.train.shards import local_part, part_like, sharded_like

__all__ = ["checked_moments", "checked_weights", "put_weights", "read_average", "read_parts", "write_parts"]

SHARDS = "shards"
"""The folder of sharded tensors in a checkpoint."""


def write_parts(state: State, folder: Path) -> None:
    """Write weights, their averages and the optimizer; where they are sharded, all processes must call this.

    Raises:
        OSError: a process could not write its part.
    """
    moments = state.optimizer.state_dict()["state"]
    parts = {
        "net": state.net.state_dict(),
        "ema": state.ema.state_dict(),
        "optimizer": {f"{i}.{name}": t for i, values in moments.items() for name, t in values.items() if t is not None},
    }
    parts |= {} if state.teacher is None else {"teacher": state.teacher.state_dict()}
    if state.shards is not None:
        named = {f"{kind}.{name}": value for kind, tensors in parts.items() for name, value in tensors.items()}
        write_shards(folder / SHARDS, named)
        return
    for kind, tensors in parts.items():
        write_tensors(folder / f"{kind}.safetensors", tensors)


def read_average(folder: Path) -> dict[str, Tensor]:
    """Return the averaged weights of a checkpoint, whole.

    Raises:
        ValueError: they are missing or damaged.
    """
    if not (folder / SHARDS).is_dir():
        return read_tensors(folder / "ema.safetensors")
    read = read_shards(folder / SHARDS, lambda name: name.startswith("ema."), {})
    return {name.removeprefix("ema."): value for name, value in read.items()}


def read_parts(folder: Path, state: State) -> dict[str, dict[str, Tensor]]:
    """Return the tensors of ``net``, ``ema``, ``optimizer`` and, if there is one, ``teacher``.

    Tensors are whole. Where those of the state and of the checkpoint are sharded, they are the shards of this process.

    Raises:
        ValueError: they are missing or damaged.
    """
    if not (folder / SHARDS).is_dir():
        names = ["net", "ema", "optimizer", *(["teacher"] if (folder / "teacher.safetensors").exists() else [])]
        return {name: read_tensors(folder / f"{name}.safetensors") for name in names}
    like = {f"{kind}.{name}": t for kind in ("net", "ema", "teacher") for name, t in state.net.state_dict().items()}
    averages = _averages_of(state.optimizer)
    like |= {f"optimizer.{i}.{name}": t for i, t in enumerate(_parameters(state.optimizer)) for name in averages}
    tensors: dict[str, dict[str, Tensor]] = {"net": {}, "ema": {}, "optimizer": {}}
    for name, value in read_shards(folder / SHARDS, lambda name: True, like).items():
        kind, _, rest = name.partition(".")
        tensors.setdefault(kind, {})[rest] = value
    return tensors


def checked_weights(what: str, tensors: dict[str, Tensor], net: nn.Module) -> dict[str, Tensor]:
    """Return tensors that fit a net.

    Args:
        what: the tensors, as errors call them.
        tensors: what a checkpoint holds.
        net: what they are for.

    Raises:
        ValueError: names, shapes or types differ, or a value is not finite.
    """
    expected = net.state_dict()
    if unlike := sorted(set(tensors) ^ set(expected)):
        raise ValueError(f"{what} and the net do not both have {unlike[0]}")
    for name, value in tensors.items():
        if value.shape != expected[name].shape:
            raise ValueError(f"{what} has {name} of shape {tuple(value.shape)}, not {tuple(expected[name].shape)}")
        if value.dtype != expected[name].dtype:
            raise ValueError(f"{what} has {name} as {value.dtype}, not {expected[name].dtype}")
    _check_finite(what, tensors)
    return tensors


def _check_finite(what: str, tensors: Mapping[str, Tensor]) -> None:
    for name, value in tensors.items():
        if value.is_floating_point() and not bool(torch.isfinite(local_part(value)).all()):
            raise ValueError(f"{what} has values in {name} that are not finite")


def checked_moments(tensors: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> dict[int, dict[str, Tensor]]:
    """Return the optimizer's state by the number of the parameter.

    Raises:
        ValueError: the tensors do not fit the optimizer, or a value is not finite.
    """
    parameters = _parameters(optimizer)
    moments: dict[int, dict[str, Tensor]] = {}
    _check_finite("optimizer", tensors)
    for key, value in tensors.items():
        number, _, name = key.partition(".")
        if not number.isdigit() or int(number) >= len(parameters):
            raise ValueError(f"optimizer has {key}; there are {len(parameters)} parameters")
        parameter = parameters[int(number)]
        if value.ndim and value.shape != parameter.shape:
            raise ValueError(f"optimizer has {key} of another shape than its parameter")
        moments.setdefault(int(number), {})[name] = sharded_like(value, parameter) if value.ndim else value
    if {frozenset(values) for values in moments.values()} != {_averages_of(optimizer)}:
        raise ValueError("optimizer must hold the same averages of every trained parameter")
    return moments


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _averages_of(optimizer: torch.optim.Optimizer) -> frozenset[str]:
    """Return the names of the averages that an optimizer keeps for every parameter."""
    if isinstance(optimizer, torch.optim.SGD):
        return frozenset(("momentum_buffer",))
    return frozenset(("step", "exp_avg", "exp_avg_sq"))


@torch.no_grad()
def put_weights(module: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Put tensors into a net that they fit, of sharded weights the shards of this process."""
    for name, kept in module.state_dict().items():
        local_part(kept).copy_(part_like(tensors[name], kept))
