"""The benchmark of semidiscrete pairs: even cells for more noises, and searches as the coupon collector counts them."""

import pytest
import torch

from benchmarks.semidiscrete import bench_semidiscrete, searches_of_keeping, semidiscrete_line


def test_the_rows_hold_the_fit_and_both_ways() -> None:
    data = torch.randn(100, 6, generator=torch.Generator().manual_seed(0))
    rows = list(bench_semidiscrete(data, noises=(1, 30), batch=8, epochs=2))
    assert [row["what"] for row in rows] == ["fit", "fit", "noise first", "noise kept", "noise kept"]
    first, last = (row["unevenness"] for row in rows[:2])
    assert last < 0.6 * first
    assert rows[1]["seconds"] > rows[0]["seconds"] > 0
    assert all(semidiscrete_line(row) for row in rows)


@pytest.mark.slow
def test_noise_kept_takes_as_many_searches_as_a_collection_of_coupons() -> None:
    """Once, ln n + 0.58 = 7.5 searches a row on average, at 1.3 of spread; in many epochs less; one by one no less."""
    searches = list(searches_of_keeping(1000, 1, 30, keep=10**6))
    assert 4 <= searches[0] <= 12
    assert searches[-1] < 2.5
    assert next(reversed(list(searches_of_keeping(1000, 1, 30, keep=1)))) > 4
