"""What was published stands beside what was measured, like beside like."""

import pytest

from studies.published import published, published_thresholds

pytestmark = pytest.mark.medium


def numbers(experiment: str, *arms: str) -> dict[str, object]:
    """Return a record in which every arm ends at 2 and independent noise at 4."""
    final = {
        "metric": "frechet",
        "sampling_steps": 1,
        "mean": 2.0,
        "sd": 0.1,
        "difference": -2.0,
        "reference_mean": 4.0,
    }
    return {"experiment": experiment, "finals": [{"arm": arm, **final} for arm in arms]}


def test_a_published_ratio_is_to_independent_noise_of_the_same_task() -> None:
    rows = {row[0]: row for row in published(numbers("painting"), "frechet")}
    assert rows["inside-nearest"][2:4] == ["17.32", f"{17.32 / 18.35:.2f}"]
    assert rows["outside-nearest"][2:4] == ["27.57", f"{27.57 / 29.34:.2f}"]
    assert rows["outside-independent"][3] == "-"


def test_our_end_stands_beside_the_published_end_alone() -> None:
    rows = [row for row in published(numbers("fig4a-table3-consistency", "assignment"), "frechet") if row[7] != "-"]
    assert [(row[0], row[2], row[4]) for row in rows] == [
        ("assignment", "8.58", "800,000"),
        ("assignment", "8.54", "-"),
    ]
    assert rows[0][7:] == ["2 ± 0.1", "0.50", "1"]


def test_the_published_steps_to_a_quality_are_those_of_the_curve() -> None:
    """Each is the logarithmic interpolation of the two published curves, as the file says."""
    rows = {row[1]: row for row in published_thresholds("fig4a-table3-consistency")}
    assert len(rows) == 11
    assert rows["30"][2:5] == ["44,000", "36,000", "1.2 x"]
    for row in rows.values():
        first, second = (int(steps.replace(",", "")) for steps in row[2:4])
        assert abs(first / second - float(row[4].split()[0])) < 0.06
    assert published_thresholds("fig5-table4-ddim") == []
    assert published_thresholds("an experiment of one's own") == []
