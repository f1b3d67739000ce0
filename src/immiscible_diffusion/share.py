"""One process's share of a batch that several processes train on together."""

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["Share", "among_zeros", "gathered"]


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
    padded = part.new_zeros((max(sizes), *part.shape[1:]))
    padded[: len(part)] = part
    sent = padded.view(torch.uint8) if part.dtype != torch.bool else padded.byte()  # bytes, which every backend can
    received = [torch.empty_like(sent) for _ in sizes]
    dist.all_gather(received, sent.contiguous(), group=group)
    rows = [each.bool() if part.dtype == torch.bool else each.view(part.dtype) for each in received]
    return torch.cat([each[:size] for each, size in zip(rows, sizes, strict=True)])


def among_zeros(part: Tensor, sizes: list[int], rank: int) -> Tensor:
    """Return the rows of this process among zeros for the rows of the others, (sum of sizes, ...).

    They stand for all rows where a row's noise depends on that row alone.
    """
    whole = part.new_zeros((sum(sizes), *part.shape[1:]))
    first = sum(sizes[:rank])
    whole[first : first + len(part)] = part
    return whole
