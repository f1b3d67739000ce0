"""Sharded tensors on disk: torch's distributed checkpoints, written as safetensors, which hold no pickle."""

import warnings
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["read_shards", "write_shards"]


def write_shards(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Write named tensors, each process its own shards as one file; all processes must call this.

    A tensor that is not sharded, and is the same everywhere, is written by one of them.

    Raises:
        OSError: a process could not write its file; raised in every process.
    """
    dcp = _dcp()
    writer = dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True)
    kept = {name: value.detach() for name, value in tensors.items()}
    try:
        dcp.save(kept, storage_writer=writer)
    except dcp.CheckpointException as error:
        causes = [cause for cause, _ in error.failures.values()]
        raise OSError(f"the shards could not be written to {folder}: {causes[0]}") from error


def read_shards(folder: Path, wanted: Callable[[str], bool], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return named tensors, sharded or whole on the CPU; each process reads alone, without messages.

    Whatever number of processes wrote them: of every file only the parts that are needed are read.

    Args:
        folder: of ``write_shards``.
        wanted: tells of a name whether it is to be read.
        like: tensors by name. Without one, or where its shape is another, the whole tensor is read.

    Raises:
        ValueError: a file is missing or damaged, or this torch is too old.
    """
    try:
        dcp = _dcp()
        reader = dcp.HuggingFaceStorageReader(str(folder))
    except AttributeError as error:
        raise ValueError(f"{folder} is a sharded checkpoint, which torch {torch.__version__} cannot read") from error
    try:
        places = {
            name: _room(tuple(about.size), about.properties.dtype, like.get(name))
            for name, about in reader.read_metadata().state_dict_metadata.items()
            if wanted(name)
        }
        if places:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="torch.distributed is ")  # for one process reads
                dcp.load(places, storage_reader=reader, no_dist=True)
    except (Exception, dcp.CheckpointException) as error:  # damage meets torch and safetensors anywhere
        raise ValueError(f"cannot read {folder}: {error}") from error
    return places


def _dcp() -> Any:
    """Return torch's module of distributed checkpoints, which does not list its names for type checkers."""
    return import_module("torch.distributed.checkpoint")


def _room(size: tuple[int, ...], dtype: torch.dtype, like: Tensor | None) -> Tensor:
    """Return a tensor to be read into."""
    if like is not None and like.shape == size and hasattr(like, "placements"):
        return torch.empty_like(like, dtype=dtype).detach()
    return torch.empty(size, dtype=dtype)
