"""One process's share of a batch that several processes train on together."""

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["Share", "among_zeros", "collected", "gathered", "handed_out"]


class Share(NamedTuple):
    """The ``rank``-th of ``world`` parts of every batch, in order; their sizes differ by one row at most.

    >>> [Share(rank, 3).of(torch.arange(4)).tolist() for rank in range(3)]
    [[0, 1], [2], [3]]
    """

    rank: int = 0
    world: int = 1

    def of(self, rows: Tensor) -> Tensor:
        """Return this share of a batch, (<= b, ...)."""
        return rows.tensor_split(self.world)[self.rank]

    def sizes(self, b: int) -> list[int]:
        """Return the rows of every share of a batch of b rows."""
        return [b // self.world + (rank < b % self.world) for rank in range(self.world)]


def gathered(part: Tensor, sizes: list[int], group: Any = None) -> Tensor:
    """Return the rows of all processes of a group, in the order of ranks, (sum of sizes, ...), in each of them.

    Args:
        part: the rows of this process, on the device of the group's backend.
        sizes: how many rows each process has.
        group: of torch.distributed; None for all processes.
    """
    if len(sizes) == 1:
        return part
    sent = _padded_bytes(part, max(sizes))
    received = [torch.empty_like(sent) for _ in sizes]
    dist.all_gather(received, sent, group=group)
    return _joined(received, part.dtype, sizes)


def collected(part: Tensor, sizes: list[int], group: Any = None) -> Tensor | None:
    """Return the rows of all processes, in the order of ranks, in process 0; None in the others.

    Args:
        part: the rows of this process, on the device of the group's backend.
        sizes: how many rows each process has.
        group: of torch.distributed, with all processes in it.
    """
    first = dist.get_rank() == 0
    sent = _padded_bytes(part, max(sizes))
    received = [torch.empty_like(sent) for _ in sizes] if first else None
    dist.gather(sent, received, dst=0, group=group)
    if received is None:
        return None
    return _joined(received, part.dtype, sizes)


def handed_out(whole: Tensor | None, like: Tensor, sizes: list[int], group: Any = None) -> Tensor:
    """Return to each process its part of the rows that process 0 holds; the inverse of ``collected``.

    Args:
        whole: all rows, (sum of sizes, ...), in process 0; None in the others.
        like: has the shape, the type and the device of this process's part.
        sizes: how many rows each process gets.
        group: of torch.distributed, with all processes in it.
    """
    received = torch.empty_like(_padded_bytes(like, max(sizes)))
    parts = None if whole is None else [_padded_bytes(part, max(sizes)) for part in torch.split(whole, sizes)]
    dist.scatter(received, parts, src=0, group=group)
    return _from_bytes(received, like.dtype)[: len(like)]


def _padded_bytes(part: Tensor, rows: int) -> Tensor:
    """Return rows as bytes, which every backend can send, with zeros after them up to this number of rows."""
    padded = part.new_zeros((rows, *part.shape[1:]))
    padded[: len(part)] = part
    return padded.byte() if part.dtype == torch.bool else padded.view(torch.uint8)


def _joined(received: list[Tensor], dtype: torch.dtype, sizes: list[int]) -> Tensor:
    """Return the rows that processes sent as padded bytes, in their order."""
    return torch.cat([_from_bytes(rows, dtype)[:size] for rows, size in zip(received, sizes, strict=True)])


def _from_bytes(sent: Tensor, dtype: torch.dtype) -> Tensor:
    return sent.bool() if dtype == torch.bool else sent.view(dtype)


def among_zeros(part: Tensor, sizes: list[int], rank: int) -> Tensor:
    """Return the rows of this process among zeros for the rows of the others, (sum of sizes, ...).

    They stand for all rows where a row's noise depends on that row alone.
    """
    whole = part.new_zeros((sum(sizes), *part.shape[1:]))
    first = sum(sizes[:rank])
    whole[first : first + len(part)] = part
    return whole
