"""Two processes that draw the same noise are told, once; those with seeds of their own are not.

Run as a program, this file is one of two processes; the test starts them and looks at what they were told.
"""

import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from immiscible_diffusion import MisuseWarning
from immiscible_diffusion.couplings import Assignment, Independent, Mixed, Nearest
from immiscible_diffusion.couplings._shared_noise import _digest
from immiscible_diffusion.processes import results
from immiscible_diffusion.streams import stream

pytestmark = pytest.mark.medium


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def noise_stream(seed: int) -> torch.Generator:
    return stream(seed, 0, "noise")


def told(call: Callable[[], object]) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    assert all(each.category is MisuseWarning and each.filename == __file__ for each in caught)
    return [str(each.message) for each in caught]


def process(rank: int, folder: Path) -> None:
    """Draw as two processes do, in turn where it matters who comes second."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    said: dict[str, list[str]] = {}

    def in_turn(name: str, call: Callable[[], object]) -> None:
        for turn in range(2):
            if turn == rank:
                said[name] = told(call)
            dist.barrier()

    x, generator = randn(16, 8), noise_stream
    couple, nearest = Assignment(), Nearest()
    in_turn("same seed", lambda: couple(x, generator=generator(0)))
    in_turn("the same object again", lambda: couple(x, generator=generator(0)))
    in_turn("another order of rows", lambda: Assignment()(x.roll(rank, 0), generator=generator(1)))
    in_turn("nearest, same batch", lambda: nearest(x, generator=generator(2)))
    in_turn("own seeds", lambda: Assignment()(x, generator=generator(10 + rank)))
    in_turn("in a wrapper", lambda: Mixed(Assignment())(x, generator=generator(3), step=1))
    in_turn("few numbers", lambda: Independent()(x[:1], generator=generator(4)))
    if rank == 0:  # alone: nothing waits for the other process
        said["alone"] = told(lambda: Assignment()(x, generator=generator(5)))
        said["twice in one process"] = told(
            lambda: (Assignment()(x, generator=generator(6)), Nearest()(x, generator=generator(6)))
        )
    (folder / f"{rank}.json").write_text(json.dumps(said), encoding="utf-8")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("processes")
    list(results(process, [(rank, folder) for rank in range(2)], 2))
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("case", ["same seed", "another order of rows", "nearest, same batch", "in a wrapper"])
def test_the_second_process_is_told(case: str, said: list[dict[str, Any]]) -> None:
    assert said[0][case] == []
    assert 1 <= len(said[1][case]) <= 2
    for message in said[1][case]:
        assert message.startswith("processes 0 and 1 draw the same noise")
        assert "torch.manual_seed(seed + rank)" in message


@pytest.mark.parametrize("case", ["the same object again", "own seeds", "few numbers", "alone", "twice in one process"])
def test_others_are_not(case: str, said: list[dict[str, Any]]) -> None:
    assert [each.get(case, []) for each in said] == [[], []]


def test_the_digest_knows_the_noise_and_not_its_order() -> None:
    noise = randn(12, 5)
    assert _digest(noise) == _digest(noise.flip(0))
    assert _digest(noise) != _digest(randn(12, 5, seed=1))
    assert _digest(noise) != _digest(noise.bfloat16())
