import itertools

import numpy as np
import pytest
from scipy import stats

from immiscible_diffusion.report.uncertainty import bootstrap_interval, permutation_p, t_interval, t_test_p

pytestmark = pytest.mark.medium


def test_intervals_and_tests_are_those_of_scipy() -> None:
    first, second = np.array([1.0, 2.5, 3.0, 2.2]), np.array([1.4, 3.9, 4.0, 3.0])
    paired = stats.ttest_rel(first, second)
    assert t_interval(first - second) == pytest.approx(tuple(paired.confidence_interval()))
    assert t_test_p(first - second) == pytest.approx(paired.pvalue)
    welch = stats.ttest_ind(first, second[:3], equal_var=False)
    table = first[:, None] - second[None, :3]
    assert t_interval(table) == pytest.approx(tuple(welch.confidence_interval()))
    assert t_test_p(table) == pytest.approx(welch.pvalue)


def test_a_permutation_test_counts_every_rearrangement() -> None:
    """By enumeration, for pairs and for groups of unequal size, where doubling the smaller tail is something else."""
    first, second = np.array([1.0, 2.5, 3.0, 2.2]), np.array([1.4, 3.9, 4.0, 3.0])
    flipped = [np.dot(signs, first - second) / 4 for signs in itertools.product([1, -1], repeat=4)]
    far = np.abs(flipped) >= abs((first - second).mean()) - 1e-12
    assert permutation_p(first, second, paired=True) == pytest.approx(far.mean())
    values, both = np.concatenate([first, second[:3]]), set(range(7))
    drawn = [(list(chosen), list(both - set(chosen))) for chosen in itertools.combinations(range(7), 4)]
    apart = np.array([values[here].mean() - values[rest].mean() for here, rest in drawn])
    far = np.abs(apart) >= abs(first.mean() - second[:3].mean()) - 1e-12
    p_value = permutation_p(first, second[:3], paired=False)
    assert p_value == pytest.approx(far.mean())
    doubled = stats.permutation_test(
        (first, second[:3]), lambda a, b, axis: a.mean(axis) - b.mean(axis), permutation_type="independent"
    )
    assert p_value != pytest.approx(doubled.pvalue)  # the control


def test_rounding_hides_no_tie() -> None:
    """Sums of 0.1, 0.2 and 0.3 in another order differ in their last bit; they are as far apart all the same."""
    first, second = np.array([0.1, 0.2, 0.3, 0.7]), np.array([0.3, 0.3, 0.0, 0.3])
    scaled = permutation_p(np.round(10 * first), np.round(10 * second), paired=False)  # the same in whole numbers
    for shift in (0.0, 1000.0):
        assert permutation_p(first + shift, second + shift, paired=False) == scaled


def test_a_table_of_which_a_side_is_constant_and_one_without_any_spread() -> None:
    first, same = np.array([1.0, 2.5, 3.0]), np.array([0.5, 0.5, 0.5])
    expected = stats.t.interval(0.95, 2, loc=first.mean() - 0.5, scale=first.std(ddof=1) / np.sqrt(3))
    assert t_interval(first[:, None] - same[None]) == pytest.approx(expected)
    assert t_interval(np.array([[1.0, 2.0], [2.0, 1.0]])) == (1.5, 1.5)
    assert t_test_p(np.array([[1.0, 2.0], [2.0, 1.0]])) is None


def test_many_seeds_are_rearranged_at_random() -> None:
    generator = np.random.default_rng(0)
    first = generator.standard_normal(20)
    assert permutation_p(first, first + 0.9, paired=True) == pytest.approx(2**-19, abs=3 / 20_001)
    second = first + generator.standard_normal(20) + 0.5
    for paired in (True, False):
        test = stats.ttest_rel(first, second) if paired else stats.ttest_ind(first, second)
        assert permutation_p(first, second, paired=paired) == pytest.approx(test.pvalue, abs=0.02)


def test_the_bootstrap_is_that_of_all_resamples() -> None:
    values = np.array([0.0, 1.0, 2.5, 3.0, 7.0])
    every = np.array([np.mean(resample) for resample in itertools.product(values, repeat=5)])
    interval = bootstrap_interval(values)
    assert interval == bootstrap_interval(values)
    assert interval is not None
    for bound, share in zip(interval, (0.025, 0.975), strict=True):  # 10,000 draws: s.d. .0016 of either share
        assert (every < bound).mean() <= share + 0.006
        assert (every <= bound).mean() >= share - 0.006
    table = values[:, None] - np.array([0.0, 0.1, 5.0])[None, :]
    apart = bootstrap_interval(table)
    assert apart is not None
    assert apart[1] - apart[0] > interval[1] - interval[0]  # both sides vary
    assert bootstrap_interval(values[:2]) is None


def test_equal_values_and_one_value() -> None:
    assert t_interval(np.array([2.0, 2.0])) == (2.0, 2.0)
    assert t_test_p(np.array([2.0, 2.0])) is None
    assert t_interval(np.array([2.0])) is None
    assert t_test_p(np.array([2.0, 3.0])) is None  # no claim from two pairs
    assert t_test_p(np.array([2.0, 3.0, 4.0])) is not None
    assert permutation_p(np.array([1.0]), np.array([2.0]), paired=True) is None
