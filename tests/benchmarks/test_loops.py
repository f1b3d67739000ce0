"""Whole training loops against each other."""

import time
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.gpu.data import invented
from benchmarks.loops import bench_loops, bench_processes, diffusers_loop, loops_line
from immiscible_diffusion.couplings import Assignment
from immiscible_diffusion.nets import UNet

pytestmark = pytest.mark.medium

IMAGES, NET = invented(64), UNet(channels=(8,))
OURS = ["this library, independent", "this library, assignment", "this library, assignment, prefetched"]


def checked(rows: list[dict[str, Any]], baseline: str) -> dict[str, dict[str, Any]]:
    assert rows[0]["loop"] == baseline
    assert rows[0]["ratio"] == 1
    assert rows[-1]["loop"] == f"{baseline}, again"
    for row in rows:
        low, high = row["quartiles"]
        assert 0 < low <= row["images_per_second"] <= high
        assert row["baseline"] == baseline
        assert row["loop"] in loops_line(row)
    return {row["loop"]: row for row in rows}


def test_the_loops_of_one_process_are_measured() -> None:
    rows = checked([*bench_loops(IMAGES, NET, batch=16, steps=1, rounds=2)], "diffusers' unconditional example")
    assert {*OURS} < {*rows}


def test_the_loops_of_two_processes_are_measured() -> None:
    rows = [*bench_processes(IMAGES, NET, world=2, batch=16, steps=1, rounds=2)]
    assert {*OURS} < {*checked(rows, "plain DDP")}
    assert {row["processes"] for row in rows} == {2}


def test_a_slow_coupling_lowers_the_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Assignment.__call__

    def slow(self: Assignment, x: Tensor, *args: object, **options: object) -> Tensor:
        time.sleep(0.5)
        return pair(self, x)

    monkeypatch.setattr(Assignment, "__call__", slow)
    rows = {row["loop"]: row for row in bench_loops(IMAGES, NET, batch=16, steps=1, rounds=2)}
    assert rows["this library, assignment"]["ratio"] < 0.5
    assert rows["this library, independent"]["ratio"] > 0.1


def test_the_example_trains() -> None:
    torch.manual_seed(0)
    net = NET.build((3, 8, 8), None)
    losses = diffusers_loop(IMAGES, net, batch=64)
    first = next(losses)
    later = [next(losses) for _ in range(150)][-10:]
    losses.close()
    assert sum(later) / 10 < 0.9 * first
