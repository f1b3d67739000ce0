import itertools

import numpy as np
import pytest
from scipy import stats

from immiscible_diffusion.report.uncertainty import bootstrap_interval, permutation_p, t_interval, t_test_p


def test_intervals_and_tests_are_those_of_scipy() -> None:
    first, second = np.array([1.0, 2.5, 3.0, 2.2]), np.array([1.4, 3.9, 4.0, 3.0])
    paired = stats.ttest_rel(first, second)
    assert t_interval(first - second) == pytest.approx(tuple(paired.confidence_interval()))
    assert t_test_p(first - second) == pytest.approx(paired.pvalue)
    welch = stats.ttest_ind(first, second[:3], equal_var=False)
    table = first[:, None] - second[None, :3]
    assert t_interval(table) == pytest.approx(tuple(welch.confidence_interval()))
    assert t_test_p(table) == pytest.approx(welch.pvalue)
    for kind, ours in (("samples", second), ("independent", second[:3])):
        exact = stats.permutation_test(
            (first, ours), lambda a, b, axis: a.mean(axis) - b.mean(axis), permutation_type=kind, vectorized=True
        )
        # scipy doubles the smaller tail; ours counts both, which differs for groups of unequal size.
        as_far = np.abs(exact.null_distribution) >= abs(exact.statistic) - 1e-12
        assert permutation_p(first, ours, paired=kind == "samples") == pytest.approx(as_far.mean())


def test_many_seeds_are_rearranged_at_random() -> None:
    generator = np.random.default_rng(0)
    first = generator.standard_normal(20)
    assert permutation_p(first, first + 0.9, paired=True) == pytest.approx(2**-19, abs=2 / 65_537)
    second = first + generator.standard_normal(20) + 0.5
    for paired in (True, False):
        test = stats.ttest_rel(first, second) if paired else stats.ttest_ind(first, second)
        assert permutation_p(first, second, paired=paired) == pytest.approx(test.pvalue, abs=0.02)


def test_the_bootstrap_is_that_of_all_resamples() -> None:
    values = np.array([0.0, 1.0, 2.5, 3.0, 7.0])
    every = np.array([np.mean(each) for each in itertools.product(values, repeat=5)])
    found = bootstrap_interval(values)
    assert found == bootstrap_interval(values)
    assert found is not None
    for bound, share in zip(found, (0.025, 0.975), strict=True):  # 10,000 draws: s.d. .0016 of either share
        assert (every < bound).mean() <= share + 0.006
        assert (every <= bound).mean() >= share - 0.006
    table = values[:, None] - np.array([0.0, 0.1, 5.0])[None, :]
    apart = bootstrap_interval(table)
    assert apart is not None
    assert apart[1] - apart[0] > found[1] - found[0]  # both sides vary
    assert bootstrap_interval(values[:2]) is None


def test_equal_values_and_one_value() -> None:
    assert t_interval(np.array([2.0, 2.0])) == (2.0, 2.0)
    assert t_test_p(np.array([2.0, 2.0])) is None
    assert t_interval(np.array([2.0])) is None
    assert permutation_p(np.array([1.0]), np.array([2.0]), paired=True) == 1.0
