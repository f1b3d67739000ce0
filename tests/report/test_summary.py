"""What stands first in a report: three sentences that hold, and one table of at most eight rows."""

import io
import re
from collections.abc import Mapping
from typing import Any

import pytest
from rich.console import Console

from immiscible_diffusion.report.page import terminal_table
from immiscible_diffusion.report.summary import summary_sentences, summary_table

CONFIG = {"train": {"steps": 1200}, "evaluate": {"features": {"use": "classifier"}}}
FLOOR = {"arms": ["independent"], "floor": {"frechet": {"mean": 0.05, "sd": 0.001}}}


def record(
    ends: Mapping[tuple[str, int], float],
    *,
    p: float | None = 0.001,
    seeds: int = 3,
    rising: bool = False,
    points: Mapping[str, Mapping[str, str]] | None = None,
) -> dict[str, Any]:
    """Return what a record holds of these final values, (arm, sampling steps) -> mean, against independent noise."""
    arms = dict.fromkeys(arm for arm, _ in ends)
    runs = [
        {"arm": arm, "seed": seed, "point": (points or {}).get(arm, {"coupling": arm})}
        for arm in arms
        for seed in range(seeds)
    ]
    finals = []
    for (arm, count), mean in ends.items():
        row = {"arm": arm, "sampling_steps": count, "metric": "frechet", "mean": mean, "sd": 0.01}
        row["by_seed"] = dict.fromkeys(map(str, range(seeds)), mean)
        if arm != "independent":
            base = ends["independent", count]
            row |= {"difference": mean - base, "reference_mean": base, "reference": "independent", "p": p}
        finals.append(row)
    numbers = {"metrics": ["frechet"], "rising": ["frechet"] if rising else [], "runs": runs, "finals": finals}
    return numbers | {"speedups": [], "instrument": [FLOOR], "configurations": dict.fromkeys(arms, CONFIG)}


TWO = {("independent", 2): 0.8, ("independent", 50): 0.4, ("assignment", 2): 0.6, ("assignment", 50): 0.5}


def test_three_sentences_say_what_was_trained_and_both_ends() -> None:
    assert summary_sentences(record(TWO)) == [
        "Independent and assignment were trained for 1,200 steps each from the same 3 seeds: only their noise differs.",
        "At 2 sampling steps independent noise ends at a Fréchet distance of 0.8; assignment ends 25 % better "
        "(0.6, p = 0.001).",
        "At 50 sampling steps independent noise ends at a Fréchet distance of 0.4; assignment ends 25 % worse "
        "(0.5, p = 0.001).",
    ]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"p": 0.2}, "no difference is shown for assignment (0.6)"),
        ({"p": None, "seeds": 1}, "25 % better (0.6, from too few seeds to tell it from chance)"),
        ({"rising": True}, "assignment ends 25 % worse (0.6, p = 0.001)"),
    ],
)
def test_a_difference_is_said_as_far_as_the_seeds_show_it(options: dict[str, Any], words: str) -> None:
    assert words in summary_sentences(record(TWO, **options))[1]


def test_one_number_of_sampling_steps_is_set_beside_real_images() -> None:
    sentences = summary_sentences(record({key: mean for key, mean in TWO.items() if key[1] == 2}))
    assert len(sentences) == 3
    assert sentences[2] == "Real images in place of samples score 0.05: about the best that can be expected."


@pytest.mark.parametrize("rising", [False, True])
def test_samples_that_beat_real_images_are_no_measurement(rising: bool) -> None:
    """300 pictures were too few for the features: real images scored worse than samples, and nothing said so."""
    numbers = record(TWO, rising=rising)
    numbers["instrument"] = [{**FLOOR, "floor": {"frechet": {"mean": 0.6, "sd": 0.1}}}]
    best = 0.8 if rising else 0.4
    *_, last = summary_sentences(numbers)
    assert last.startswith(
        f"Samples score {best} and real images in their place only 0.6: for these images the Fréchet"
    )
    assert "is no measure of quality" in last
    numbers["instrument"][0]["same_conditions"] = True
    assert not any("real images" in sentence for sentence in summary_sentences(numbers))
    numbers["instrument"] = [{**FLOOR, "floor": {"frechet": {"mean": 0.6, "sd": 0.21}}}]  # within the draws
    assert len(summary_sentences(numbers)) == 3


def test_a_shown_speed_up_stands_beside_the_end() -> None:
    numbers = record(TWO)
    row = {"arm": "assignment", "sampling_steps": 2, "metric": "frechet", "ratio": 2.0, "low": 1.5, "high": 2.6}
    numbers["speedups"] = [row]
    assert summary_sentences(numbers)[1].endswith("p = 0.001), and is as good as it at best 2.0 times sooner.")
    numbers["speedups"] = [{**row, "low": 0.9}]
    assert "sooner" not in summary_sentences(numbers)[1]


def test_many_variants_are_counted() -> None:
    ends = {("independent", 2): 1.0} | {(f"arm{i}", 2): 1 + 0.1 * i for i in (-3, -2, 1, 2, 4, 5, 6, 7)}
    trained, ended, _ = summary_sentences(record(ends, points={"arm1": {"coupling": "a", "train.batch": "8"}}))
    assert trained.startswith("9 variants were trained")
    assert trained.endswith("they differ in the coupling and in train.batch.")
    assert "2 of 8 variants end better than independent noise and 6 worse" in ended
    assert "the largest gain has arm-3, 30 % better (p = 0.001)" in ended


@pytest.mark.parametrize("arms", [1, 6, 7, 20])
def test_the_table_has_eight_rows_at_most(arms: int) -> None:
    ends = {("independent", 2): 1.0} | {(f"arm{i}", 2): 0.9 for i in range(arms)}
    head, rows = summary_table(record(ends))
    assert head == ["", "2 sampling steps"]
    assert len(rows) == min(8, arms + 2)
    assert rows[1] == ["arm0", "0.9 ± 0.01 (-10 %)*"]
    last = ["real images", "0.05 ± 0.001"] if arms <= 6 else [f"and {arms - 5} more, see all final values", ""]
    assert rows[-1] == last


def test_the_table_has_four_numbers_of_sampling_steps_at_most() -> None:
    ends = {(arm, count): 0.5 for arm in ("independent", "assignment") for count in (5, 20, 50, 100, 1000)}
    head, rows = summary_table(record(ends, p=0.5))
    assert head[1:] == [f"{count} sampling steps" for count in (5, 20, 50, 1000)]
    assert {len(row) for row in rows} == {5}
    assert rows[1][1] == "0.5 ± 0.01 (0 %)"


def test_a_single_seed_has_no_deviation() -> None:
    _, rows = summary_table(record(TWO, p=None, seeds=1))
    assert rows[1] == ["assignment", "0.6 (-25 %)", "0.5 (+25 %)"]


@pytest.mark.parametrize("p", [0.001, 0.5])
def test_the_terminal_explains_the_star_where_there_is_one(p: float) -> None:
    console = Console(width=100, file=io.StringIO(), record=True)
    console.print(terminal_table(record(TWO, p=p)))
    text = console.export_text()
    assert ("differs from independent noise" in text) == ("*" in text) == (p < 0.05)
    assert re.search(r"^assignment +0\.6 ± 0\.01 \(-25 %\)", text, re.MULTILINE)
    assert max(map(len, text.splitlines())) <= 100
