import json
from pathlib import Path

import pytest
import torch

from benchmarks.__main__ import app
from benchmarks.contenders import contenders
from benchmarks.couplings import (
    SHOWN,
    bench,
    bench_data,
    bench_page,
    bench_sizes,
    bench_table,
    peak_mib,
    structured,
)
from immiscible_diffusion.cli.options import run_app

pytestmark = pytest.mark.medium

ROOT = Path(__file__).parents[2]
RECORD = ROOT / "benchmarks" / "results" / "couplings.json"


def test_contenders_of_one_task_do_the_same_thing() -> None:
    x, noise = structured(48, 96), torch.randn(48, 96, generator=torch.Generator().manual_seed(0))
    distances: dict[str, list[float]] = {}
    for contender in contenders(k=16, times=4):
        mean = torch.stack([(x - contender.pair(x, noise)).norm(dim=1).mean() for _ in range(40)]).mean()
        distances.setdefault(contender.task, []).append(float(mean))
    plain = float((x - noise).norm(dim=1).mean())
    assert len(distances) == 4
    for task, values in distances.items():
        assert max(values) < 0.99 * plain, task
    assert max(distances["assignment"]) == pytest.approx(min(distances["assignment"]), rel=5e-3)
    assert max(distances["assignment among 4 b"]) == pytest.approx(min(distances["assignment among 4 b"]), rel=5e-3)


@pytest.mark.slow
def test_rows_hold_what_was_measured() -> None:
    rows = list(bench([(32, 64)], bench_data(""), k=4, times=2, seconds=0.0))
    assert {row["b"] for row in rows} == {32}
    for row in rows:
        assert (
            0 < row["min_ms"] <= row["quartiles_ms"][0] <= row["median_ms"] <= row["quartiles_ms"][1] <= row["max_ms"]
        )
        assert row["distance_reduction_percent"] > 1
    assert bench_table(rows, [(32, 64)]).count("\n") == len(rows) + 4 + 1


@pytest.mark.slow
def test_what_has_no_time_left_or_is_known_is_not_measured() -> None:
    sizes = [(16, 8), (32, 8)]
    none = list(bench(sizes, bench_data(""), k=4, times=2, seconds=0.0, left=lambda: -1.0))
    assert {row["left_out"] for row in none} == {"no time is left for it"}
    known = list(bench(sizes, bench_data(""), k=4, times=2, seconds=0.0, known=lambda row: row["name"] != "official"))
    assert [(row["name"], row["b"]) for row in known] == [("official", 16), ("official", 32)]


@pytest.mark.slow
def test_both_solvers_find_the_optimum() -> None:
    rows = bench([(24, 16)], bench_data(""), k=4, times=2, seconds=0.0, solvers=True)
    gaps = {row["name"]: row["optimality_gap_percent"] for row in rows if row["task"] == "assignment"}
    for name in ("this library, the host solves", "this library, the device solves"):
        assert gaps[name] == pytest.approx(0, abs=1e-3)


def test_memory_is_what_is_held_at_once() -> None:
    mib = peak_mib(lambda: torch.zeros(2**20, dtype=torch.float32) + 1)
    assert mib == pytest.approx(8, rel=0.05)


def test_the_command_records_and_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(app, ["couplings", "--size", "16x8", "--k", "4", "--out", str(tmp_path / "b.json")]) == 0
    record = json.loads((tmp_path / "b.json").read_text())
    assert record["k"] == 4
    assert record["environment"]["packages"]["torch"]
    assert run_app(app, ["couplings", "--size", "16by8"]) == 2
    assert "write it as 256x3072" in capsys.readouterr().err
    assert bench_sizes(None)[0] == (64, 3072)


def test_the_page_shows_the_recorded_table() -> None:
    record = json.loads(RECORD.read_text())
    page = (ROOT / "docs" / "speed.md").read_text(encoding="utf-8")
    assert bench_table(record["rows"], SHOWN) in page
    assert bench_page(page, record["rows"]) == page
    assert bench_page(page, record["rows"][1:]) != page
    with pytest.raises(ValueError, match="markers"):
        bench_page("no markers", record["rows"])
