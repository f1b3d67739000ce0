"""Pairing the rows of several processes: bytes that are exchanged, and milliseconds a batch."""

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist

from benchmarks.measuring import now, spread_ms
from immiscible_diffusion.couplings import Assignment, Joint
from immiscible_diffusion.couplings._shared_noise import shared_on_purpose
from immiscible_diffusion.processes import results
from immiscible_diffusion.share import gathered
from immiscible_diffusion.streams import stream

__all__ = ["bench_joint", "joint_line"]


class RowsToAll:
    """Exact assignment as the training loop spreads it: every process gets all rows and pairs them all."""

    def __init__(self) -> None:
        self.group = dist.new_group()

    def __call__(self, x: torch.Tensor, *, step: int) -> torch.Tensor:
        """Return the noise of this process's rows."""
        sizes = [len(x)] * dist.get_world_size()
        with shared_on_purpose():
            noise = Assignment()(gathered(x, sizes, self.group), generator=stream(0, step, "noise"))
        return torch.split(noise, sizes)[dist.get_rank()].clone()


ARMS: dict[str, Any] = {"rows to process 0": Joint, "rows to all": RowsToAll, "own rows alone": Assignment}
"""The last is no alternative: it shows how long pairing takes where each process keeps to its own rows."""


def bench_joint(*, rows: int, sizes: list[int], worlds: list[int], repeats: int) -> Iterator[dict[str, Any]]:
    """Yield for every number of processes, length of a row and arm the time of a batch and the bytes it moves.

    The arms take turns. A time is that of the slowest process; the first call of each, which warms up, is left out.

    Args:
        rows: of all processes together.
        sizes: numbers in a row.
        worlds: numbers of processes, on one machine, over gloo.
        repeats: timed batches of each arm.
    """
    for world in worlds:
        for d in sizes:
            with TemporaryDirectory() as folder:
                tasks = [(rank, world, rows, d, repeats, folder) for rank in range(world)]
                (made,) = [result for result in results(_process, tasks, world) if result is not None]
            for arm, (spent, received) in made.items():
                yield {
                    "arm": arm,
                    "processes": world,
                    "rows": rows,
                    "d": d,
                    **spread_ms(spent),
                    "received_bytes": received,
                }


def _process(
    rank: int, world: int, rows: int, d: int, repeats: int, folder: str
) -> dict[str, tuple[list[float], int]] | None:
    """Be one of the processes; the first returns the seconds of each call and the bytes that all received in one."""
    torch.set_num_threads(1)
    torch.manual_seed(rank)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    meeting = f"file://{Path(folder).as_posix()}/meeting"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world)
    couplings = {name: make() for name, make in ARMS.items()}
    spent: dict[str, list[float]] = {name: [] for name in couplings}
    received = dict.fromkeys(couplings, 0)
    for step in range(repeats + 1):
        draws = torch.Generator().manual_seed(step * world + rank)
        x = torch.randn(rows // world, d, generator=draws)
        for name, couple in couplings.items():
            dist.barrier()
            counted = _ByteCounter()
            begun = now()
            with counted:
                couple(x, step=step)
            values = torch.tensor([now() - begun, float(counted.bytes)], dtype=torch.float64)
            slowest, total = values[:1].clone(), values[1:].clone()
            dist.all_reduce(slowest, dist.ReduceOp.MAX)
            dist.all_reduce(total)
            if step:
                spent[name].append(float(slowest))
            received[name] = int(total)
    dist.destroy_process_group()
    return {name: (spent[name], received[name]) for name in couplings} if rank == 0 else None


class _ByteCounter:
    """Counts the bytes that this process receives from others."""

    def __enter__(self) -> "_ByteCounter":
        self.bytes, self.patches, rank = 0, ExitStack(), dist.get_rank()
        gather_all, gather, scatter = dist.all_gather, dist.gather, dist.scatter

        def counting_all(into: list[torch.Tensor], mine: torch.Tensor, **options: Any) -> None:
            self.bytes += sum(part.nbytes for part in into) - mine.nbytes
            gather_all(into, mine, **options)

        def counting_one(mine: torch.Tensor, into: list[torch.Tensor] | None, **options: Any) -> None:
            self.bytes += sum(part.nbytes for part in into) - mine.nbytes if into else 0
            gather(mine, into, **options)

        def counting_scatter(into: torch.Tensor, parts: list[torch.Tensor] | None, **options: Any) -> None:
            self.bytes += into.nbytes if rank else 0
            scatter(into, parts, **options)

        for name, count in (("all_gather", counting_all), ("gather", counting_one), ("scatter", counting_scatter)):
            self.patches.enter_context(patch.object(dist, name, count))
        return self

    def __exit__(self, *error: object) -> None:
        self.patches.close()


def joint_line(row: Mapping[str, Any]) -> str:
    """Return one measured row for the terminal."""
    return (
        f"{row['processes']} processes, {row['rows']} x {row['d']}, {row['arm']:<22} {row['median_ms']:9.1f} ms "
        f"({row['min_ms']:.1f} to {row['max_ms']:.1f})  {row['received_bytes'] / 2**20:8.2f} MiB"
    )
