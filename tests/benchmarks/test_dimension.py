"""What couplings gain on latents, by dimension: its program, its record, and the page that quotes it."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks.dimension import COUPLINGS, _distances, dimension_page
from immiscible_diffusion.couplings import Independent

ROOT = Path(__file__).parents[2]
RECORD = ROOT / "benchmarks" / "results" / "dimension.json"
PAGE = ROOT / "docs" / "recipes" / "lora-trainers.md"


def test_the_page_holds_the_table_of_the_record() -> None:
    rows = json.loads(RECORD.read_text(encoding="utf-8"))["rows"]
    assert {row["coupling"] for row in rows} == set(COUPLINGS)
    text = PAGE.read_text(encoding="utf-8")
    assert dimension_page(text, rows) == text
    assert dimension_page(text, [*rows[:-1], {**rows[-1], "coarse_percent": 50.0}]) != text


def test_what_the_page_says_of_the_pooled_cost_is_recorded() -> None:
    rows = json.loads(RECORD.read_text(encoding="utf-8"))["rows"]
    gains = {(row["d"], row["batch"], row["coupling"]): row for row in rows}
    pairs = (
        (row, gains.get((row["d"], row["batch"], "assignment, pooled")))
        for row in rows
        if row["coupling"] == "assignment"
    )
    compared = [(plain, pooled) for plain, pooled in pairs if pooled is not None]
    assert len(compared) >= 3
    for plain, pooled in compared:
        assert pooled["coarse_percent"] > plain["coarse_percent"]
        assert pooled["distance_percent"] < plain["distance_percent"]


def test_distances_are_those_of_pairs() -> None:
    latents = torch.randn(16, 4, 8, 8, generator=torch.Generator().manual_seed(1)) + 1
    alone, near = (_distances(coupling, latents, 16, 20) for coupling in (Independent(), COUPLINGS["assignment"]))
    assert float(alone["distance"].mean()) == pytest.approx((256 * 3) ** 0.5, rel=0.02)  # variance 1 + 1, mean 1
    assert float(near["distance"].mean()) < float(alone["distance"].mean())
    torch.testing.assert_close(near["distance"], near["coarse"])  # an 8 x 8 latent is its own 8 x 8 averages


def test_a_page_without_markers_is_refused() -> None:
    with pytest.raises(ValueError, match="markers"):
        dimension_page(
            "nothing",
            [{"pixels": 8, "d": 4, "batch": 1, "coupling": "x"} | {"distance_percent": 1.0, "coarse_percent": 1.0}],
        )
