"""The page in two minutes and the detailed one: every number is a record's; what is not recorded is left out."""

import json
import re
import shutil
from pathlib import Path
from statistics import mean, stdev

import pytest

from immiscible_diffusion.files import read_json
from immiscible_diffusion.report.sentences import number
from studies.__main__ import run
from studies.changes import changes
from studies.dimension import gains_by_dimension, nearness
from studies.pages import pages
from studies.study_figures import dimension_figure

ROOT = Path(__file__).parents[2]


def page(root: Path) -> str:
    return pages(root)["docs/results/README.md"].decode()


def details(root: Path) -> str:
    return pages(root)["docs/results/details.md"].decode()


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A repository with the demo's record and the benchmarks."""
    shutil.copytree(ROOT / "results" / "demo", tmp_path / "results" / "demo")
    shutil.copytree(ROOT / "benchmarks" / "results", tmp_path / "benchmarks" / "results")
    return tmp_path


def test_gains_are_those_of_the_record(copy: Path) -> None:
    path = copy / "results" / "demo" / "summary.json"
    (row,) = (
        row
        for row in read_json(path)["speedups"]
        if (row["arm"], row["sampling_steps"], row["metric"]) == ("assignment", 5, "frechet")
    )
    cells = f"| 5 | {row['ratio']:.2f} x | {row['low']:.2f} to {row['high']:.2f} |"
    assert cells in details(copy)
    path.write_text(path.read_text().replace(json.dumps(row["ratio"]), json.dumps(row["ratio"] + 1)))
    assert cells not in details(copy)  # control: another record, another page
    assert f"| 5 | {row['ratio'] + 1:.2f} x |" in details(copy)


def test_ends_are_compared_within_their_recipe(copy: Path) -> None:
    assert "## Other methods" not in details(copy)
    name = "few-steps-consistency"
    shutil.copytree(ROOT / "results" / name, copy / "results" / name)
    finals = read_json(copy / "results" / name / "cpu" / "summary.json")["finals"]
    means = {row["arm"]: number(row["mean"]) for row in finals if row["sampling_steps"] == 1}
    rows = [line for line in details(copy).splitlines() if line.startswith("| [CIFAR-10 by consistency training]")]
    assert len(rows) == 3
    for line, recipe in zip(rows, ("published", "lognormal", "weighted"), strict=True):
        _, _, variant, coupling, one, two, five, *_ = line.split(" | ")
        assert (variant, coupling, five) == (recipe, "assignment", "-")
        plain, paired = (means[f"{recipe}-{arm}"] for arm in ("independent", "assignment"))
        assert one.replace(" †", "").startswith(f"{plain} → {paired} (")
        assert " → " in two


def test_quality_is_shown_by_the_numbers_in_an_image() -> None:
    text = details(ROOT)
    gained = gains_by_dimension(ROOT)
    finals = {
        (row["arm"], row["sampling_steps"]): row["by_seed"]
        for row in read_json(ROOT / "results" / "few-steps-dimension" / "cpu" / "summary.json")["finals"]
    }
    for row in [row for row in gained if "latents" not in row["data"]]:
        label = row["data"].replace(" ", "-")
        plain, paired = (finals[f"{label}-{arm}", row["sampling_steps"]] for arm in ("independent", "assignment"))
        assert row["percent"] == pytest.approx(100 * (mean(paired.values()) / mean(plain.values()) - 1))
        assert row["low"] < row["percent"] < row["high"]
        assert row["data"] in text
    pixels = [row for row in gained if not row["latents"]]
    assert [(row["data"], row["d"]) for row in pixels if row["sampling_steps"] == 2][:2] == [
        ("4 pixels", 48),
        ("8 pixels", 192),
    ]


def test_what_latents_gain_is_set_beside_pixels_of_as_many_numbers() -> None:
    text = " ".join(details(ROOT).split())
    change = {(row["data"], row["sampling_steps"]): -row["percent"] for row in gains_by_dimension(ROOT)}
    percent = {row["data"]: row["percent"] for row in nearness(ROOT) if row["batch"] == 128}
    for enlarged, size in ((32, 4), (64, 8), (128, 16), (256, 32)):
        pairs = {
            steps: (change[f"{enlarged} pixels, as latents", steps], change[f"{size} pixels", steps])
            for steps in (2, 5)
        }
        cells = [f"{latents:.0f} % in place of {pixels:.0f} % at {steps}" for steps, (latents, pixels) in pairs.items()]
        assert f"{enlarged**2 // 16:,} numbers gained {cells[0]} and {cells[1]}" in text
        assert (pairs[2][0] < pairs[2][1]) == (enlarged < 256)  # "less up to 1,024 numbers, but not at 4,096"
        near = percent[f"latents of CIFAR-10 at {enlarged} pixels"] / percent[f"CIFAR-10 at {size} pixels"]
        assert near > 0.95  # "about as near"
    for steps in (2, 5):  # "does not fall from 256 to 4,096 numbers"
        gains = [change[f"{size} pixels, as latents", steps] for size in (64, 128, 256)]
        assert gains == sorted(gains)


def test_what_to_expect_of_large_latents_is_read_off_the_records() -> None:
    said, text = (" ".join(source(ROOT).split()) for source in (page, details))
    finals = {
        (name, row["arm"], row["sampling_steps"]): -100 * row["difference"] / row["reference_mean"]
        for name in ("few-steps-latents-256", "few-steps-settings")
        for row in read_json(ROOT / "results" / name / "cpu" / "summary.json")["finals"]
        if "difference" in row
    }
    gain = {steps: finals["few-steps-latents-256", "assignment", steps] for steps in (2, 5)}
    whole, half = (
        {steps: finals["few-steps-settings", f"{arm}-assignment", steps] for steps in (2, 5)}
        for arm in ("plain", "batch-64")
    )
    for steps in (2, 5):
        assert f"{half[steps]:.0f} % in place of {whole[steps]:.0f} % at {steps}" in text
    low, high = (gain[steps] * half[steps] / whole[steps] for steps in (5, 2))
    assert low < high
    assert f"4 sampling steps: expect a distance {low:.0f} to {high:.0f} % lower at the end of training" in said
    assert f"So expect a distance {low:.0f} to {high:.0f} % lower" in text


def test_headline_is_the_change_between_the_ends_of_a_record() -> None:
    finals = read_json(ROOT / "results" / "few-steps-ddim" / "cpu" / "summary.json")["finals"]
    rows = {row["sampling_steps"]: row for row in finals if row["arm"] == "v-assignment"}
    (line,) = (
        line for line in page(ROOT).splitlines() if line.startswith("| [DDIM, predicts v](few-steps-ddim-cpu.md)")
    )
    _, images, steps, one, *cells = line.strip("| ").split(" | ")
    assert (images, steps, one) == ("8 x 8 pixels", "2,000", "-")
    for count, cell in zip((2, 5, 10, 50), cells, strict=True):
        row = rows[count]
        assert cell.startswith(f"{100 * row['difference'] / row['reference_mean']:+.0f} % (")
        assert cell.endswith("†") == (count == 50)


def test_the_best_on_the_way_is_compared_with_the_best() -> None:
    """Samples in few steps get worse while training goes on: the end alone would flatter assignment."""
    curves = read_json(ROOT / "results" / "few-steps-flow" / "cpu" / "summary.json")["curves"]
    lines = page(ROOT).splitlines()
    for steps in (1, 2, 5, 10):
        (line,) = (line for line in lines if re.match(rf"\| {steps} \| [\d.]+ x \(", line))
        best = {
            row["label"]: mean(min(value for _, value in curve) for curve in row["by_seed"].values())
            for row in curves
            if row["sampling_steps"] == steps
        }
        plain, paired = best["independent"], best["assignment"]
        assert f"| {number(plain)} | {number(paired)} | {100 * (paired / plain - 1):+.0f} % (" in line
        last = {
            row["label"]: [curve[-1][1] for curve in row["by_seed"].values()]
            for row in curves
            if row["sampling_steps"] == steps
        }
        if steps <= 2:  # what the page says of both
            assert all(mean(last[arm]) > 1.2 * best[arm] for arm in ("independent", "assignment"))
            assert mean(last["independent"]) / plain > mean(last["assignment"]) / paired


def test_an_interval_holds_no_difference_where_the_test_finds_none() -> None:
    for name in ("few-steps-ddim", "few-steps-consistency", "few-steps-16-pixels"):
        record = read_json(ROOT / "results" / name / "cpu" / "summary.json")
        rows = {(row["arm"], row["sampling_steps"]): row for row in record["finals"] if "p" in row}
        assert {key: row["p"] < 0.05 for key, row in rows.items()} == {
            key: not row["low"] <= 0 <= row["high"] for key, row in changes(record, "frechet").items()
        }


def test_what_is_said_in_short_is_recorded() -> None:
    names = "few-steps-ddim", "few-steps-consistency", "fig4a-table3-consistency", "sd-class-conditional"
    finals = {
        (name, row["arm"], row["sampling_steps"]): row
        for name in (*names, "sd-unconditional", "sd-fine-tuning")
        for row in read_json(ROOT / "results" / name / "cpu" / "summary.json")["finals"]
        if "difference" in row
    }

    def part(name: str, arm: str, steps: int) -> float:
        row = finals[name, arm, steps]
        return float(row["difference"] / row["reference_mean"])

    for predict in ("x0", "v", "eps"):
        assert part("few-steps-ddim", f"{predict}-assignment", 50) > -0.1
    for levels in ("published", "lognormal", "weighted"):
        for steps in (1, 2):
            row = finals["few-steps-consistency", f"{levels}-assignment", steps]
            assert row["p"] > 0.05 or row["difference"] > 0
            published = finals["few-steps-consistency", "published-assignment", steps]
            assert levels == "published" or row["mean"] < published["mean"]  # "better ones"
            assert levels == "published" or row["reference_mean"] < published["reference_mean"]
    assert finals["fig4a-table3-consistency", "assignment", 1]["p"] < 0.05
    assert part("fig4a-table3-consistency", "assignment", 1) < 0
    assert finals["sd-class-conditional", "assignment", 5]["p"] < 0.05
    assert part("sd-class-conditional", "assignment", 5) < 0
    assert finals["sd-unconditional", "assignment", 5]["p"] < 0.05
    assert part("sd-unconditional", "assignment", 5) < 0
    assert all(finals["sd-fine-tuning", "assignment", steps]["p"] > 0.05 for steps in (5, 20))
    costs = read_json(ROOT / "benchmarks" / "results" / "couplings.json")["rows"]
    times = {
        (row["b"], row["d"]): row["median_ms"]
        for row in costs
        if (row["task"], row["name"]) == ("assignment", "this library, fp32")
    }
    assert round(times[64, 3072]) == 1


def test_what_is_said_of_the_noise_at_16_pixels_is_recorded() -> None:
    said = " ".join((ROOT / "docs" / "faq.md").read_text().split())
    finals = {
        (row["arm"], row["sampling_steps"]): row
        for row in read_json(ROOT / "results" / "few-steps-16-pixels-eps" / "cpu" / "summary.json")["finals"]
    }
    five, ten = (finals["assignment", steps] for steps in (5, 10))
    shares = {f"{-100 * row['difference'] / row['reference_mean']:.0f}" for row in (five, ten)}
    sure = " and ".join(f"{row['p']:.2f}".removeprefix("0") for row in (five, ten))
    assert shares == {"12"}
    assert f"ends 12 % better at 5 and at 10, which three seeds cannot tell from chance (p = {sure})" in said
    for steps, row in ((5, five), (10, ten)):
        plain = list(finals["independent", steps]["by_seed"].values())
        assert max(plain) - min(plain) > 2 * abs(row["difference"])  # "they differ more from each other"


def test_how_policies_fare_is_recorded() -> None:
    lines = read_json(ROOT / "results" / "diffusion-policy" / "cpu" / "rollout.json")["lines"]
    guide = (ROOT / "docs" / "diffusion-policy.md").read_text()
    said = page(ROOT)
    for arm in ("independent", "assignment", "conditional"):
        runs = [line for line in lines if (line["arm"], line["sampling_steps"]) == (arm, 20)]
        success, rarer = ([run[share] for run in runs] for share in ("success", "minority"))
        assert all(f"{mean(shares):.3f}" in said for shares in (success, rarer))
        cells = [f"{mean(shares):.3f} ± {stdev(shares):.3f}" for shares in (success, rarer)]
        assert re.search(rf"^\| `?{arm}`? \| {cells[0]} \| {cells[1]} \|$", guide, re.MULTILINE)


def test_what_is_not_recorded_is_left_out(copy: Path) -> None:
    assert "## What it costs" in page(copy)
    assert "| latents of photographs at 256 pixels | 4,096 | 64 |" in details(copy)
    shutil.rmtree(copy / "benchmarks")
    assert "## What it costs" not in page(copy)
    shutil.rmtree(copy / "results")
    (copy / "results").mkdir()
    assert "##" not in page(copy)
    assert details(copy).count("## ") == 1  # how to read it


def test_nearness_is_drawn_and_falls_with_the_coordinates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = nearness(ROOT)
    for latents, batch in ((False, 128), (True, 128), (True, 64)):  # whose scales differ
        alike = [row for row in rows if (row["data"].startswith("latents"), row["batch"]) == (latents, batch)]
        assert len(alike) > 1
        assert sorted(alike, key=lambda row: -row["percent"]) == sorted(alike, key=lambda row: row["d"])
    assert len(rows) >= 4
    monkeypatch.chdir(ROOT)
    assert run(["draw", "dimension", "--out", str(tmp_path)]) == 0
    picture = (tmp_path / "dimension.svg").read_text()
    assert all(row["data"] in picture for row in rows)
    assert len(picture) < 60_000
    with pytest.raises(ValueError, match="needs a record at least"):
        dimension_figure([])
