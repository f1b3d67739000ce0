import math

import pytest

from immiscible_diffusion.report.speedup import Curve, arrival, difference, mean_bounds, pairs_of, speedup

pytestmark = pytest.mark.medium


def falling(pace: float, noise: float = 0.0) -> Curve:
    """A distance that falls as a power of the step, ``pace`` times as fast."""
    return [(step, 100 * (pace * step / 100) ** -0.5 + noise) for step in range(100, 1601, 100)]


def test_a_known_speedup_is_found() -> None:
    gain = speedup({s: falling(1 + s / 10) for s in range(3)}, {s: falling(3 * (1 + s / 10)) for s in range(3)})
    assert gain.ratio == pytest.approx(3.0, rel=0.01)  # linear in log between evaluations
    assert gain.interval is not None
    assert gain.interval[0] <= 3.02
    assert gain.interval[1] >= 2.98
    assert mean_bounds(gain.arm) == pytest.approx((1600 / 3, 1600 / 3), rel=0.01)


def test_equal_arms_have_ratio_one() -> None:
    found = speedup({0: falling(1), 1: falling(2)}, {0: falling(1), 1: falling(2)})
    assert (found.ratio, found.interval) == (1.0, (1.0, 1.0))


def test_an_arm_that_does_not_arrive_has_no_ratio() -> None:
    found = speedup({0: falling(1), 1: falling(1)}, {0: falling(0.5), 1: falling(2)})
    assert found.ratio is None
    assert found.arm[0, 0] == (1600.0, math.inf)
    assert found.arm[1, 1] == pytest.approx((800, 800), rel=0.01)
    assert mean_bounds(found.arm) == pytest.approx((1200, math.inf), rel=0.01)


def test_the_reference_is_counted_by_the_same_rule() -> None:
    """A reference that was as good at half its length is not credited with all of it."""
    flat = [(100, 50.0), (200, 20.0), (300, 25.0), (400, 20.0)]
    found = speedup({0: flat, 1: flat}, {0: flat, 1: flat})
    assert dict(found.reference) == {(0, 0): (200.0, 200.0), (1, 1): (200.0, 200.0)}
    assert found.ratio == 1.0


def test_an_arrival_before_the_first_evaluation_is_a_bound_for_either_arm() -> None:
    """A reference that only gets worse was there at its start: no ratio is known, and none is told."""
    worse: Curve = [(100, 5.0), (200, 6.0), (300, 7.0)]
    both = speedup({0: worse, 1: worse}, {0: worse, 1: worse})
    assert (both.ratio, both.interval, both.bounds) == (None, None, (0.0, math.inf))
    later = speedup({0: worse, 1: worse}, {0: falling(1), 1: falling(1)})
    assert later.ratio is None
    assert later.bounds[1] < 1
    # One seed of the arm that was there at once makes a bound of the mean, and its interval has no upper end.
    some = speedup({s: falling(1) for s in range(3)}, {0: falling(40), 1: falling(3), 2: falling(4)})
    assert some.ratio is None
    assert some.bounds[0] == pytest.approx((16 * 3 * 4) ** (1 / 3), rel=0.01)
    assert some.bounds[1] == math.inf
    assert some.interval is not None
    assert some.interval[0] < some.bounds[0]
    assert some.interval[1] == math.inf
    # Control: where every arrival is enclosed there is a ratio.
    assert speedup({0: falling(1)}, {0: falling(3)}).ratio is not None


def test_interpolation_is_linear_in_the_logarithm() -> None:
    assert arrival([(0, 100.0), (100, 1.0)], 10.0) == pytest.approx((50, 50))
    assert arrival([(10, 5.0), (20, 1.0)], 7.0) == (0, 10)
    assert arrival([(10, 5.0), (20, -0.1)], 0.0) == (20, 20)
    assert arrival([(10, 5.0)], 1.0) == (10, math.inf)


def test_one_seed_has_no_interval() -> None:
    found = speedup({0: falling(1)}, {0: falling(2)})
    assert found.interval is None
    assert found.ratio == pytest.approx(2, rel=0.01)


def test_seeds_must_be_paired() -> None:
    with pytest.raises(ValueError, match="the same seeds"):
        speedup({0: falling(1)}, {1: falling(1)})


def test_without_pairs_the_seeds_are_checked_and_given_pairs_are_used() -> None:
    assert pairs_of({0: 1, 1: 1, 2: 1}, {1: 1, 2: 1, 3: 1}) == [(1, 1), (2, 2)]
    assert pairs_of({0: 1, 1: 1}, {1: 1, 2: 1}) == [(0, 1), (0, 2), (1, 1), (1, 2)]  # one in common is too few
    found = speedup({0: falling(1), 5: falling(1)}, {0: falling(9), 7: falling(2)}, pairs=[(5, 7)])
    assert found.ratio == pytest.approx(2, rel=0.01)
    assert set(found.target) == {5}


def test_a_difference_is_over_its_pairs() -> None:
    paired = difference({0: 1.0, 1: 2.0, 2: 4.0}, {2: 3.0, 1: 1.5, 0: 0.8, 3: 9.0}, [(0, 0), (1, 1), (2, 2)])
    differences = [-0.2, -0.5, -1.0]
    mean, var = sum(differences) / 3, sum((d - sum(differences) / 3) ** 2 for d in differences) / 2
    t = abs(mean) / math.sqrt(var / 3)
    # With two degrees of freedom the t distribution has the closed form p = 1 - t / sqrt(2 + t^2).
    assert paired.p_t == pytest.approx(1 - t / math.sqrt(2 + t**2))
    assert paired.mean == pytest.approx(mean)
    assert paired.arm[0] == pytest.approx((0.8 + 1.5 + 3) / 3)  # the control: 9.0 has no partner
    assert paired.p_permutation == 2 / 2**3
    alike = difference({0: 1.0, 1: 1.0, 2: 1.0}, {0: 2.0, 1: 2.0, 2: 2.0}, [(s, s) for s in range(3)])
    assert (alike.p_t, alike.interval) == (None, (1.0, 1.0))
