"""The papers' tables of distance reduction and pairing time."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import papers as module
from benchmarks.papers import bench_papers, papers_line, papers_table
from immiscible_diffusion.data import Images

pytestmark = pytest.mark.medium


def uneven(b: int, i: int) -> Tensor:
    """Return grey images of brightness 0..255, (b, 48)."""
    generator = torch.Generator().manual_seed(1000 * b + i)
    return (255 * torch.rand(b, 1, generator=generator)).expand(b, 48).round()


def test_rows_hold_both_scales_pairings_and_what_was_published(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BATCHES", (128, 256))
    rows = list(bench_papers(uneven, repeats=3))
    assert [(row["scale"], row["pairing"], row["b"]) for row in rows[:3]] == [
        ("unit variance", "assignment", 128),
        ("unit variance", "assignment", 256),
        ("unit variance", "nearest of 8", 128),
    ]
    assert rows[0]["published_percent"] == 1.93
    assert [row["published_percent"] for row in rows[2:]] == [None] * 6
    by = {(row["scale"], row["pairing"], row["b"]): row["distance_reduction_percent"] for row in rows}
    assert min(by.values()) > 1
    assert len(set(by.values())) == 8
    table = papers_table(rows)
    assert table.count("\n") == len(rows) + 1
    assert f"| 128 | {by['unit variance', 'assignment', 128]:.2f}" in table
    assert "published 1.93" in papers_line(rows[0])


def test_another_pairing_has_another_reduction(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: noise that is not paired reduces nothing."""
    pairings: dict[str, Any] = {"assignment": lambda x, noise: noise}
    monkeypatch.setattr(module, "_PAIRINGS", pairings)
    monkeypatch.setattr(module, "_BATCHES", (128,))
    assert [row["distance_reduction_percent"] for row in bench_papers(uneven, repeats=2)] == [0, 0]


def test_the_published_reductions_are_those_of_unit_variance(shared_data: Callable[[str], Path]) -> None:
    source = Images(str(shared_data("cifar10")), size=32, held_out_rows=1, limit=6000)
    batches = source.batches(128, 0)
    first = [next(batches).raw.flatten(1) for _ in range(40)]
    rows = {
        row["scale"]: row
        for row in bench_papers(lambda b, i: first[i], repeats=40)
        if row["pairing"] == "assignment" and row["b"] == 128
    }
    # The average over 40 batches has a standard error of .02; three samples gave 1.94 to 1.99.
    assert rows["unit variance"]["distance_reduction_percent"] == pytest.approx(1.93, abs=0.08)
    assert rows["[-1, 1]"]["distance_reduction_percent"] == pytest.approx(1.55, abs=0.08)


def test_the_documentation_shows_the_recorded_table() -> None:
    root = Path(__file__).parents[2]
    record = json.loads((root / "benchmarks" / "results" / "papers.json").read_text())
    page = (root / "docs" / "choosing-a-coupling.md").read_text(encoding="utf-8")
    assert f"<!-- papers -->\n{papers_table(record['rows'])}\n<!-- end of papers" in page
    for row in record["rows"]:
        if row["published_percent"] is not None:
            assert row["distance_reduction_percent"] == pytest.approx(row["published_percent"], abs=0.05)
