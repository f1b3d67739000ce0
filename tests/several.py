"""Start the processes of one training for a test, as ``torchrun`` would."""

import os
import socket
from collections.abc import Callable
from typing import Any

from immiscible_diffusion.processes import results

SHARDED = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
"""The environment that accelerate reads whether to shard weights in."""


def several(work: Callable[..., Any], world: int, *arguments: Any, **environment: str) -> list[Any]:
    """Return what ``work(rank, *arguments)`` returns in each of several processes, in the order in which they end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    tasks = [(work, rank, world, port, arguments, environment) for rank in range(world)]
    return list(results(_be_one, tasks, world))


def _be_one(
    work: Callable[..., Any], rank: int, world: int, port: int, arguments: tuple[Any, ...], environment: dict[str, str]
) -> Any:
    import torch

    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_PORT": str(port)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo", "ACCELERATE_USE_CPU": "true"}
    os.environ |= {"OMP_NUM_THREADS": "1"} | environment
    torch.set_num_threads(1)
    try:
        return work(rank, *arguments)
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
