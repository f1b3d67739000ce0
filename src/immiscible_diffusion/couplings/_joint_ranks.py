"""Messages between the processes of a joint assignment; a no-op in one process."""

from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["Ranks"]


@dataclass(frozen=True)
class Ranks:
    """The processes that share an assignment, as one of them sees them; a world of 1 needs no process group."""

    group: Any
    rank: int
    world: int
    traffic: MutableMapping[str, int]

    @staticmethod
    def of(group: Any, traffic: MutableMapping[str, int]) -> "Ranks":
        """Return the processes of a group; None stands for all, or for this one alone where none are initialised.

        Raises:
            ValueError: this process is not in the group.
        """
        if group is None and not (dist.is_available() and dist.is_initialized()):
            return Ranks(None, 0, 1, traffic)
        group = dist.group.WORLD if group is None else group
        rank = dist.get_rank(group)
        if rank < 0:
            raise ValueError("this process is not in the group that it was given")
        return Ranks(group, rank, dist.get_world_size(group), traffic)

    @property
    def device(self) -> str:
        """Where the group's backend takes tensors: the host, if it can, since there the problem is solved."""
        return "cpu" if "cpu:" in dist.get_backend_config(self.group) else "cuda"

    def exchange(self, words: list[int]) -> list[list[int]]:
        """Return the words of every process, in the order of ranks."""
        if self.world == 1:
            return [words]
        mine = torch.tensor(words, device=self.device)
        everyone = [torch.empty_like(mine) for _ in range(self.world)]
        dist.all_gather(everyone, mine, group=self.group)
        self._count("header", mine)
        return [each.tolist() for each in everyone]

    def send(self, tensor: Tensor, rank: int, what: str) -> None:
        """Send a tensor as bytes, which every backend can."""
        tensor = tensor.contiguous().view(torch.uint8).to(self.device)
        dist.send(tensor, dist.get_global_rank(self.group, rank), group=self.group)
        self._count(what, tensor)

    def receive(self, into: Tensor, rank: int) -> None:
        """Receive a message from a process into a contiguous tensor on the host."""
        arrived = into.view(torch.uint8).to(self.device)
        dist.recv(arrived, dist.get_global_rank(self.group, rank), group=self.group)
        into.view(torch.uint8).copy_(arrived)

    def _count(self, what: str, tensor: Tensor) -> None:
        self.traffic[what] = self.traffic.get(what, 0) + tensor.nbytes
