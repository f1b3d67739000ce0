"""Comparison of runs: every number against a closed form, an enumeration or scipy; every refusal with its control."""

import csv
import io
import itertools
import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from scipy import stats

from immiscible_diffusion.cli import run
from immiscible_diffusion.cli.comparing import comparison_tables
from immiscible_diffusion.experiments.experiment import read_experiment
from immiscible_diffusion.experiments.values import overridden
from immiscible_diffusion.report.compare import Comparison, compare, notes
from immiscible_diffusion.report.figures import compare_figure
from immiscible_diffusion.report.read_runs import Pace, read_arms
from immiscible_diffusion.report.speedup import Curve, Speedup, arrival, mean_bounds
from immiscible_diffusion.runs.run import execute

pytestmark = pytest.mark.medium

BASE = read_experiment("demo").cells()[0].config.plain()
CPU = {"system": "Linux", "processor": "one", "threads": 1, "accelerator": None, "commit": "abc", "packages": {}}
STEPS = range(100, 1601, 100)


def write_run(folder: Path, curve: Curve, *, ms: float = 10.0, **changes: Any) -> Path:
    """Write a finished run as the loop does, with this curve as its Fréchet distance at 5 sampling steps."""
    config: Mapping[str, Any] = BASE
    environment = {**CPU, **changes.pop("environment", {})}
    metric, start = changes.pop("metric", "frechet"), changes.pop("start", "matched")
    for key, value in changes.items():
        config = overridden(config, key.replace("__", "."), value)
    line = {"sampling_steps": 5, "start": start, "samples": 1000, "sample_seed": 0, "wall_seconds": 9.0}
    evaluations = [{"step": step, **line, metric: value} for step, value in curve]
    log = [
        {"step": s, "step_seconds": s * ms / 1000, "coupling_seconds": s * ms / 4000, "waiting_seconds": s * ms / 2000}
        for s in range(50, curve[-1][0] + 1, 50)
    ]
    (folder / "export").mkdir(parents=True)
    (folder / "export" / "immiscible.json").write_text("{}")
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "environment.json").write_text(json.dumps([environment]))
    for name, lines in (("evaluations.jsonl", evaluations), ("log.jsonl", log)):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in lines))
    return folder


def falling(
    pace: float, noise: np.random.Generator | None = None, spread: float = 0.01, steps: range = STEPS
) -> list[tuple[int, float]]:
    """A distance that falls as a power of the step, ``pace`` times as fast."""
    wobble = np.zeros(len(steps)) if noise is None else spread * noise.standard_normal(len(steps))
    return [(s, 100 * (pace * s / 100) ** -0.5 * math.exp(w)) for s, w in zip(steps, wobble, strict=True)]


def compared(folders: list[Path], metric: str = "frechet") -> list[Comparison]:
    arms, _ = read_arms(folders)
    return compare(arms[0], arms, metric)


def noted(folders: list[Path]) -> list[str]:
    arms, _ = read_arms(folders)
    return list(notes(arms[0], arms))


def only(folders: list[Path], metric: str = "frechet") -> Comparison:
    (comparison,) = compared(folders, metric)
    return comparison


def seconds(comparison: Comparison) -> Speedup:
    found = comparison.seconds()
    assert found is not None
    return found


def two_arms(folder: Path, paces: Mapping[int, float], ratio: float, **changes: Any) -> list[Path]:
    """Write independent and assignment runs over seeds; the latter is ``ratio`` times as fast in steps."""
    first = [write_run(folder / f"a{s}", falling(p), train__seed=s) for s, p in paces.items()]
    ours = {"coupling": {"use": "assignment"}, "ms": 20.0, **changes}
    return first + [write_run(folder / f"b{s}", falling(ratio * p), train__seed=s, **ours) for s, p in paces.items()]


def test_a_known_ratio_of_steps_and_of_seconds_is_found(tmp_path: Path) -> None:
    comparison = only(two_arms(tmp_path, {0: 1.0, 1: 1.2, 2: 0.9}, 3.0))
    assert comparison.speedup().arrived == len(comparison.pairs) == 3
    assert comparison.speedup().bounds == pytest.approx((3.0, 3.0), rel=0.01)
    assert seconds(comparison).bounds == pytest.approx((1.5, 1.5), rel=0.01)  # each step takes twice as long
    assert mean_bounds(seconds(comparison).reference) == pytest.approx((16.0, 16.0), rel=1e-9)  # 1600 steps of 10 ms
    assert comparison.target() == pytest.approx(np.mean([25 / math.sqrt(p) for p in (1.0, 1.2, 0.9)]))
    for speedup in (comparison.speedup(), seconds(comparison)):
        assert speedup.interval is not None
        assert speedup.ratio is not None
        assert speedup.interval[0] <= speedup.ratio <= speedup.interval[1]


@pytest.mark.parametrize("truth", [1.0, 3.0])
def test_the_interval_holds_the_truth_and_not_another(tmp_path: Path, truth: float) -> None:
    """Equal arms have 1 in their interval; the arm goes on longer, so that no seed is cut before it arrives."""
    generator = np.random.default_rng(0)  # one draw of those that test_coverage counts
    folders = []
    for seed in range(5):
        pace, ours = (math.exp(0.1 * generator.standard_normal()) for _ in "ab")
        curves = falling(pace, generator), falling(truth * pace * ours, generator, steps=range(100, 3201, 100))
        folders.append(write_run(tmp_path / f"a{seed}", curves[0], train__seed=seed))
        folders.append(write_run(tmp_path / f"b{seed}", curves[1], train__seed=seed, coupling={"use": "assignment"}))
    speedup = only(folders).speedup()
    assert speedup.interval is not None
    assert speedup.bootstrap is not None
    assert speedup.interval[0] <= truth <= speedup.interval[1]
    assert not speedup.interval[0] <= 4 - truth <= speedup.interval[1]  # the control: the truth of the other case
    assert speedup.interval[0] < speedup.bootstrap[0] < speedup.bootstrap[1] < speedup.interval[1]


def test_seconds_leave_out_what_other_programs_took(tmp_path: Path) -> None:
    """Seconds are steps at the median pace of the logged intervals; a mean would count the pause of one seed."""
    folders = two_arms(tmp_path, {0: 1.0, 1: 1.1, 2: 1.2}, 2.0)
    expected = seconds(only(folders)).bounds
    lines = [json.loads(line) for line in (folders[0] / "log.jsonl").read_text().splitlines()]
    for line in lines[10:]:
        line["step_seconds"] += 100.0
    (folders[0] / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert seconds(only(folders)).bounds == pytest.approx(expected)
    for line in lines:  # the control: a run that is slower throughout
        line["step_seconds"] *= 50
    for folder in folders[:3]:
        (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert seconds(only(folders)).bounds[0] > 10 * expected[0]


def test_a_seed_that_does_not_arrive_bounds_the_ratio(tmp_path: Path) -> None:
    """Two of three arrive: the geometric mean is at most what it were if the third arrived just after its end."""
    folders = two_arms(tmp_path, {0: 1.0, 1: 1.0}, 2.0)
    folders.append(write_run(tmp_path / "a2", falling(1.0), train__seed=2))
    folders.append(write_run(tmp_path / "b2", falling(0.5), train__seed=2, coupling={"use": "assignment"}, ms=20.0))
    comparison = only(folders)
    steps = comparison.speedup()
    assert (steps.arrived, len(comparison.pairs)) == (2, 3)
    assert steps.bounds[0] == 0
    assert steps.bounds[1] == pytest.approx((2 * 2 * 1) ** (1 / 3), rel=0.01)
    assert steps.bounds[1] < 2  # the control: leaving the seed out would claim 2
    assert (steps.ratio, steps.bootstrap) == (None, None)
    upper = stats.ttest_1samp(np.log([high for _, high in steps.by_pair.values()]), 0).confidence_interval().high
    assert steps.interval == pytest.approx((0.0, math.exp(upper)))
    assert mean_bounds(steps.arm) == pytest.approx(((800 + 800 + 1600) / 3, math.inf), rel=0.01)
    assert seconds(comparison).by_pair[2, 2] == pytest.approx((0.0, 16 / 32))


def test_an_arm_that_is_there_at_once_has_a_lower_bound(tmp_path: Path) -> None:
    found = only(two_arms(tmp_path, {0: 1.0, 1: 1.0}, 40.0)).speedup()
    assert found.bounds == pytest.approx((16.0, math.inf))
    assert mean_bounds(found.arm) == (0.0, 100.0)
    assert found.interval == pytest.approx((16.0, math.inf))


def test_best_and_final_are_taken_seed_by_seed(tmp_path: Path) -> None:
    flat = [(100, 50.0), (200, 20.0), (300, 30.0), (400, 25.0)]
    falls = [(100, 50.0), (200, 25.0), (300, 20.0), (400, 15.0)]
    paths = [write_run(tmp_path / "a", flat), write_run(tmp_path / "b", falls, coupling={"use": "assignment"})]
    comparison = only(paths)
    assert (comparison.target("best"), comparison.target("final")) == (20.0, 25.0)
    # By the reference's own curve 25 is first met between 100 and 200, where the logarithm is linear.
    first = 100 + 100 * math.log(50 / 25) / math.log(50 / 20)
    assert comparison.speedup().bounds == pytest.approx((first / 200, first / 200))
    assert comparison.speedup("best").bounds == pytest.approx((200 / 300, 200 / 300))


def test_more_is_better_for_some_metrics(tmp_path: Path) -> None:
    rising = [
        [(s, v) for s, v in zip((100, 200, 300), values, strict=True)] for values in ((0.1, 0.4, 0.4), (0.2, 0.8, 0.9))
    ]
    paths = [write_run(tmp_path / "a", rising[0], metric="recall")]
    paths.append(write_run(tmp_path / "b", rising[1], metric="recall", coupling={"use": "assignment"}))
    row = only(paths, "recall")
    assert row.target() == pytest.approx(0.4)
    assert row.speedup().bounds == pytest.approx((200 / 150, 200 / 150))  # .4 is half way from .2 to .8 in logarithms


def test_a_distance_below_zero_is_reached_without_logarithms(tmp_path: Path) -> None:
    paths = [write_run(tmp_path / "a", [(100, 5.0), (200, -0.1)], metric="kernel")]
    paths.append(write_run(tmp_path / "b", [(100, 4.0), (200, -0.2)], metric="kernel", coupling={"use": "assignment"}))
    assert only(paths, "kernel").speedup().bounds == (1.0, 1.0)


def test_other_seeds_are_set_against_each_other(tmp_path: Path) -> None:
    paths = [write_run(tmp_path / f"a{s}", falling(p), train__seed=s) for s, p in ((0, 1.0), (1, 1.3), (2, 0.8))]
    for seed, pace in ((7, 3.0), (8, 2.0)):
        paths.append(write_run(tmp_path / f"b{seed}", falling(pace), train__seed=seed, coupling={"use": "assignment"}))
    comparison = only(paths)
    assert len(comparison.pairs) == 6
    assert comparison.speedup().ratio == pytest.approx(
        (math.sqrt(6) / (1.0 * 1.3 * 0.8) ** (1 / 3)), rel=0.02
    )  # step counts to the target y of pace p: 100 (100 / y)² / p, so the ratio of b to a is p_b / p_a
    final = comparison.difference
    values = [[25 / math.sqrt(p) for p in paces] for paces in ((3.0, 2.0), (1.0, 1.3, 0.8))]
    expected = stats.ttest_ind(*values, equal_var=False)
    assert final.p_t == pytest.approx(expected.pvalue)
    assert final.interval == pytest.approx(tuple(expected.confidence_interval()))
    assert any("unpaired" in note for note in noted(paths))


def test_seeds_without_partner_are_named(tmp_path: Path) -> None:
    folders = two_arms(tmp_path, {0: 1.0, 1: 1.1}, 2.0)
    folders.append(write_run(tmp_path / "x", falling(1.0), train__seed=5))
    assert only(folders).pairs == [(0, 0), (1, 1)]
    assert any("seeds [5] have no partner" in note for note in noted(folders))


def coverage(seeds: int, *, spread: float = 0.02, ratio: float = 3.0) -> tuple[float, float]:
    """Return how often the two intervals of 200 studies hold the truth: paces vary by seed, evaluations by 2 %."""
    generator = np.random.default_rng(seeds)
    hits = np.zeros(2)
    for _ in range(200):
        reference, its = {}, {}
        for seed in range(seeds):
            pace = math.exp(0.1 * generator.standard_normal())
            first = falling(pace, generator, spread)
            second = falling(pace * ratio * math.exp(0.15 * generator.standard_normal()), generator, spread)
            reference[seed, seed] = arrival(first, first[-1][1])
            its[seed, seed] = arrival(second, first[-1][1])
        speedup = Speedup({}, reference, its)
        hits += [bounds is not None and bounds[0] <= 3 <= bounds[1] for bounds in (speedup.interval, speedup.bootstrap)]
    return float(hits[0]) / 200, float(hits[1]) / 200


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_coverage(seeds: int) -> None:
    """Of 200 studies the t interval holds the truth about as often as it says; the bootstrap of few seeds does not."""
    t, bootstrap = coverage(seeds)
    assert 0.89 <= t <= 0.99  # .95 within three s.d. of a share of 200, and first passage is early by some %
    assert bootstrap < t
    assert bootstrap == pytest.approx({3: 0.73, 5: 0.83, 10: 0.88}[seeds], abs=0.07)
    assert coverage(seeds, ratio=2.0)[0] < 0.5  # the control: a truth of 2 is not taken for 3


def test_bare_runs_are_named_by_what_differs(tmp_path: Path) -> None:
    choices: list[dict[str, Any]] = [
        {"use": "independent"},
        {"use": "nearest", "k": 8, "cost": "dot"},
        {"use": "nearest", "k": 64, "cost": "dot"},
        {"use": "assignment", "cost": "l2"},
    ]
    for i, choice in enumerate(choices):
        write_run(tmp_path / str(i), falling(1.0), coupling=choice)
    arms, _ = read_arms(sorted(tmp_path.iterdir()))
    assert [arm.name for arm in arms] == [
        "coupling=independent",
        "coupling=nearest, coupling.k=8",
        "coupling=nearest, coupling.k=64",
        "coupling=assignment",
    ]
    assert read_arms([tmp_path / "0"])[0][0].name == "run"


def index(folder: Path, arms: Mapping[str, str]) -> Path:
    runs = [{"arm": arm, "seed": 0, "folder": name} for name, arm in arms.items()]
    (folder / "index.json").write_text(json.dumps({"experiment": "x", "runs": runs}))
    return folder


def test_an_experiment_has_its_own_names(tmp_path: Path) -> None:
    two_arms(tmp_path, {0: 1.0, 1: 1.0}, 2.0)
    arms, notes = read_arms([tmp_path])  # without an index: all that lies there
    assert [arm.name for arm in arms] == ["coupling=independent", "coupling=assignment"]
    assert notes == []
    arms, notes = read_arms([index(tmp_path, {"b0": "ours", "a0": "theirs", "b1": "ours"}), tmp_path / "b0"])
    assert [(arm.name, list(arm.runs)) for arm in arms] == [("ours", [0, 1]), ("theirs", [0])]
    assert len(notes) == 1
    assert "a1" in notes[0]


def test_two_arms_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for name, batch in (("one", 128), ("two", 64)):
        write_run(tmp_path / name / "r", falling(1.0), train__batch=batch)
        index(tmp_path / name, {"r": "run"})
    arms, _ = read_arms([tmp_path / "one", tmp_path / "two"])
    assert [arm.name for arm in arms] == ["run (train.batch=128)", "run (train.batch=64)"]


def test_unfinished_runs_are_left_out_and_named(tmp_path: Path) -> None:
    folders = two_arms(tmp_path, {0: 1.0, 1: 1.0}, 2.0)
    (folders[1] / "export" / "immiscible.json").unlink()
    arms, notes = read_arms(folders)
    assert [list(arm.runs) for arm in arms] == [[0], [0, 1]]
    assert notes == [f"left out, not finished: {folders[1]}"]


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"source__held_out_rows": 400}, "source.held_out_rows is 400, not 500"),
        ({"source": {"use": "images", "path": "x"}}, "source is images, not digits"),
        ({"evaluate__samples": 500}, "evaluate.samples is 500, not 1000"),
        ({"evaluate__seed": 1}, "evaluate.seed is 1, not 0"),
        ({"evaluate__features": {"use": "pooled_pixels", "size": 8}}, "evaluate.features is pooled_pixels"),
        ({"evaluate__metrics": [{"use": "frechet", "ridge": 1}]}, "ridge"),
    ],
)
def test_numbers_of_another_measurement_are_refused(tmp_path: Path, changes: dict[str, Any], key: str) -> None:
    folders = two_arms(tmp_path, {0: 1.0}, 2.0, **changes)
    with pytest.raises(ValueError, match=key):
        compared(folders)
    assert compared(two_arms(tmp_path / "control", {0: 1.0}, 2.0, evaluate__metrics=[{"use": "frechet"}]))


def test_another_metric_beside_it_does_not_matter_but_is_told(tmp_path: Path) -> None:
    folders = two_arms(tmp_path, {0: 1.0}, 2.0, evaluate__metrics=[{"use": "frechet"}])
    assert any("evaluate.metrics" in note for note in noted(folders))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train__batch": 64}, "train.batch is 64, not 128"),
        ({"train__lr": 0.1}, "train.lr is 0.1, not 0.001"),
        ({"net": {"use": "unet", "channels": [8]}}, "net is unet, not mlp"),
        ({"evaluate__every": 50}, "evaluate.every is 50, not 250"),
    ],
)
def test_more_than_the_coupling_is_told(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    (note,) = noted(two_arms(tmp_path, {0: 1.0}, 2.0, **changes))
    assert said in note
    assert note.count(";") == 0  # options of another choice go without saying
    assert noted(two_arms(tmp_path / "control", {0: 1.0}, 2.0)) == []


@pytest.mark.parametrize("change", [{"processor": "two"}, {"threads": 2}, {"accelerator": "A100"}])
def test_seconds_of_different_machines_are_withheld(tmp_path: Path, change: dict[str, Any]) -> None:
    folders = two_arms(tmp_path, {0: 1.0}, 2.0, environment=change)
    assert only(folders).seconds() is None
    assert only(folders).speedup().ratio == pytest.approx(2, rel=0.01)
    assert any("no seconds" in note for note in noted(folders))


def test_another_commit_is_told(tmp_path: Path) -> None:
    folders = two_arms(tmp_path, {0: 1.0}, 2.0, environment={"commit": "def"})
    assert only(folders).seconds() is not None
    assert any("one commit" in note for note in noted(folders))


def test_the_coupling_costs_what_the_step_waits_for_it(tmp_path: Path) -> None:
    folders = two_arms(tmp_path, {0: 1.0}, 2.0)
    assert read_arms(folders)[0][1].pace == Pace(20.0, 25.0)
    lines = [json.loads(line) for line in (folders[1] / "log.jsonl").read_text().splitlines()]
    for waited, percent in ((1.0, 5.0), (None, 25.0)):  # of 20 ms; older folders do not say what was waited for
        for line in lines:
            line.pop("waiting_seconds")
            line |= {} if waited is None else {"waiting_seconds": line["step"] * waited / 1000}
        (folders[1] / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        assert read_arms(folders)[0][1].pace == Pace(20.0, percent)


def test_a_plain_start_is_a_row_of_its_own(tmp_path: Path) -> None:
    folders = two_arms(tmp_path, {0: 1.0}, 2.0)
    lines = (folders[1] / "evaluations.jsonl").read_text()
    (folders[1] / "evaluations.jsonl").write_text(lines + lines.replace("matched", "normal"))
    rows = compared(folders)
    assert [row.arm.label for row in rows] == ["coupling=assignment", "coupling=assignment, plain start"]
    assert rows[0].difference == rows[1].difference


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda f: (f[1] / "config.json").write_text("[]"), "it is \\[\\], not a table"),
        (lambda f: (f[1] / "log.jsonl").write_text("{"), "cannot read"),
        (lambda f: index(f[0].parent, {"../a0": "x"}), "not a folder beside it"),
        (lambda f: index(f[0].parent, {"/etc": "x"}), "not a folder beside it"),
        (lambda f: (f[1] / "config.json").write_bytes((f[0] / "config.json").read_bytes()), "is there twice"),
        (lambda f: [(each / "export" / "immiscible.json").unlink() for each in f], "no finished run"),
    ],
)
def test_what_cannot_be_read_is_said(tmp_path: Path, broken: Callable[[list[Path]], object], message: str) -> None:
    folders = two_arms(tmp_path, {0: 1.0}, 2.0)
    assert read_arms([tmp_path])[0]  # the control
    broken(folders)
    with pytest.raises(ValueError, match=message):
        read_arms([tmp_path])


@pytest.mark.usefixtures("unchecked")
def test_the_command_says_mistakes_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [str(path) for path in two_arms(tmp_path / "runs", {0: 1.0}, 2.0)]
    for arguments, message in [
        (folders[:1], "one arm"),
        ([str(tmp_path)], "holds neither a run"),
        ([*folders, "--reference", "nobody"], "no arm named 'nobody'; there are ['coupling=independent'"),
        ([*folders, "--metric", "charm"], "nothing to compare by 'charm'"),
        ([*folders, "--figure", "x.pdf"], "no format '.pdf'"),
    ]:
        assert run(["compare", *arguments]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


def test_the_command_writes_what_it_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [str(path) for path in two_arms(tmp_path / "runs", {0: 1.0, 1: 1.1, 2: 1.2}, 2.0)]
    files = [tmp_path / "new" / name for name in ("table.csv", "curves.png", "curves.svg")]
    assert run(["compare", *folders, "--csv", str(files[0]), "--figure", str(files[1])]) == 0
    printed = capsys.readouterr().out
    assert run(["compare", *folders, "--figure", str(files[2]), "--reference", "coupling=assignment"]) == 0
    printed_back = capsys.readouterr().out
    assert re.search(r"≤ 1.00x +to 1.00 +not reached", printed_back)  # the other way round: nobody saw by how much
    rows = list(csv.DictReader(io.StringIO(files[0].read_text())))
    assert [(row["target"], row["unit"]) for row in rows] == list(
        itertools.product(("final", "best"), ("steps", "seconds"))
    )
    for row in rows:
        assert f"{float(row['ratio_low']):#.3g}x" in printed
        assert set(json.loads(row["ratio_by_seeds"])) == {"0/0", "1/1", "2/2"}
    assert float(rows[0]["arm_last"]) == pytest.approx(np.mean([25 / math.sqrt(2 * p) for p in (1.0, 1.1, 1.2)]))
    with Image.open(files[1]) as figure:
        assert figure.size[0] > 500
    assert files[2].read_text().startswith("<?xml")
    assert sorted(path.name for path in files[0].parent.iterdir()) == ["curves.png", "curves.svg", "table.csv"]


@pytest.mark.parametrize("form", ["png", "svg"])
def test_figures_are_the_same_each_time(tmp_path: Path, form: Any) -> None:
    arms, _ = read_arms(two_arms(tmp_path, {0: 1.0, 1: 1.1}, 2.0))
    found = compare(arms[0], arms, "frechet")
    assert compare_figure(found, arms[0], arms, form) == compare_figure(found, arms[0], arms, form)


def test_tables_fit_in_100_columns_and_lose_nothing(tmp_path: Path) -> None:
    folders = two_arms(tmp_path, {0: 1.0, 1: 1.3, 2: 0.7}, 0.5, coupling={"use": "nearest", "k": 12345, "cost": "dot"})
    folders += [write_run(tmp_path / "c", falling(1.0), coupling={"use": "nearest", "k": 8, "cost": "dot"})]
    console = Console(width=100, file=io.StringIO(), force_terminal=False)
    arms, _ = read_arms(folders)
    for table in comparison_tables(compare(arms[0], arms, "frechet"), arms):
        console.print(table)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= 100
    assert "not reached" in text
    assert "…" not in text


def test_names_are_not_read_as_markup(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    two_arms(tmp_path, {0: 1.0}, 2.0)
    assert run(["compare", str(index(tmp_path, {"a0": "[red]one", "b0": "[/]two"}))]) == 0
    printed = capsys.readouterr().out
    assert "[red]one" in printed
    assert "[/]two" in printed


def test_runs_of_the_loop_itself_are_read(tmp_path: Path) -> None:
    """What ``execute`` writes is what is read here: steps, seconds and distances of two real runs."""
    cells = read_experiment("demo").cells("smoke", [("train.seed", 0)])
    folders = []
    for cell in cells:
        folders.append(tmp_path / cell.folder)
        list(execute(cell.config, folders[-1], torch.device("cpu")))
    arms, _ = read_arms(folders)
    rows = compare(arms[0], arms, "frechet")
    assert len(rows) == 2 * 3  # two numbers of sampling steps; assignment, and nearest from two starts
    lines = [json.loads(line) for line in (folders[0] / "log.jsonl").read_text().splitlines()]
    spent = np.diff([0.0, *(line["step_seconds"] for line in lines)])
    steps = np.diff([0, *(line["step"] for line in lines)])
    assert arms[0].pace is not None
    assert arms[0].pace.step_ms == pytest.approx(1000 * np.median(spent / steps), abs=6e-4)
    assert all(row.seconds() is not None for row in rows)
