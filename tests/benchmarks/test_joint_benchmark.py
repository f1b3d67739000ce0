"""The time and the bytes of pairing over several processes."""

import pytest

from benchmarks.joint import ARMS, bench_joint, joint_line

pytestmark = pytest.mark.medium


def test_the_bytes_are_those_of_the_other_processes_rows() -> None:
    rows, d, world = 10, 6, 2
    measured = {row["arm"]: row for row in bench_joint(rows=rows, sizes=[d], worlds=[world], repeats=2)}
    assert list(measured) == list(ARMS)
    header, share = 7 * 8, rows // world * d * 4
    there_and_back = (world - 1) * (share + share)
    assert measured["rows to process 0"]["received_bytes"] == there_and_back + world * (world - 1) * header
    assert measured["rows to all"]["received_bytes"] == world * (world - 1) * share
    assert measured["own rows alone"]["received_bytes"] == 0
    for row in measured.values():
        assert 0 < row["min_ms"] <= row["median_ms"] <= row["max_ms"]
        assert row["arm"] in joint_line(row)
