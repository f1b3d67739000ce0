"""The loop that all benchmarks time with, and the record that they write."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.measuring import recorded, repeated, spread_ms

pytestmark = pytest.mark.medium


def test_the_first_call_is_not_counted() -> None:
    calls = list[int]()

    def call() -> None:
        calls.append(1)
        time.sleep(0.2 if len(calls) == 1 else 0.01)

    first, spent = repeated(call, seconds=0.0, least=4)
    assert first > 0.19
    assert len(spent) == 4
    assert min(spent) < 0.19


def test_repetitions_end_by_time_by_number_or_at_once_where_slow() -> None:
    assert len(repeated(lambda: None, seconds=9.0, most=7)[1]) == 7
    assert len(repeated(lambda: time.sleep(0.02), seconds=0.05, least=1, most=99)[1]) <= 3
    assert len(repeated(lambda: time.sleep(0.01), seconds=9.0, slow=0.005, most=1)[1]) == 1


def test_the_spread_is_that_of_the_values() -> None:
    spread = spread_ms([0.001 * value for value in (9, 1, 5, 3, 7)])
    assert spread["median_ms"] == pytest.approx(5)
    assert spread["quartiles_ms"] == pytest.approx([3, 7])
    assert (spread["min_ms"], spread["max_ms"], spread["repeats"]) == pytest.approx((1, 9, 5))


def test_an_interrupt_keeps_the_rows_before_it(tmp_path: Path) -> None:
    def rows() -> Iterator[dict[str, Any]]:
        yield {"row": 1}
        yield {"row": 2}
        raise KeyboardInterrupt

    path, shown = tmp_path / "rows.json", list[dict[str, Any]]()
    with pytest.raises(KeyboardInterrupt):
        recorded(rows(), shown.append, path, {"about": "it"})
    assert json.loads(path.read_text()) == {"about": "it", "rows": [{"row": 1}, {"row": 2}]}
    assert shown == [{"row": 1}, {"row": 2}]
