"""The demo on pictures of one's own, and the same as a file."""

import json
import shlex
from pathlib import Path

import pytest

from immiscible_diffusion.cli import run
from immiscible_diffusion.experiments.values import read_values
from pictures import photos

SMALL = ["net.channels=[8]", "evaluate.samples=20", "evaluate.steps=[2]", "train.seed=[0,1]", "train.steps=4"]
SETS = [part for value in SMALL for part in ("--set", value)]


@pytest.mark.slow
def test_the_demo_on_a_folder_reports_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = photos(tmp_path / "holiday photos", 60)
    command = ["demo", "--images", str(folder), "--out", str(tmp_path / "runs"), "--workers", "1", *SETS]
    assert run(command) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert all(part in said for part in ("60 images", "source.size", "About ", "4 runs of 4 training steps"))
    runs = tmp_path / "runs" / "holiday-photos-images"
    numbers = json.loads((runs / "summary.json").read_text())
    assert [run["arm"] for run in numbers["runs"]] == ["independent", "assignment"] * 2
    grids = [sorted(runs.glob(f"{arm}-seed0-*/samples/steps-2-*.png")) for arm in ("independent", "assignment")]
    assert [len(files) for files in grids] == [1, 1]
    before = {path: path.stat().st_mtime_ns for path in runs.glob("*-seed*/evaluations.jsonl")}
    assert run(command) == 0
    assert "Going on with" in " ".join(capsys.readouterr().out.split())
    assert {path: path.stat().st_mtime_ns for path in before} == before
    other = photos(tmp_path / "elsewhere" / "holiday photos", 60)
    assert run(["demo", "--images", str(other), "--out", str(tmp_path / "runs"), *SETS]) == 2
    assert "another folder for these runs (--out)" in capsys.readouterr().err


@pytest.mark.medium
def test_init_writes_a_file_and_says_how_to_run_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    photos(tmp_path / "photos", 60)
    assert run(["init", "photos", *SETS]) == 0
    said = capsys.readouterr().out
    values = read_values("photos-images.toml")
    assert values["base"]["source"]["path"] == str(tmp_path / "photos")
    assert values["base"]["train"]["steps"] == 4
    command = next(line for line in said.splitlines() if line.strip().startswith("immiscible train"))
    arguments = ["show", *shlex.split(command)[2:]]
    assert run(arguments) == 0
    assert "assignment-seed1" in capsys.readouterr().out
    assert run(["init", "photos", *SETS]) == 2
    assert "photos-images.toml is there already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demo", "--images", "few"], "few has 3 images and a comparison needs at least 40"),
        (["init", "few"], "few has 3 images and a comparison needs at least 40"),
        (["init", "few", "--set", "grid.coupling=[1]"], "edit [grid] in the file"),
        (["demo", "--images", "nowhere.zip"], "no file or folder nowhere.zip"),
        (["demo", "--images", "few", "--latents", "few"], "give one of them"),
        (["demo", "--images", "few", "--scale", "smoke"], "give --minutes"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    photos(tmp_path / "few", 3)
    assert run(arguments) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["few"]
