"""The time and the bytes of pairing over several processes."""

import pytest

from benchmarks.joint import ARMS, bench_joint, joint_line

pytestmark = pytest.mark.medium


def test_the_bytes_are_those_of_the_other_processes_rows() -> None:
    rows, d, world = 10, 6, 2
    measured = {row["arm"]: row for row in bench_joint(rows=rows, sizes=[d], worlds=[world], repeats=2)}
    assert list(measured) == list(ARMS)
    header = 7 * 8
    assert measured["rows to all"]["received_bytes"] == (world - 1) * (rows * d * 4 + world * header)
    assert measured["own rows alone"]["received_bytes"] == 0
    for row in measured.values():
        assert 0 < row["min_ms"] <= row["median_ms"] <= row["max_ms"]
        assert row["arm"] in joint_line(row)
