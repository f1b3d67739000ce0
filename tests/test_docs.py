"""The README's examples run, and its links lead somewhere."""

import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from statistics import mean

import pytest

from immiscible_diffusion.cli import COMMANDS
from immiscible_diffusion.experiments.values import built_in
from immiscible_diffusion.report.sentences import final_rows, number

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)


def test_the_readme_examples_run(capsys: pytest.CaptureFixture[str]) -> None:
    examples = blocks((ROOT / "README.md").read_text(encoding="utf-8"), "python")
    assert examples
    for example in examples:
        exec(compile(example, "README.md", "exec"), {})  # noqa: S102
    before, after = map(float, re.findall(r"tensor\(([\d.]+)\)", capsys.readouterr().out))
    assert 0.97 < after / before < 0.985  # about 2 %


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_a_dead_link_is_seen(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text("[x](nowhere.md)")
    with pytest.raises(AssertionError):
        test_links_lead_somewhere(tmp_path / "page.md")


def test_commands_and_experiments_of_the_readme_exist() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    used = set(re.findall(r"\bimmiscible ([a-z]+)\b", text))
    assert used
    assert used <= set(COMMANDS)
    assert set(re.findall(r"(?<!benchmarks/)results/([\w-]+)/", text)) <= set(built_in())
    for target in re.findall(r"`make ([\w-]+)`", text):
        assert f"\n{target}:" in (ROOT / "Makefile").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["index.md", "faq.md"])
def test_the_examples_of_a_page_run(name: str) -> None:
    text = (ROOT / "docs" / name).read_text(encoding="utf-8")
    for example in blocks(text, "python"):
        exec(compile(example, name, "exec"), {})  # noqa: S102
    used = set(re.findall(r"^immiscible ([a-z]+)\b", "".join(blocks(text, "bash")), re.M))
    assert used <= set(COMMANDS)


def test_the_questions_say_what_is_recorded() -> None:
    text = " ".join((ROOT / "docs" / "faq.md").read_text(encoding="utf-8").split())

    def final(experiment: str, arm: str, steps: int, metric: str = "frechet") -> dict[str, float]:
        """Return the recorded row of one arm at the end of training."""
        record = json.loads((ROOT / "results" / experiment / "summary.json").read_text(encoding="utf-8"))
        (row,) = (
            row
            for row in record["finals"]
            if (row["metric"], row["arm"], row["sampling_steps"]) == (metric, arm, steps)
        )
        return dict(row)

    def percent(experiment: str, arm: str, steps: int) -> str:
        return f"{-better(final(experiment, arm, steps)):.0f} %"

    for steps in (2, 10):
        plain, paired = (final("few-steps-flow/cpu", arm, steps)["mean"] for arm in ("independent", "assignment"))
        assert f"from {number(plain)} to {number(paired)}" in text
    assert f"(p = {final('few-steps-flow/cpu', 'assignment', 2)['p']:.4f}".replace("0.", ".") in text
    assert f"(p = {final('few-steps-flow/cpu', 'assignment', 10)['p']:.3f}".replace("0.", ".") in text
    late = [final("few-steps-flow/cpu", "assignment", steps) for steps in (50, 100)]
    parts, p_values = [f"{better(row):.0f} %" for row in late], [f"{row['p']:.3f}"[1:] for row in late]
    assert f"ends {parts[0]} better at 50 sampling steps and {parts[1]} at 100 (p = {' and '.join(p_values)})" in text
    best = bests("few-steps-flow/cpu")
    assert f"{number(best['independent', 2])} becomes {number(best['assignment', 2])} at 2 steps." in text
    few = "few-steps-couplings/cpu"
    for steps, where in ((1, "in one sampling step"), (2, "at 2 steps"), (10, "at 10 steps")):
        compared = ("independent", "rotated", "flipped", "assignment")
        *ends, last = (number(final(few, arm, steps)["mean"]) for arm in compared)
        assert f"{where} at {', '.join(ends)} and {last}:" in text
    gains = [-final(few, arm, 2)["difference"] for arm in ("assignment", "rotated")]
    assert 2 < gains[0] / gains[1] < 2.5
    assert all(final(few, "flipped", steps)["difference"] > 0 for steps in (2, 5, 10))
    assert final(few, "rotated", 10)["p"] > 0.05 > final(few, "assignment", 10)["p"]
    pools = [number(final(few, "windows-1024", steps)["mean"]) for steps in (1, 10)]
    assert f"end at {pools[0]} in one step and at {pools[1]} at 10 (" in text
    many = [final("fig5-table4-ddim/cpu", "assignment", steps) for steps in (20, 50, 100, 500, 1000)]
    eps_gains = [f"{better(row):.0f}" for row in many]
    assert f"with eps it ends {min(eps_gains)} to {max(eps_gains)} % better at 20 to 1,000 sampling steps" in text
    assert all(row["p"] > 0.05 for row in many)
    ddim = recorded("few-steps-ddim/cpu")

    def ahead(name: str, steps: int) -> str:
        return f"{better(ddim[f'{name}-assignment', steps]):.0f} %"

    assert f"ends {ahead('v', 5)} better at 5 sampling steps where v is predicted, {ahead('x0', 5)} where x0" in text
    assert (
        f"is and {ahead('eps', 5)} where eps is. At 50 steps it ends {ahead('v', 50)} better with v (p = .036)" in text
    )
    assert round(ddim["v-assignment", 50]["p"], 3) == 0.036
    larger = recorded("few-steps-16-pixels/cpu")

    def gain(arm: str, steps: int) -> str:
        return f"{better(larger[arm, steps]):.0f}"

    (v2, v5, v10), (x2, x5, x10) = ([gain(f"{name}-assignment", n) for n in (2, 5, 10)] for name in ("v", "x0"))
    assert (
        f"{v2} % with v and {x2} % with x0 at 2 sampling steps are {v5} and {x5} % at 5, and {v10} and {x10} %" in text
    )
    assert larger["x0-assignment", 10]["p"] > 0.05 > larger["v-assignment", 10]["p"]
    assert all(ddim[f"{name}-assignment", 50]["p"] > 0.05 for name in ("x0", "eps"))
    sets = recorded("few-steps-data-sets/cpu")
    for steps, where in ((1, "in one sampling step"), (5, "in 5"), (10, "in 10")):
        first, second, third = (
            f"{sets[arm, steps]['mean']:.3g}" for arm in ("independent", "assignment", "semidiscrete")
        )
        assert f"at {first}, {second if steps != 5 else f'{float(second):.2f}'} and {third} {where}" in text
    assert all(sets[arm, 50]["p"] > 0.05 for arm in ("assignment", "semidiscrete", "oversampled", "cached"))
    assert f"{sets['oversampled', 5]['mean']:.2f} in 5 steps" in text
    assert f"where assignment does, {sets['cached', 5]['mean']:.2f}." in text
    record = json.loads((ROOT / "results" / "few-steps-data-sets" / "cpu" / "summary.json").read_text(encoding="utf-8"))
    for steps, sooner in ((5, "1.4 to 1.5 times sooner at 5"), (10, "1.6 to 1.7 at 10")):
        ratios = [
            row["ratio"]
            for row in record["speedups"]
            if row["sampling_steps"] == steps and "plain start" not in row["arm"] and row["ratio"]
        ]
        low, high = (f"{float(number):g}" for number in re.findall(r"\d\.\d", sooner))
        assert sooner in text
        assert all(float(low) - 0.05 <= ratio <= float(high) + 0.05 for ratio in ratios)
    seconds = [row["seconds_ratio"] for row in record["speedups"] if row["arm"] == "semidiscrete"]
    assert max(seconds) < 1.1
    figure = recorded("fig4a-table3-consistency/cpu")
    apart, coupled = (number(figure[arm, 1]["mean"]) for arm in ("independent", "assignment"))
    assert f"ends at {coupled} in place of {apart} (p = .02)" in text
    assert round(figure["assignment", 1]["p"], 2) == 0.02
    recipes = recorded("few-steps-consistency/cpu")
    without, coupled = (number(recipes[f"published-{arm}", 1]["mean"]) for arm in ("independent", "assignment"))
    assert f"assignment ends at {coupled} in place of {without} (p = .068)" in text
    assert round(recipes["published-assignment", 1]["p"], 3) == 0.068
    assert {f"{recipes[f'weighted-{arm}', 1]['mean']:.1f}" for arm in ("independent", "assignment")} == {"5.8"}
    worse = recipes["lognormal-assignment", 1]["mean"] / recipes["lognormal-independent", 1]["mean"] - 1
    assert f"assignment ends {100 * worse:.0f} % worse (p = .037)" in text
    arms = recorded("consistency-recipes/cpu")
    for recipe, template in (
        ("even", "at {} without and {} with assignment (p = .46)"),
        ("even-power-half", "at {} and {}, and with lognormal"),
        ("high", "at higher noise at {} and {} ("),
    ):
        ends_at = (number(arms[f"{recipe}-{arm}", 1]["mean"]) for arm in ("independent", "assignment"))
        assert template.format(*ends_at) in text
    assert round(arms["even-assignment", 1]["p"], 2) == 0.46
    for arm in ("independent", "assignment"):
        assert min((row["mean"], name) for (name, count), row in arms.items() if count == 1 and name.endswith(arm))[
            1
        ] == (f"even-{arm}")
    assert all(row["difference"] > 0 for row in arms.values() if "difference" in row)
    levels = json.loads((ROOT / "results" / "figures" / "levels.json").read_text(encoding="utf-8"))["rows"]
    for arm in ("independent", "assignment"):
        assert f"{mean(row['error'][-1] for row in levels if row['arm'] == f'weighted-{arm}'):.2f}" in text
    for steps in (1, 2):
        assert f"{percent('digits-consistency', 'assignment', steps)} worse" in text
    sweep = recorded("knn-sweep/cpu")
    for k in (2, 32):
        ratio = sweep[f"nearest-{k}, plain start", 20]["mean"] / sweep["independent", 20]["mean"]
        assert f"{ratio:.2f} times" in text
    matched = [row for (arm, _), row in sweep.items() if arm.startswith("nearest") and "plain" not in arm]
    assert len(matched) == 20
    assert all(row["p"] > 0.05 or row["difference"] > 0 for row in matched)
    near, plain = (better(ddim[arm, 5]) for arm in ("v-nearest", "v-nearest, plain start"))
    assert f"{near:.0f} % better at 5 steps where v is predicted, {plain:.0f} % from N(0, I), and nowhere worse" in text
    assert not any(row["p"] < 0.05 and row["difference"] > 0 for (arm, _), row in ddim.items() if "nearest" in arm)
    start = recorded("nearest-start/cpu")
    plain_starts = [start[f"{arm}, plain start", 50] for arm in ("l2-4", "l2-64", "dot-64")]
    of_four, of_many, of_dot = (f"{-better(row):.0f} % worse" for row in plain_starts)
    assert (
        f"nearest of 4 by distance ends {of_four}, of 64 {of_many}, and of 64 by inner product {of_dot}, all with p"
        in text
    )
    assert all(row["p"] < 0.02 for row in plain_starts)


def test_the_claims_of_the_papers_are_judged_by_the_records() -> None:
    def holds(name: str, arm: str, steps: int) -> bool:
        row = recorded(f"{name}/cpu")[arm, steps]
        return row["p"] < 0.05 and row["difference"] < 0

    held = [("few-steps-flow", "assignment", 10), ("few-steps-ddim", "v-assignment", 2)]
    held += [("fig4a-table3-consistency", "assignment", 1), ("few-steps-couplings", "flipped", 1)]
    held += [("sd-class-conditional", "assignment", 5)]
    held += [("fig8-batch", f"{batch}-assignment", 5) for batch in (128, 256)]
    held += [("painting", f"{where}-nearest", 5) for where in ("inside", "outside")]
    assert [claim for claim in held if not holds(*claim)] == []
    shown = [(f"fig4{part}-consistency", "assignment", steps) for part in "bc" for steps in (1, 2)]
    shown += [("few-steps-consistency", f"{recipe}-assignment", 1) for recipe in ("lognormal", "weighted")]
    shown += [("fig8-batch", "64-assignment", 5)]
    shown += [("few-steps-couplings", "flipped", 2), ("sd-class-conditional", "assignment", 20)]
    shown += [("sd-fine-tuning", "assignment", steps) for steps in (5, 20)]
    shown += [("painting", f"{where}-nearest", 20) for where in ("inside", "outside")]
    assert [claim for claim in shown if holds(*claim)] == []
    scale = recorded("image-scale/cpu")
    for steps, best in ((2, "1"), (20, "0.5")):  # deviations; images in [-1, 1] have one of 0.5
        assert min(("0.5", "1", "2"), key=lambda name: scale[f"{name}-independent", steps]["mean"]) == best


def test_the_question_of_consistency_says_what_larger_images_do() -> None:
    text = " ".join((ROOT / "docs" / "faq.md").read_text(encoding="utf-8").split())
    ends = recorded("few-steps-16-pixels-consistency/cpu")
    (plain, paired), (base, weighted) = (
        [number(ends[f"{recipe}-{arm}", 1]["mean"]) for arm in ("independent", "assignment")]
        for recipe in ("published", "weighted")
    )
    p = f"{ends['published-assignment', 1]['p']:.1g}".replace("0.", ".")
    assert f"as published {plain} becomes {paired} in one step (p = {p})" in text
    assert base == weighted
    assert f"with the weight 1 / gap both end at {base}." in text
    five, ten = (ends["weighted-assignment", steps] for steps in (5, 10))
    worse = [f"{-better(row):.0f} % worse" for row in (five, ten)]
    p = f"{five['p']:.2g}".replace("0.", ".")
    assert f"assignment ends {worse[0]} in 5 steps (p = {p}) and {worse[1]} in 10" in text
    near = [ends[f"{recipe}-nearest", steps] for recipe in ("weighted", "published") for steps in (5, 10)]
    percents = [f"{abs(better(row)):.0f}" for row in near]
    assert f"and nearest of 8 by inner product {percents[0]} and {percents[1]} % worse." in text
    p_values = " and ".join(f"{row['p']:.3f}".replace("0.", ".") for row in near[2:])
    assert f"nearest of 8 ends {percents[2]} and {percents[3]} % better there (p = {p_values})" in text


def test_the_question_of_times_and_levels_says_what_is_recorded() -> None:
    text = " ".join((ROOT / "docs" / "faq.md").read_text(encoding="utf-8").split())
    ends = recorded("few-steps-times/cpu")

    def off(times: str, steps: int) -> str:
        return f"{better(ends[f'{times}-assignment', steps]):.0f} %"

    def falls(levels: str, steps: int, verb: str = " falls") -> str:
        plain, paired = (ends[f"{levels}-{arm}", steps]["mean"] for arm in ("independent", "assignment"))
        p = f"{ends[f'{levels}-assignment', steps]['p']:.1g}".replace("0.", ".")
        return f"{number(plain)}{verb} to {number(paired)} (p = {p}"

    uniform, middle, noise = (off(times, 1) for times in ("uniform", "middle", "noise"))
    assert f"takes {uniform} off the distance in one sampling step with uniform times, {middle} with" in text
    assert f"around 0.5 and {noise} with times towards noise" in text
    assert f"at 10 steps {off('uniform', 10)}, {off('middle', 10)} and {off('noise', 10)}." in text
    assert falls("edm", 5) in text
    assert ends["edm-assignment", 10]["p"] > 0.05
    assert falls("edm-noise", 5) in text
    assert falls("edm-noise", 10, "") in text
    for steps in (5, 10):
        assert ends["edm-noise-independent", steps]["mean"] > 0.98 * ends["edm-independent", steps]["mean"]
        assert ends["edm-noise-assignment", steps]["mean"] < ends["edm-assignment", steps]["mean"]


def test_the_question_of_settings_says_what_is_recorded() -> None:
    text = " ".join((ROOT / "docs" / "faq.md").read_text(encoding="utf-8").split())
    ends = recorded("few-steps-settings/cpu")

    def off(name: str, steps: int) -> str:
        return f"{better(ends[f'{name}-assignment', steps]):.0f}"

    assert f"takes {off('plain', 1)} % off the distance in one sampling step and {off('plain', 10)} % in 10" in text
    for name, words in (
        ("half-rate", "At half that rate it is"),
        ("double-rate", "at twice the rate"),
        ("batch-64", "half the batch"),
    ):
        assert f"{words} {off(name, 1)} and {off(name, 10)} %" in text
    unaveraged = {steps: off("no-average", steps) for steps in (1, 2, 5, 10)}
    assert (
        "it is {} % in one step and {} % in two; in 5 and 10 steps, where it is {} and {} %".format(
            *unaveraged.values()
        )
        in text
    )
    pairs = {key: row for key, row in ends.items() if "difference" in row}
    unsure = {key for key, row in pairs.items() if row["p"] >= 0.01}
    assert all(row["difference"] < 0 for row in pairs.values())
    assert unsure == {("no-average-assignment", steps) for steps in (5, 10)}
    for steps in (5, 10):
        assert pairs["no-average-assignment", steps]["p"] > 0.05  # "chance"
        assert ends["no-average-independent", steps]["sd"] > 2 * ends["plain-independent", steps]["sd"]
    assert min(ends, key=lambda key: ends[key]["mean"]) == ("double-rate-assignment", 10)


def test_what_noise_tells_of_the_class_is_recorded() -> None:
    pairs = json.loads((ROOT / "results" / "demo" / "summary.json").read_text(encoding="utf-8"))["pairs"]
    read, chance = (f"{100 * pairs['assignment'][key]:.0f} %" for key in ("leak_accuracy", "leak_chance"))
    for name in ("faq", "choosing-a-coupling"):
        text = " ".join((ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8").split())
        assert f"in {read} of cases, where chance is {chance} ([demo](results/demo.md))" in text
    within = json.loads((ROOT / "results/sd-class-conditional/cpu/summary.json").read_text(encoding="utf-8"))["pairs"]
    assert within["assignment-per-class"]["leak_accuracy"] <= within["assignment-per-class"]["leak_chance"]


def test_what_the_start_does_to_the_nearest_of_k_is_recorded() -> None:
    rows = recorded("nearest-start/cpu")

    def ends(arm: str, *steps: int) -> list[str]:
        return [f"{abs(better(rows[arm, count])):.0f}" for count in steps]

    text = " ".join((ROOT / "docs" / "choosing-a-coupling.md").read_text(encoding="utf-8").split())
    few, few_plain, many = (ends(arm, 2, 10, 50) for arm in ("dot-4", "dot-4, plain start", "dot-64"))
    assert f"it ends {few[0]}, {few[1]} and {few[2]} % better at 2, 10 and 50 sampling steps from its matched" in text
    assert f"and {few_plain[0]}, {few_plain[1]} and {few_plain[2]} % better from N(0, I)" in text
    assert f"Of 64 it ends {many[0]}, {many[1]} and {many[2]} % better from its matched start" in text
    first, ten, fifty = ends("dot-64, plain start", 2, 10, 50)
    assert f"from N(0, I) {first} % better at 2 and {ten} and {fifty} % worse at 10 and 50" in text
    many, plain = ends("l2-64", 2, 10, 50), ends("l2-64, plain start", 2, 10, 50)
    assert f"it ends {many[0]}, {many[1]} and {many[2]} % better from its matched start" in text
    assert f"from N(0, I) {plain[0]} % better at 2 and {plain[1]} and {plain[2]} % worse" in text
    said = " ".join((ROOT / "docs" / "samplers.md").read_text(encoding="utf-8").split())
    assert "by distance at 50 steps, with 64 noises at 10, too" in said
    helps = {
        (arm, count): rows[arm, count]["mean"] < rows[f"{arm}, plain start", count]["mean"]
        for arm in ("l2-4", "l2-64")
        for count in (2, 10, 50)
    }
    assert [key for key, better_matched in helps.items() if better_matched] == [
        ("l2-4", 50),
        ("l2-64", 10),
        ("l2-64", 50),
    ]


def test_the_first_page_says_what_is_recorded() -> None:
    text = " ".join((ROOT / "docs" / "index.md").read_text(encoding="utf-8").split())
    large, flow, ddim = (recorded(f"few-steps-{name}/cpu") for name in ("dimension", "flow", "ddim"))
    assert f"at 2 steps {better(large['32-pixels-assignment', 2]):.0f} % off the Fréchet distance on 32 x 32" in text
    ten = [f"{better(row):.0f} % less" for row in (large["32-pixels-assignment", 10], flow["assignment", 10])]
    assert f"{ten[0]} on CIFAR-10 at 32 x 32 pixels, {ten[1]} at 8 x 8" in text
    rows = flow["assignment", 50], ddim["v-assignment", 50], recorded("demo")["assignment", 50]
    many = [f"{better(row):.0f} %" for row in rows]
    assert f"CIFAR-10: {many[0]} less by flow matching, {many[1]} by DDIM predicting v; digits: {many[2]} less" in text
    assert all(row["p"] < 0.05 for row in rows)


def test_the_page_of_samplers_says_what_latents_do() -> None:
    text = " ".join((ROOT / "docs" / "samplers.md").read_text(encoding="utf-8").split())
    ends = recorded("sd-unconditional/cpu")

    near, plain = (f"{better(ends[arm, 5]):.0f} % better" for arm in ("nearest", "nearest, plain start"))
    assert f"ends {near} than independent noise at 5 steps from the matched start" in text
    assert f"and {plain} from N(0, I), and level with it at 20" in text
    assert all(ends[arm, 20]["p"] > 0.05 for arm in ("nearest", "nearest, plain start"))
    assert "helps by inner product at 1 to 100 steps" in text
    flow = recorded("few-steps-flow/cpu")
    assert all(flow["nearest", n]["mean"] < flow["nearest, plain start", n]["mean"] for n in (1, 2, 5, 10, 50, 100))
    larger = recorded("few-steps-16-pixels/cpu")
    points = {
        round(better(larger[arm, n]) - better(larger[f"{arm}, plain start", n]))
        for arm in ("x0-nearest", "v-nearest")
        for n in (1, 2, 5, 10)
    }
    assert f"the gain is {min(points)} to {max(points)} percentage points larger" in text


def test_adding_a_coupling_works_as_written(capsys: pytest.CaptureFixture[str]) -> None:
    scope: dict[str, object] = {"__name__": "mine"}
    for example in blocks((ROOT / "docs" / "adding-a-coupling.md").read_text(encoding="utf-8"), "python"):
        exec(compile(example, "adding-a-coupling.md", "exec"), scope)  # noqa: S102
    first, second = (line.split() for line in capsys.readouterr().out.splitlines())
    assert (first[0], float(first[1])) == ("independent", 0.0)
    assert second[0] == "signed"
    assert float(second[1]) > 1
    assert float(second[2]) == pytest.approx((2 / 3.14159) ** 0.5, abs=0.03)


def recorded(name: str, metric: str = "frechet") -> dict[tuple[str, int], dict[str, float]]:
    """Return the final numbers of a record by arm and sampling steps."""
    finals = json.loads((ROOT / "results" / name / "summary.json").read_text(encoding="utf-8"))["finals"]
    return {(row["arm"], row["sampling_steps"]): row for row in finals if row["metric"] == metric}


def better(row: dict[str, float]) -> float:
    """Return by how many per cent an arm ends better than independent noise, of a row of final numbers."""
    return -100 * row["difference"] / row["reference_mean"]


def speedups(name: str) -> dict[int, float]:
    """Return how many times sooner assignment arrives in a record, by sampling steps."""
    rows = json.loads((ROOT / "results" / name / "summary.json").read_text(encoding="utf-8"))["speedups"]
    return {
        row["sampling_steps"]: row["ratio"]
        for row in rows
        if (row["arm"], row["metric"]) == ("assignment", "frechet") and row["ratio"]
    }


def bests(name: str) -> dict[tuple[str, int], float]:
    """Return the best evaluation of each run of a record, in the mean over seeds, by arm and sampling steps."""
    curves = json.loads((ROOT / "results" / name / "summary.json").read_text(encoding="utf-8"))["curves"]
    return {
        (row["label"], row["sampling_steps"]): mean(
            min(value for _, value in curve) for curve in row["by_seed"].values()
        )
        for row in curves
    }


def ends(finals: dict[tuple[str, int], dict[str, float]], steps: int) -> str:
    """Return where assignment and independent noise end, as the README says it."""
    return f"{number(finals['assignment', steps]['mean'])} in place of {number(finals['independent', steps]['mean'])}"


GAINS = [
    ("few-steps-dimension/cpu", "32-pixels-assignment"),
    ("few-steps-flow/cpu", "assignment"),
    ("few-steps-data-sets/cpu", "semidiscrete"),
    ("few-steps-latents-256/cpu", "assignment"),
    ("sd-class-conditional/cpu", "assignment-per-class"),
    ("demo", "assignment"),
    ("few-steps-16-pixels/cpu", "v-assignment"),
    ("few-steps-16-pixels-eps/cpu", "assignment"),
    ("few-steps-ddim/cpu", "v-assignment"),
    ("few-steps-ddim/cpu", "x0-assignment"),
    ("few-steps-ddim/cpu", "eps-assignment"),
    ("few-steps-consistency/cpu", "published-assignment"),
    ("few-steps-consistency/cpu", "lognormal-assignment"),
]
"""Record and arm of each row of the README's table of gains."""


def gain_cells(name: str, arm: str) -> list[str]:
    """Return training steps and how the distance changes in 1, 2, 5, 10 and 50 sampling steps, as the README has it."""
    rows = recorded(name)
    summary = json.loads((ROOT / "results" / name / "summary.json").read_text(encoding="utf-8"))
    near = {tuple(row[:2]) for row in final_rows(summary, "frechet") if row[3].endswith("†")}
    cells = [f"{summary['configurations'][arm]['train']['steps']:,}"]
    for steps in (1, 2, 5, 10, 50):
        row = rows.get((arm, steps))
        if row is None:
            cells.append("")
        elif row["p"] > 0.05:
            cells.append("n.s.")
        else:
            cells.append(f"{-better(row):+.0f} %".replace("-", "\N{MINUS SIGN}") + " †" * ((arm, str(steps)) in near))
    return cells


def readme_problems(text: str) -> list[str]:
    """Return what the README says otherwise than the records."""
    couplings = json.loads((ROOT / "benchmarks" / "results" / "couplings.json").read_text(encoding="utf-8"))["rows"]
    (milliseconds,) = (
        row["median_ms"] for row in couplings
        if (row["task"], row["name"], row["b"], row["d"]) == ("assignment", "this library, fp32", 256, 3072)
    )  # fmt: skip
    faces, sooner = recorded("few-steps-faces/cpu"), speedups("few-steps-flow/cpu")
    best = bests("few-steps-flow/cpu")
    kept = [f"{100 * (1 - best['assignment', steps] / best['independent', steps]):.0f}" for steps in (1, 2, 5, 10)]
    says = {
        f"assignment gains {', '.join(kept[:3])} and {kept[3]} % at 1, 2, 5 and 10.": True,
        f"is {ends(faces, 2)} at 2 steps, {ends(faces, 4)} at 4 and {ends(faces, 20)} at 20": True,
        f"reaches comes {sooner[2]:.1f} times sooner at 2 and at 5 sampling steps": f"{sooner[5]:.1f}"
        == f"{sooner[2]:.1f}",
        f"and {sooner[10]:.1f} times at 10 (1.7 to 2.6)": True,
        f"take {milliseconds:.0f} ms": True,
    }
    words = " ".join(text.split())
    wrong = [line for line, true in says.items() if not true or line not in words]
    table = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if "](docs/results/" in line and line[0] == "|"
    ]
    for (name, arm), row in itertools.zip_longest(GAINS, table, fillvalue=("", "")):
        page = f"docs/results/{name.replace('/', '-')}.md"
        if f"({page})" not in row[0] or list(row[1:]) != gain_cells(name, arm):
            wrong.append(f"| [...]({page}) | {' | '.join(gain_cells(name, arm))} |")
    return wrong


def test_the_numbers_of_the_readme_are_the_recorded_ones() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme_problems(text) == []
    minus = "\N{MINUS SIGN}"
    slips = {
        "8.02": "8.03",
        "9 ms": "8 ms",
        f"{minus}55 %": f"{minus}56 %",
        "2.1 times": "2.2 times",
        "35, 16": "35, 26",
    }
    for right, wrong in (slips | {"| 4,000 |": "| 5,000 |"}).items():
        assert len(readme_problems(text.replace(right, wrong))) == 1


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 110


@pytest.mark.slow
def test_extending_works_as_written(tmp_path: Path) -> None:
    """The page's classes in one module, its experiment, and its two commands, as a reader would."""
    text = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    (tmp_path / "mine.py").write_text("\n".join(blocks(text, "python")), encoding="utf-8")
    (experiment,) = blocks(text, "toml")
    (tmp_path / "stripes.toml").write_text(experiment, encoding="utf-8")
    commands = "".join(blocks(text, "bash")).splitlines()
    assert [command.split()[1] for command in commands] == ["train", "report"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    for command in commands:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "immiscible_diffusion", *command.split()[1:]],  # the command adds no folder
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((tmp_path / "runs" / "stripes" / "summary.json").read_text(encoding="utf-8"))
    finals = {(row["arm"], row["sampling_steps"]): row["mean"] for row in summary["finals"]}
    assert len(finals) == 4
    assert all(0 < value < 10 for value in finals.values())
