import pytest

from immiscible_diffusion.report.speedup import Curve, arrival, speedup
from studies.thresholds import thresholds

pytestmark = pytest.mark.medium

SLOW: dict[int, Curve] = {0: [(100, 40.0), (200, 20.0), (300, 10.0)], 1: [(100, 50.0), (200, 22.0), (300, 9.0)]}
FAST: dict[int, Curve] = {0: [(100, 30.0), (200, 10.0), (300, 8.0)], 1: [(100, 25.0), (200, 12.0), (300, 9.5)]}


def test_each_quality_is_the_references_own_and_the_last_is_the_final_one() -> None:
    by_step = dict(thresholds(SLOW, FAST))
    assert list(by_step) == [200, 300]
    assert by_step[200].target == {0: 20.0, 1: 22.0}
    assert by_step[200].arm == {(0, 0): arrival(FAST[0], 20.0), (1, 1): arrival(FAST[1], 22.0)}
    assert by_step[200].reference == {(0, 0): (200, 200), (1, 1): (200, 200)}
    assert by_step[300] == speedup(SLOW, FAST)
    assert by_step[300].ratio is None  # seed 1 does not arrive
    assert by_step[200].ratio is not None
    # Control: an arm is as fast as itself, whatever is asked for.
    assert [gain.ratio for _, gain in thresholds(SLOW, SLOW)] == [1.0, 1.0]


def test_a_quality_that_was_there_before_is_left_out() -> None:
    bump: dict[int, Curve] = {0: [(100, 9.0), (200, 5.0), (300, 6.0), (400, 4.0)]}
    assert [step for step, _ in thresholds(bump, bump)] == [200, 400]


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="the same seeds"):
        thresholds(SLOW, {0: FAST[0]})
    with pytest.raises(ValueError, match="different steps"):
        thresholds({0: SLOW[0], 1: SLOW[1][:2]}, FAST)
    assert thresholds({0: [(5, 1.0)]}, {0: [(5, 1.0)]}) == []
