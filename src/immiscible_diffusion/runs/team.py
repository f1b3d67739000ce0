"""The processes that carry out one run together: the first one reads and writes, all train."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from immiscible_diffusion.extras import needs
from immiscible_diffusion.share import Share, gathered

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["ALONE", "Team", "started_team"]

T = TypeVar("T")


@dataclass(frozen=True)
class Team:
    """One process of several, or one alone without an accelerator."""

    accelerator: "Accelerator | None" = None

    @property
    def share(self) -> Share:
        """This process's share of the rows."""
        if self.accelerator is None:
            return Share()
        return Share(self.accelerator.process_index, self.accelerator.num_processes)

    @property
    def alone(self) -> bool:
        """Whether there is no other process."""
        return self.share.world == 1

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        return torch.device("cpu") if self.accelerator is None else self.accelerator.device

    @property
    def first(self) -> bool:
        """Whether this is the process that reads and writes files."""
        return self.share.rank == 0

    def once(self, work: Callable[[], T]) -> T:
        """Do the work in the first process, and return its result in every process.

        Raises:
            Exception: what the work raised, in every process.
        """
        if self.accelerator is None:
            return work()
        from accelerate.utils import broadcast_object_list

        outcome: list[Any] = [None, None]
        if self.first:
            try:
                outcome[0] = work()
            except Exception as error:
                outcome[1] = error
        value, failure = broadcast_object_list(outcome)
        if failure is not None:
            raise failure
        return value  # type: ignore[no-any-return]

    def gathered(self, value: T) -> list[T]:
        """Return the values of all processes, in the order of ranks."""
        if self.accelerator is None:
            return [value]
        from accelerate.utils import gather_object

        values: list[T] = gather_object([value])
        return values

    def in_turn(self, work: Callable[[], T]) -> T:
        """Do the work in every process, first in process 0, so that the others find its files.

        Raises:
            Exception: what the work raised; where it did so in the first process, in every one.
        """
        made: list[T] = []
        self.once(lambda: made.append(work()))
        return made[0] if made else work()

    def divided(self, parts: Sequence[Callable[[], Tensor]], device: torch.device) -> Tensor:
        """Return the rows of all parts, in order, in every process; each part is made in one of them.

        Args:
            parts: make rows (n, ...) of one shape and type.
            device: where the processes exchange them.
        """
        rank, world = self.share
        mine = {i: parts[i]() for i in range(rank, len(parts), world)}
        if world == 1:
            return torch.cat(list(mine.values()))
        mine_of = torch.tensor([[len(mine[i]) if i in mine else 0 for i in range(len(parts))]])
        counts: list[int] = gathered(mine_of.to(device), [1] * world).sum(0).tolist()
        sizes = [sum(counts[part::world]) for part in range(world)]
        like = self.once(lambda: mine[0][:0])
        rows = torch.cat([like, *mine.values()])
        every = torch.split(gathered(rows.to(device), sizes).cpu(), sizes)
        made = [iter(torch.split(block, counts[part::world])) for part, block in enumerate(every)]
        return torch.cat([next(made[i % world]) for i in range(len(parts))])


ALONE = Team()


@contextmanager
def started_team(device: str) -> Iterator[Team]:
    """Be one of the processes that ``accelerate launch`` or ``torchrun`` started; alone if they did not.

    Args:
        device: ``cpu`` or ``cuda``.

    Raises:
        ImportError: accelerate is not installed.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    with needs("track", "training in several processes"):
        from accelerate import Accelerator
    accelerator = Accelerator(cpu=device == "cpu", mixed_precision="no")
    try:
        yield Team(accelerator)
    finally:
        accelerator.end_training()
