"""Do several training processes draw the same noise, because their seeds are the same?"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.distributed as dist
from torch import Tensor

from immiscible_diffusion.tensors import batch_rows

__all__ = ["several_processes", "shared_noise", "shared_on_purpose"]

_LEAST = 16
"""Fewer numbers may be equal by chance in bf16."""
_MOST = 64
_on_purpose = ContextVar("_on_purpose", default=False)


@contextmanager
def shared_on_purpose() -> Iterator[None]:
    """Say that every process draws the noise of all rows here, of which it keeps its own."""
    token = _on_purpose.set(True)
    try:
        yield
    finally:
        _on_purpose.reset(token)


def several_processes() -> bool:
    """Return whether torch.distributed runs more than one process, each with noise of its own."""
    return not _on_purpose.get() and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def shared_noise(noise: Tensor) -> str:
    """Return a warning if another process has drawn this noise, in whatever order of rows; else the empty text.

    No process waits for another: each leaves a digest in the key-value store that the process group was started with,
    and reads who was the first to leave it. A collective would stop a program of which one process alone calls a
    coupling, and might overtake the exchange of gradients.
    """
    if noise.numel() < _LEAST:
        return ""
    key, rank = f"immiscible_diffusion/noise/{_digest(noise)}", dist.get_rank()
    try:
        first = int(dist.distributed_c10d._get_default_store().compare_set(key, "", str(rank)))
    except RuntimeError:  # a store of one's own that has no such operation
        return ""
    if first == rank:
        return ""
    return (
        f"processes {first} and {rank} draw the same noise, and so train on the same pairs: give each process its "
        f"own seed, such as torch.manual_seed(seed + rank) or a generator seeded so, and its own part of the data. "
        f"Parts of one model (tensor parallelism) share noise rightly; ignore this there"
    )


def _digest(noise: Tensor) -> str:
    """Return a digest of some numbers that does not depend on the order of rows."""
    rows = batch_rows(noise.detach())[:, :_MOST].double().cpu()
    some = torch.cat([rows[:, 0].sort().values, rows[rows[:, 0].argmin()]])
    return hashlib.blake2b(some.numpy().tobytes(), digest_size=16).hexdigest()
