"""Runs killed at random moments end as uninterrupted ones; one that does not is seen."""

import random
from pathlib import Path

import pytest

from benchmarks import chaos

pytestmark = pytest.mark.slow


def test_killed_runs_end_as_uninterrupted_ones(tmp_path: Path) -> None:
    rows = list(chaos.bench_chaos(6, tmp_path))
    assert sum(row["kills"] for row in rows) == 6
    assert all(row["equal"] for row in rows), rows


def test_a_run_that_ends_otherwise_is_seen(tmp_path: Path) -> None:
    whole = chaos._whole(tmp_path / "whole", 1)
    name = next(name for name in whole if name.endswith("net.safetensors"))
    row = chaos._trial(tmp_path / "other", 1, {**whole, name: "", "gone.txt": ""}, random.Random(0), 0)  # noqa: S311
    assert (row["equal"], row["unlike"]) == (False, sorted([name, "gone.txt"]))
