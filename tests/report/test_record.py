"""Records and pages made of real runs: references within a group, pages that say what is recorded, one run repeated."""

import base64
import dataclasses
import html
import json
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import torch

from immiscible_diffusion import registry
from immiscible_diffusion.cli import run
from immiscible_diffusion.cli.options import run_app
from immiscible_diffusion.files import read_json, write_json
from immiscible_diffusion.registry import lookup, names, register
from immiscible_diffusion.report.measures import rises
from immiscible_diffusion.report.record import record, speedup_values
from immiscible_diffusion.report.sentences import final_rows, findings, floor_findings, number, speedup_cells
from immiscible_diffusion.report.speedup import Curve, speedup
from studies.__main__ import app
from studies.pages import html_page, pages
from studies.rerun import recorded_config

pytestmark = pytest.mark.medium

ROOT = Path(__file__).parents[2]


def studies(arguments: list[str]) -> int:
    return run_app(app, arguments)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a finished experiment of two axes, image scale and coupling, with three seeds."""
    folder = tmp_path_factory.mktemp("runs")
    sets = ["train.seed=[0,1,2]", "train.steps=4", "evaluate.every=1", "evaluate.steps=[2]", "net.channels=[8]"]
    sets += ["evaluate.last_steps=[3]"]
    values = [part for option in sets for part in ("--set", option)]
    arguments = ["train", "image-scale", "--scale", "smoke", "--out", str(folder), "--workers", "1", *values]
    assert run(arguments) == 0
    return folder / "image-scale"


@pytest.fixture
def root(runs: Path, tmp_path: Path) -> Path:
    """Return a repository with that experiment recorded and its pages written."""
    assert run(["report", str(runs), "--record", str(tmp_path / "results" / "image-scale" / "cpu")]) == 0
    assert studies(["pages", "--root", str(tmp_path)]) == 0
    return tmp_path


def test_an_arm_is_compared_with_independent_noise_at_its_own_scale(runs: Path) -> None:
    numbers = record(runs)
    values: dict[str, dict[str, float]] = {row["arm"]: row["by_seed"] for row in numbers["finals"]}
    compared = [
        row
        for row in numbers["finals"]
        if "difference" in row and row["metric"] == "frechet" and row["sampling_steps"] == 2
    ]
    assert {row["arm"]: row["reference"] for row in compared} == {
        f"{scale}-assignment": f"{scale}-independent" for scale in ("0.5", "1", "2")
    }
    ends = [row for row in numbers["finals"] if row["metric"] == "frechet" and row["sampling_steps"] == 2]
    finals = {row["arm"]: row["by_seed"] for row in ends}
    for row in compared:
        expected = mean(finals[row["arm"]][seed] - finals[row["reference"]][seed] for seed in "012")
        assert row["difference"] == pytest.approx(expected)
        elsewhere = finals["1-independent" if row["reference"] != "1-independent" else "2-independent"]
        assert row["difference"] != pytest.approx(mean(finals[row["arm"]][s] - elsewhere[s] for s in "012"))
    assert len(values) == 6
    faster = [row for row in numbers["speedups"] if row["metric"] == "frechet"]
    assert {row["group"] for row in faster} == {"std 0.5", "std 1", "std 2"}
    assert all(len(row["by_seed"]) == 3 for row in faster)


def test_sampling_steps_measured_once_have_an_end_and_no_speed_up(runs: Path) -> None:
    numbers = record(runs)
    assert {row["sampling_steps"] for row in numbers["finals"]} == {2, 3}
    assert {row["sampling_steps"] for row in numbers["speedups"]} == {2}
    said = findings(numbers, "frechet")
    assert [line for line in said if line.startswith("At 3 sampling steps 1-independent ends at a ")]
    assert not [line for line in said if line.startswith("At 3 sampling steps independent noise reaches")]
    assert [line for line in said if line.startswith("At 2 sampling steps (std 1) independent noise reaches")]


def test_the_target_is_the_best_that_the_reference_was_on_the_way(runs: Path, tmp_path: Path) -> None:
    """Curves at few sampling steps turn: independent noise ends worse than it was, and its end is an easy target."""
    shutil.copytree(runs, tmp_path / "runs")
    for path in (tmp_path / "runs").glob("1-*/evaluations.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        values = [9.0, 4.0, 5.0, 6.0] if "independent" in path.parent.name else [8.0, 5.5, 4.0, 3.0]
        changed = [{**line, "frechet": values[line["step"] - 1]} for line in lines]
        path.write_text("".join(json.dumps(line) + "\n" for line in changed))
    numbers = record(tmp_path / "runs")
    (row,) = (row for row in numbers["speedups"] if row["arm"] == "1-assignment" and row["metric"] == "frechet")
    assert (numbers["reaches"], row["target"], row["reference_steps"], row["steps"]) == ("best", 4.0, 2.0, 3.0)
    (sentence,) = (text for text in findings(numbers, "frechet") if "(std 1)" in text)
    assert "independent noise reaches its best Fréchet distance, 4, after 2 training steps" in sentence


def test_a_record_holds_every_evaluation(runs: Path) -> None:
    numbers = record(runs)
    lengths = {(row["sampling_steps"], len(c)) for row in numbers["curves"] for c in row["by_seed"].values()}
    assert lengths == {(2, 4), (3, 1)}
    assert all(pace["step_ms"] > 0 for pace in numbers["pace"].values())
    assert recorded(numbers, "2-assignment")["codec"]["std"] == 48.0
    assert recorded(numbers, "1-assignment")["codec"]["std"] == 95.9


def test_a_record_holds_what_real_images_score(runs: Path, root: Path) -> None:
    numbers = record(runs)
    (entry,) = numbers["instrument"]
    floor = entry["floor"]["frechet"]
    (sentence,) = floor_findings(numbers["instrument"], "frechet")
    assert sentence.startswith("10 real training images in place of generated ones score a Fréchet distance of ")
    assert f"{number(floor['mean'])} ± {number(floor['sd'])} against the 500 held-out images, as a perfect" in sentence
    assert sentence.endswith(f"tells the class of {100 * entry['accuracy']:.0f} % of them.")
    assert entry["accuracy"] > 0.96
    *_, last = final_rows(numbers, "frechet")
    assert last == ["real images", "-", f"{number(floor['mean'])} ± {number(floor['sd'])}", "-", "-"]
    for page in (runs / "report.html", *pages_in(root)):  # the lines of a page break within sentences
        assert sentence in " ".join(html.unescape(page.read_text("utf-8")).split())
    (shared,) = floor_findings([entry | {"same_conditions": True} for entry in numbers["instrument"]], "frechet")
    assert "more than a perfect generator would: samples are made under the conditions of the held-out" in shared
    (decoded,) = floor_findings([entry | {"reference": "decoded"} for entry in numbers["instrument"]], "frechet")
    assert "against the 500 held-out images, which the codec encoded and decoded likewise, as a perfect" in decoded
    assert floor_findings([], "frechet") == floor_findings(numbers["instrument"], "another") == []
    both = [entry | {"arms": ["a"]}, entry | {"arms": ["b", "c"]}]
    assert [row[0] for row in final_rows({"finals": [], "instrument": both, "rising": []}, "frechet")] == [
        "real images (a)",
        "real images (b, c)",
    ]


def pages_in(root: Path) -> list[Path]:
    return [root / "docs" / "results" / "image-scale-cpu.md"]


def test_runs_of_an_earlier_version_are_reported(runs: Path, tmp_path: Path) -> None:
    """Options that came later are missing in their configurations."""
    earlier = tmp_path / "earlier"
    shutil.copytree(runs, earlier)
    for path in earlier.glob("*/config.json"):
        plain = read_json(path)
        for name in ("reference", "last_steps", "also", "guidance", "growth"):
            del plain["evaluate"][name]
        write_json(path, plain)
    assert run(["report", str(earlier), "--record", str(tmp_path / "results" / "image-scale" / "cpu")]) == 0
    assert studies(["pages", "--root", str(tmp_path)]) == 0
    assert "compared with the held-out real ones, in" in " ".join((earlier / "report.html").read_text("utf-8").split())


def test_a_finding_says_who_ends_better_where_no_speed_up_can_be_read() -> None:
    """A reference that is best at its first evaluation has no curve to be compared with; its end has."""
    worse: Curve = [(400, 0.7), (800, 0.7)]
    values = speedup_values(speedup({0: worse, 1: worse}, {0: worse, 1: worse}))
    about = {"sampling_steps": 2, "metric": "frechet"}
    rows = [{"arm": arm, **about, "group": "", "target": 0.7, **values} for arm in ("a", "b", "c")]
    ends = [
        {"arm": "a", **about, "mean": 0.35, "difference": -0.35, "reference_mean": 0.7, "p": 0.01},
        {"arm": "b", **about, "mean": 0.77, "difference": 0.07, "reference_mean": 0.7, "p": 0.01},
        {"arm": "c", **about, "mean": 0.35, "difference": -0.35, "p": 0.2},
    ]
    (sentence,) = findings({"speedups": rows, "finals": ends, "rising": []}, "frechet")
    assert sentence.startswith(
        "At 2 sampling steps independent noise reaches its final Fréchet distance, 0.7, by its first"
    )
    assert speedup_cells(rows[0])[2:] == ["0.7", "≤ 400", "≤ 400", "no bound", "first eval."]
    assert "a ends 50 % better (p = 0.01); b ends 10 % worse (p = 0.01); no speed-up is shown for c." in sentence


def falling(*paces: float, last: int = 1600) -> dict[int, Curve]:
    """Return curves of these paces, a seed each, up to a step."""
    steps = range(100, last + 1, 100)
    return {seed: [(k, 100 * (1 + pace * k / 100) ** -0.5) for k in steps] for seed, pace in enumerate(paces)}


@pytest.mark.parametrize(
    ("last", "paces", "words"),
    [
        (1600, (3, 3.1, 2.9), r"a after 53\d, 3.0 times sooner \(2.75 to 3.25\)"),
        (1600, (2,), r"a after 800, 2.0 times sooner \(one seed\)"),
        (1600, (40, 50, 60), r"a by its first evaluation, at least 16.0 times sooner"),
        (400, (0.5, 0.51, 0.49), r"a after 80\d, 0.50 times as soon \(0.48 to 0.53\)"),
        (400, (0.01, 0.01, 0.01), r"a at most 0.25 times as soon"),
        (1600, (0.5, 3, 1), r"no speed-up is shown for a"),
    ],
)
def test_a_finding_says_sooner_or_later_and_how_sure(last: int, paces: tuple[float, ...], words: str) -> None:
    values = speedup_values(speedup(falling(*[1.0] * len(paces), last=last), falling(*paces)))
    row = {"arm": "a", "sampling_steps": 5, "metric": "frechet", "group": "", "target": 1.0, **values}
    (sentence,) = findings({"speedups": [row], "finals": [], "rising": []}, "frechet")
    assert re.search(f"after {last} training steps: {words}", sentence)


@pytest.mark.parametrize(
    ("metric", "base", "change", "words"),
    [
        ("frechet", 0.5, 0.1, "Fréchet distance of 0.5: a 20 % worse"),
        ("frechet", 0.5, -0.1, "Fréchet distance of 0.5: a 20 % better"),
        ("recall", 0.5, 0.1, "recall of 0.5: a 20 % better"),
        ("precision", 0.5, -0.1, "precision of 0.5: a 20 % worse"),
        ("kernel", -0.001, 0.1, "kernel distance of -0.001: a 0.1 worse"),  # no share of what is not positive
        ("kernel", -0.001, -0.1, "kernel distance of -0.001: a 0.1 better"),
    ],
)
def test_better_is_what_the_metric_says_it_is(metric: str, base: float, change: float, words: str) -> None:
    row = {"arm": "a", "reference": "independent", "sampling_steps": 5, "metric": metric, "p": 0.01}
    row |= {"mean": base + change, "difference": change, "reference_mean": base}
    rising = [metric] if rises(metric, {"evaluate": {}}) else []
    (sentence,) = findings({"speedups": [], "finals": [row], "rising": rising}, metric)
    assert sentence == f"At 5 sampling steps independent ends at a {words} (p = 0.01)."


def test_a_metric_of_ones_own_says_which_way_is_better(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._registered, "metric", dict(registry._registered["metric"]))
    built_in, module = names("metric"), types.ModuleType("quality")
    for name in ("Sharpness", "Silent"):
        cls: type[Any] = dataclasses.dataclass(type(name, (), {"__module__": "quality"}))
        setattr(module, name, register("metric")(cls))
    module.Sharpness.better = "higher"
    monkeypatch.setitem(sys.modules, "quality", module)
    assert rises("sharpness", {"evaluate": {"metrics": [{"use": "quality:Sharpness"}]}})
    with pytest.raises(ValueError, match="metric 'quality:Silent' must say which way is better"):
        rises("silent", {"evaluate": {"metrics": [{"use": "quality:Silent"}]}})
    for known in built_in:
        assert rises(known, {"evaluate": {}}) == (lookup("metric", known).better == "higher")
    assert not rises("something_else", {"evaluate": {}})


def test_pace_leaves_out_what_other_programs_took(runs: Path, tmp_path: Path) -> None:
    busy = tmp_path / "runs"
    shutil.copytree(runs, busy)
    for path in busy.glob("*/log.jsonl"):
        line = dict.fromkeys(("data_seconds", "waiting_seconds"), 1.0)
        seconds = [(5, 0.5), (10, 1.0), (15, 11.0)]  # 100 ms a step, and once 2 s
        lines = [{"step": step, "step_seconds": s, "coupling_seconds": s / 10, **line} for step, s in seconds]
        path.write_text("".join(json.dumps(row | {"waiting_seconds": row["step_seconds"]}) + "\n" for row in lines))
    paces = record(busy)["pace"]
    assert paces == {arm: {"step_ms": 100.0, "coupling_percent": 10.0} for arm in recorded_arms(busy)}
    for path in busy.glob("2-assignment-*/log.jsonl"):  # a run that was never logged has no pace
        path.unlink()
    assert record(busy)["pace"] == paces | {"2-assignment": None}


def recorded_arms(folder: Path) -> set[str]:
    return {run["arm"] for run in json.loads((folder / "index.json").read_text())["runs"]}


def recorded(numbers: dict[str, dict[str, dict[str, dict[str, float]]]], arm: str) -> dict[str, dict[str, float]]:
    return numbers["configurations"][arm]


def test_pages_say_what_is_recorded(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert studies(["pages", "--root", str(root), "--check"]) == 0
    assert pages(root) == pages(root)
    text = (root / "docs" / "results" / "image-scale-cpu.md").read_text()
    numbers = json.loads((root / "results" / "image-scale" / "cpu" / "summary.json").read_text())
    assert all(f"{row['mean']:.3g} ±" in text or f"{row['mean']:.0f} ±" in text for row in numbers["finals"])
    assert numbers["question"] in text
    assert text.count("](../../results/image-scale/cpu/distance.svg)") == 1
    assert text.count("](../../results/image-scale/cpu/samples.webp)") == 1
    # Control: a changed number, and a page too many.
    numbers["finals"][0]["mean"] *= 2
    (root / "results" / "image-scale" / "cpu" / "summary.json").write_text(json.dumps(numbers))
    capsys.readouterr()
    assert studies(["pages", "--root", str(root), "--check"]) == 1
    assert "image-scale-cpu.md" in capsys.readouterr().err
    assert studies(["pages", "--root", str(root)]) == 0
    (root / "docs" / "results" / "old.md").write_text("")
    assert studies(["pages", "--root", str(root), "--check"]) == 1


def test_runs_that_two_records_hold_are_told(root: Path) -> None:
    again = root / "results" / "other" / "cpu"
    shutil.copytree(root / "results" / "image-scale" / "cpu", again)
    numbers = json.loads((again / "summary.json").read_text()) | {"title": "Another"}
    for row in numbers["curves"]:
        if row["arm"] != "1-assignment":  # one is shared, the others are not
            row["by_seed"]["0"][-1][1] += 1e-9
    (again / "summary.json").write_text(json.dumps(numbers))
    files = pages(root)
    other, first = (
        " ".join(files[f"docs/results/{name}-cpu.md"].decode().split()) for name in ("other", "image-scale")
    )
    assert f"The same runs, not a repetition: 1-assignment: {numbers_title(root)}." in other
    assert "not a repetition" not in first
    assert html_page(root).decode().count("not a repetition") == 1


def numbers_title(root: Path) -> str:
    """Return the title of the recorded experiment."""
    return str(json.loads((root / "results" / "image-scale" / "cpu" / "summary.json").read_text())["title"])


def test_runs_measured_once_are_compared_by_their_ends(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    once = tmp_path / "runs"
    shutil.copytree(runs, once)
    for path in once.glob("*/evaluations.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines() if json.loads(line)["step"] == 4]
        for line in lines:  # a difference of a tenth, nearly the same for every seed
            line["frechet"] = (9 if "assignment" in path.parent.name else 10) + 0.01 * hash_of(path.parent.name)
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert run(["report", str(once), "--record", str(tmp_path / "results" / "image-scale" / "cpu")]) == 0
    assert studies(["pages", "--root", str(tmp_path)]) == 0
    numbers = json.loads((tmp_path / "results" / "image-scale" / "cpu" / "summary.json").read_text())
    assert numbers["speedups"] == []
    assert "Final Fréchet distance" in capsys.readouterr().out
    text = (tmp_path / "docs" / "results" / "image-scale-cpu.md").read_text()
    ends = [line for line in text.splitlines() if line.startswith("- At 2 sampling steps")]
    assert len(ends) == 3
    assert all(
        re.search(r"ends at a Fréchet distance of 10.*: \S+-assignment 1\d % better † \(p = ", line) for line in ends
    )
    for entry in numbers["instrument"]:  # control: far from the noise floor there is no mark
        entry["floor"]["frechet"]["mean"] = 0.01
    assert not [line for line in findings(numbers, "frechet") if "†" in line]
    assert "Training steps to the independent arm" not in text
    assert "at the end of training, by coupling and sampling steps](../../results/image-scale/cpu/distance.svg)" in text
    svg = (tmp_path / "results" / "image-scale" / "cpu" / "distance.svg").read_text()
    assert "training steps" not in svg
    assert svg.count(">assignment</text>") == 1 * 3  # a row in each of three panels


def hash_of(name: str) -> int:
    """Return a small number that differs between run folders."""
    return sum(map(ord, name)) % 7


def test_the_pages_of_this_repository_say_what_is_recorded() -> None:
    assert studies(["pages", "--root", str(ROOT), "--check"]) == 0, "write them again: python -m studies pages"


@pytest.mark.slow
def test_a_recorded_run_is_repeated_bit_for_bit(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = root / "results" / "image-scale" / "cpu" / "summary.json"
    arguments = ["rerun", str(summary), "--arm", "2-assignment", "--seed", "1", "--out", str(tmp_path / "again")]
    assert studies([*arguments, "--keep"]) == 0
    assert "bit for bit" in capsys.readouterr().out
    (kept,) = json.loads((summary.parent / "rerun.json").read_text())
    assert (kept["arm"], kept["seed"], kept["differing"]) == ("2-assignment", 1, 0)
    assert kept["numbers"] > 8
    assert studies(["pages", "--root", str(root)]) == 0
    page = (root / "docs" / "results" / "image-scale-cpu.md").read_text()
    assert f"2-assignment, seed 1: all of its {kept['numbers']} numbers came out the same" in " ".join(page.split())
    # A finished run is not measured by itself.
    assert studies(arguments) == 2
    assert "holds a finished run" in capsys.readouterr().err
    config = recorded_config(summary, "2-assignment", 1)
    assert (config.train.seed, config.plain()["codec"]["std"]) == (1, 48.0)
    assert recorded_config(summary, "2-assignment", 1, [("source.held_out_rows", 400)]).source.rows == 1397
    # Control: another number in the record.
    numbers = json.loads(summary.read_text())
    row = next(row for row in numbers["curves"] if row["arm"] == "2-assignment")
    row["by_seed"]["1"][2][1] *= 1 + 1e-12
    threads = torch.get_num_threads()
    numbers["environment"][-1]["threads"] = threads + 1
    summary.write_text(json.dumps(numbers))
    assert studies([*arguments[:-1], str(tmp_path / "more threads"), "--keep"]) == 1
    (kept,) = json.loads((summary.parent / "rerun.json").read_text())
    assert kept["differing"] >= 1
    environment = json.loads((tmp_path / "more threads" / "2-assignment-seed1" / "environment.json").read_text())
    assert environment[-1]["threads"] == threads + 1
    assert torch.get_num_threads() == threads
    assert "at step 3" in capsys.readouterr().err
    assert studies([*arguments[:3], "none", *arguments[4:]]) == 2


def test_the_html_page_holds_its_pictures_and_is_not_kept(root: Path) -> None:
    assert studies(["pages", "--root", str(root), "--html"]) == 0
    page = (root / "build" / "results.html").read_text()
    assert page == html_page(root).decode()
    for name, kind in (("distance.svg", "svg+xml"), ("samples.webp", "webp")):
        data = base64.b64encode((root / "results" / "image-scale" / "cpu" / name).read_bytes()).decode()
        assert page.count(f'src="data:image/{kind};base64,{data}"') == 1
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert "<script" not in page
    assert studies(["pages", "--root", str(root), "--check"]) == 0
    assert studies(["pages", "--root", str(root), "--html", "--check"]) == 2


BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)


TELL = """<script>
  const wide = () => document.documentElement.scrollWidth - document.documentElement.clientWidth;
  const drawn = () => [...document.images].filter(each => each.complete && each.naturalWidth > 300).length;
  for (const each of document.images) each.loading = "eager";
  window.addEventListener("load", () => {
    const told = [document.documentElement.clientWidth, wide(), drawn()];
    for (const each of document.querySelectorAll("details")) each.open = true;
    told.push(wide());
    parent.document.title = told.join(" ");
  });
</script>"""


def told(page: str, width: int, tmp_path: Path) -> list[int]:
    """Return what the page says of itself in a real browser, in a frame of this width: windows have a least width."""
    framed = html.escape(page.replace("</body>", f"{TELL}</body>"))
    probe = tmp_path / "probe.html"
    probe.write_text(f'<title>none</title><iframe style="border: 0" width="{width}" height="900" srcdoc="{framed}">')
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
    flags += [
        "--disable-background-networking",
        "--disable-component-update",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    flags += ["--window-size=1400,1000", "--virtual-time-budget=3000", "--dump-dom"]
    done = subprocess.run([BROWSER, *flags, probe.as_uri()], capture_output=True, text=True, check=True, timeout=120)
    return [int(value) for value in re.findall(r"<title>([^<]*)</title>", done.stdout)[0].split()]


@pytest.mark.slow
@pytest.mark.skipif(not BROWSER, reason="needs chromium or google-chrome, which this machine has not")
@pytest.mark.parametrize("width", [1200, 390])
def test_the_page_in_a_browser(root: Path, tmp_path: Path, width: int) -> None:
    """At desktop and phone width nothing is wider than the window, and both pictures are drawn."""
    page = html_page(root).decode()
    client, overflow, drawn, unfolded = told(page, width, tmp_path)
    assert abs(client - width) < 20
    assert (overflow, drawn, unfolded) == (0, 2, 0)
    # Controls: a page that is too wide, and a picture that is damaged.
    wide = page.replace("<main>", '<main><div style="width: 3000px">wide</div>')
    assert told(wide, width, tmp_path)[1] > 0
    assert told(page.replace("image/webp;base64,", "image/webp;base64,A", 1), width, tmp_path)[2] == 1


def test_differences_below_ten_noise_floors_have_a_mark() -> None:
    floor = {"frechet": {"mean": 0.1, "sd": 0.01}, "coverage": {"mean": 0.9, "sd": 0.01}}
    instrument = [
        {"arms": ["assignment"], "floor": floor},
        {"arms": ["nearest"], "floor": {**floor, "frechet": {"mean": 0.2, "sd": 0.01}}},
    ]
    about = {"sampling_steps": 5, "mean": 3.0, "sd": 0.1, "p": 0.01}
    finals = [
        {"arm": arm, "metric": metric, "difference": difference, **about}
        for metric, arm, difference in [
            ("frechet", "assignment", -1.01),
            ("frechet", "assignment, plain start", 0.99),
            ("frechet", "nearest", -1.01),
            ("frechet", "another", -0.01),
            ("coverage", "assignment", 0.01),
        ]
    ]
    numbers = {"finals": finals, "instrument": instrument, "rising": ["coverage"]}
    shown = [row[3] for row in final_rows(numbers, "frechet") if row[1] != "-"]
    assert shown == ["-1.01", "+0.99 †", "-1.01 †", "-0.01"]
    assert final_rows(numbers, "coverage")[0][3] == "+0.01"  # a share of which more is better has no such floor
