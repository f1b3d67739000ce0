"""What is recorded outside of training curves reaches the pages, with its numbers."""

import json
from pathlib import Path
from typing import Any

import pytest

from immiscible_diffusion.files import write_json
from studies.exhibits import exhibits
from studies.pages import html_page, pages

pytestmark = pytest.mark.medium

ROOT = Path(__file__).parents[2]
RUN = {"times": [1.0, 0.6, 0.2], "coupled": [0.9, 0.2, 0.01], "independent": [1.1, 0.3, 0.02]}
"""As the command writes it: from pure noise down."""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a repository with a record of each kind, the last without its picture."""
    cluster = {"distance": 4.0, "deviation": 0.3, "floor": 0.8, "debiased": 3.9, "points": 10_000, "images": 10}
    rows = [{"coupling": name, **cluster} for name in ("independent", "assignment", '{use="nearest", k=8}', "greedy")]
    write_json(tmp_path / "results" / "figures" / "miscibility.json", {"batch": 256, "rows": rows})
    runs = [{"arm": "a", "seed": seed, "spread": 0.25 + 0.5 * seed, **RUN} for seed in (0, 1)]
    write_json(
        tmp_path / "results" / "some" / "cpu" / "denoising.json",
        {"runs": "some", "sampling_steps": 20, "rows": [*runs, {"arm": "b", "seed": 0, "spread": 0.125, **RUN}]},
    )
    table = json.loads((ROOT / "benchmarks" / "results" / "papers.json").read_text())
    write_json(tmp_path / "benchmarks" / "results" / "papers.json", table)
    return tmp_path


def test_every_record_is_shown_beside_what_was_published(root: Path) -> None:
    table, clusters, noise = exhibits(root)
    measured = json.loads((root / "benchmarks" / "results" / "papers.json").read_text())["rows"]
    assert len(table["rows"]) == len(measured)
    assert [row[2].split()[0] for row in table["rows"]] == [f"{r['distance_reduction_percent']:.2f}" for r in measured]
    assert table["rows"][0][3] == "1.93"
    assert [row[3] for row in clusters["rows"]] == ["0.92 ± 0.06", "4.11 ± 0.37", "2.17 ± 0.35", "-"]
    assert noise["head"][2:5] == ["error at t = 1", "error at t = 0.6", "error at t = 0.2"]
    assert noise["rows"] == [
        ["a", "0.5", "0.9", "0.2", "0.01", "1.1", "2"],
        ["b", "0.125", "0.9", "0.2", "0.01", "1.1", "1"],
    ]
    assert "independently, at t = 1: b 1.1, a 1.1." in noise["note"]
    assert [row[3] for row in table["rows"] if row[0] == "unit variance, nearest of 8"] == ["1.58"] * 4
    assert all(len(row) == len(exhibit["head"]) for exhibit in (table, clusters, noise) for row in exhibit["rows"])


def test_policies_are_compared_with_independent_noise_of_as_many_steps(tmp_path: Path) -> None:
    shares = {("independent", 5): 0.25, ("independent", 20): 0.75, ("other", 5): 0.25, ("other", 20): 0.5}
    lines: list[dict[str, Any]] = [
        {"arm": arm, "seed": seed, "sampling_steps": steps, "start": "matched", "episodes": 200}
        | {"success": share + 0.0625 * seed, "touched": 0.0, "minority": share - 0.001 * seed * (arm == "other")}
        for (arm, steps), share in shares.items()
        for seed in range(3)
    ]
    lines[-1]["success"] += 0.001
    write_json(tmp_path / "results" / "some" / "cpu" / "rollout.json", {"seed": 0, "lines": lines})
    (table,) = exhibits(tmp_path)
    assert table["rows"] == [
        ["independent", "matched", "5", "0.312 ± 0.062", "0.250 ± 0.000", "3"],
        ["independent", "matched", "20", "0.812 ± 0.062", "0.750 ± 0.000", "3"],
        ["other", "matched", "5", "0.312 ± 0.062", "0.249 ± 0.001", "3"],
        ["other", "matched", "20", "0.563 ± 0.063 *", "0.499 ± 0.001 *", "3"],
    ]


def test_the_pages_show_them_and_nothing_that_is_not_there(root: Path) -> None:
    for page in (pages(root)["docs/results/tables.md"], html_page(root)):
        text = page.decode()
        assert all(exhibit["title"] in text for exhibit in exhibits(root))
        assert "2.17 ± 0.35" in text
        assert "miscibility.webp" not in text
        assert "image/webp" not in text
    (root / "results" / "figures" / "miscibility.webp").write_bytes(b"RIFF")
    assert "](../../results/figures/miscibility.webp)" in pages(root)["docs/results/tables.md"].decode()
    assert 'src="data:image/webp;base64,UklGRg=="' in html_page(root).decode()
    (root / "results" / "figures" / "miscibility.json").unlink()
    assert "2.17 ± 0.35" not in pages(root)["docs/results/tables.md"].decode()
    assert exhibits(root / "nowhere") == []
