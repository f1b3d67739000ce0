import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from immiscible_diffusion.cli import run
from immiscible_diffusion.report.sentences import number

pytestmark = pytest.mark.medium


@pytest.fixture(scope="module")
def runs_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo at its smallest scale, through worker processes."""
    folder = tmp_path_factory.mktemp("runs")
    assert run(["demo", "--scale", "smoke", "--out", str(folder), "--workers", "2"]) == 0
    return folder / "demo"


def test_the_demo_writes_a_self_contained_report(runs_folder: Path) -> None:
    page = (runs_folder / "report.html").read_text(encoding="utf-8")
    assert [page.count(f"data:image/{kind};base64,") for kind in ("svg+xml", "webp", "png")] == [1, 1, 0]
    assert not re.search(r'(src|href)="(?!data:)[a-z]+:', page)
    open_part = re.sub(r"<details>.*?</details>", "", page, flags=re.DOTALL)
    order = [open_part.index(part) for part in ("image/webp", "image/svg+xml", 'class="findings"', "<table>")]
    assert order == sorted(order)
    assert (open_part.count("<table>"), open_part.count("<tr>")) == (1, 1 + 5)
    assert len(re.findall(r"<p>(.*)</p>", open_part)) == 3
    numbers = json.loads((runs_folder / "summary.json").read_text())
    assert numbers["unfinished"] == []
    assert {row["arm"] for row in numbers["finals"]} == {"independent", "assignment", "nearest", "nearest, plain start"}
    with Image.open(runs_folder / "figures" / "samples.webp") as figure:
        assert figure.size[0] > 500
    assert all(path.stat().st_size < 60_000 for path in (runs_folder / "figures").iterdir())


def test_every_final_number_is_in_a_run(runs_folder: Path) -> None:
    numbers = json.loads((runs_folder / "summary.json").read_text())
    folders = {(run["arm"], run["seed"]): run["folder"] for run in numbers["runs"]}
    checked = 0
    for row in numbers["finals"]:
        arm, plain = row["arm"].removesuffix(", plain start"), row["arm"].endswith("plain start")
        for seed, value in row["by_seed"].items():
            lines = (runs_folder / folders[arm, int(seed)] / "evaluations.jsonl").read_text().splitlines()
            values = [
                line[row["metric"]]
                for line in map(json.loads, lines)
                if line["step"] == 8
                and line["sampling_steps"] == row["sampling_steps"]
                and line["start"] == ("normal" if plain else "matched")
            ]
            assert values == [value]
            assert f"<td>{number(row['mean'])} ±" in (runs_folder / "report.html").read_text(encoding="utf-8")
            checked += 1
    assert checked == 4 * 2 * 2 * 2


def test_the_demo_misses_the_reports_package_before_it_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert run(["demo", "--scale", "smoke", "--out", str(tmp_path)]) == 2
    assert "pip install 'immiscible-diffusion[report]'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_demo_reports_after_every_seed_what_is_still_to_come(
    runs_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["demo", "--scale", "smoke", "--out", str(runs_folder.parent), "--workers", "1"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    first, last = said.split("Still to come: independent, seed 1; assignment, seed 1; nearest, seed 1")
    assert first.index("nearest, seed 0: done") < first.index("report.html")
    assert last.index("nearest, seed 1: done") < last.index("report.html")


def test_report_again_is_the_same_and_can_be_recorded(runs_folder: Path, tmp_path: Path) -> None:
    before = (runs_folder / "report.html").read_bytes()
    assert run(["report", str(runs_folder), "--record", str(tmp_path / "kept")]) == 0
    assert (runs_folder / "report.html").read_bytes() == before
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == [
        "distance.svg",
        "samples.webp",
        "summary.json",
    ]


def test_inspect_compares_couplings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["inspect", "--batches", "4", "--batch", "64", "--out", str(tmp_path), "--coupling", "independent"]
    assert run([*arguments, "--coupling", '{use="nearest", k=64, cost="dot"}']) == 0
    rows = json.loads((tmp_path / "inspect.json").read_text())["couplings"]
    assert [row["coupling"] for row in rows] == ["independent", '{use="nearest", k=64, cost="dot"}']
    assert rows[0]["distance_reduction_percent"] == 0 < rows[1]["distance_reduction_percent"]
    assert f"{-rows[1]['distance_reduction_percent']:.2f} %" in capsys.readouterr().out
    with Image.open(tmp_path / "inspect.png") as figure:
        assert figure.size[0] > 500
    assert run([*arguments, "--coupling", "{use='nearest', kk=3}"]) == 2
    assert "unknown key coupling.kk" in capsys.readouterr().err


def test_sample_and_evaluate(runs_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder, *_) = sorted(runs_folder.glob("nearest-seed0-*"))
    assert run(["sample", str(folder), "--n", "5", "--steps", "2", "--out", str(tmp_path / "images")]) == 0
    assert len(list((tmp_path / "images").glob("0*.png"))) == 5
    assert run(["sample", str(folder), "--n", "1", "--out", str(tmp_path / "own")]) == 0
    steps = json.loads((folder / "config.json").read_text())["evaluate"]["steps"]
    assert json.loads((tmp_path / "own" / "samples.json").read_text())["asked"]["steps"] == max(steps)
    assert run(["evaluate", str(folder), "--steps", "2", "--n", "30", "--seed", "4"]) == 0
    lines = json.loads((folder / "evaluated.json").read_text())
    assert [(line["samples"], line["sample_seed"], line["start"]) for line in lines] == [
        (30, 4, "matched"),
        (30, 4, "normal"),
    ]
    assert f"{lines[0]['frechet']:.4g}" in capsys.readouterr().out


def test_train_resumes_and_list_and_show_speak(runs_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", "demo", "--scale", "smoke", "--out", str(runs_folder.parent)]) == 0
    assert run(["list"]) == 0
    assert run(["show", "demo", "--scale", "smoke", "--set", "train.batch=64"]) == 0
    out = capsys.readouterr().out
    assert "assignment, cached, conditional, flipped, greedy" in out
    assert '"batch": 64' in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "nosuch"], "no experiment or file 'nosuch'"),
        (["train", "demo", "--set", "train.stepz=3"], "unknown key train.stepz"),
        (["train", "demo", "--set", "train.steps=many"], "it must be a whole number"),
        (["train", "demo", "--set", "train.steps"], "write it as key.of.the.file=value"),
        (["train", "demo", "--scale", "huge"], "no scale 'huge'"),
        (["train", "demo", "--device", "tpu"], "no device named 'tpu'"),
        (["show", "demo", "--bogus"], "No such option"),
        (["sample", "nowhere"], "is not a run folder"),
        (["evaluate", "nowhere"], "is not a run folder"),
        (["report", "nowhere"], "cannot read"),
        (["dance"], "No such command"),
        (["bench", "step"], "python -m benchmarks --help"),
        (["papers"], "python -m studies papers"),
        (["draw", "denoising", "runs/x"], "python -m studies draw"),
        (["rerun", "results"], "python -m studies rerun"),
        (["report"], "immiscible report runs/demo; all recorded results: python -m studies pages"),
        (["report", "--check"], "python -m studies pages"),
        (["show"], "immiscible show demo; all of them: immiscible list"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 2
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err


@pytest.mark.slow
def test_a_run_that_diverges_is_named_and_exits_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["train", "demo", "--scale", "smoke", "--out", str(tmp_path), "--workers", "1"]
    arguments += [
        "--set",
        "train.lr=1e30",
        "--set",
        "train.seed=0",
        "--set",
        "coupling=assignment",
        "--set",
        "train.warmup=0",
    ]
    assert run(arguments) == 1
    err = capsys.readouterr().err
    assert re.search(r"run, seed 0: step \d: the loss is", err)
    assert "lower train.lr" in err


@pytest.mark.slow
def test_an_interrupted_command_goes_on_where_it_was(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "immiscible_diffusion", "train", "demo", "--out", str(tmp_path), "--workers", "2"]
    command += ["--set", "train.seed=[0]", "--set", "train.steps=4000", "--set", "evaluate.samples=50"]
    process = subprocess.Popen(
        command, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not list(tmp_path.glob("demo/*/checkpoints/step-*")):
        assert process.poll() is None
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)
    said, complaint = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Stopping: every run ends its step" in said
    kept = [json.loads(path.read_text())["step"] for path in tmp_path.glob("demo/*/checkpoints/*/state.json")]
    assert any(step % 250 for step in kept)  # saved at the interrupt, not for an evaluation
    assert "Interrupted; the same command goes on from what is saved" in complaint
    on_disk = re.findall(r"seed 0: (?:saved at step (\d+) of 4000|nothing is saved)", complaint)
    newest = {
        run.name: max((int(path.name.removeprefix("step-")) for path in run.glob("checkpoints/step-*")), default=0)
        for run in tmp_path.glob("demo/*-seed0-*")
    }
    assert sorted(int(step or 0) for step in on_disk) == sorted([*newest.values(), *[0] * (3 - len(newest))])
