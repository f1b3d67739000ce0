import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from immiscible_diffusion.experiments.experiment import Cell, read_experiment
from immiscible_diffusion.files import read_json, read_lines, write_json
from immiscible_diffusion.runs.folder import is_finished
from immiscible_diffusion.runs.launch import launch
from immiscible_diffusion.runs.reuse import reuse
from immiscible_diffusion.runs.run import execute
from sweeps import sweep

pytestmark = pytest.mark.medium

CPU = torch.device("cpu")


def cell(**changed: Any) -> Cell:
    overrides = [("coupling", "assignment"), ("net.width", 16)]
    overrides += [(key.replace("__", "."), value) for key, value in changed.items()]
    return read_experiment("demo").cells("smoke", overrides)[0]


def measured(folder: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k != "wall_seconds"} for line in read_lines(folder / "evaluations.jsonl")]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("done")
    for _ in execute(cell().config, folder / cell().folder, CPU):
        pass
    return folder


@pytest.mark.parametrize(
    "changes", sweep([{}, {"evaluate__steps": [5]}, {"evaluate__every": 8}, {"evaluate__steps": [5, 2]}], 2)
)
def test_a_reused_run_is_the_run_that_training_would_make(tmp_path: Path, done: Path, changes: dict[str, Any]) -> None:
    wanted = cell(**changes)
    assert reuse([wanted], tmp_path / "reused", [done]) == [wanted.folder]
    copy, trained = tmp_path / "reused" / wanted.folder, tmp_path / "own"
    for _ in execute(wanted.config, trained, CPU):
        pass
    assert list(execute(wanted.config, copy, CPU)) == [8]
    assert read_json(copy / "config.json") == read_json(trained / "config.json")
    assert measured(copy) == measured(trained) != []
    assert (copy / "export" / "net.safetensors").read_bytes() == (trained / "export" / "net.safetensors").read_bytes()


@pytest.mark.parametrize(
    "asked",
    [
        {"train__lr": 2e-3},
        {"train__seed": 1},
        {"coupling": "independent"},
        {"evaluate__samples": 41},
        {"evaluate__steps": [3]},
        {"evaluate__every": 3},
    ],
)
def test_a_run_that_differs_is_not_reused(tmp_path: Path, done: Path, asked: dict[str, Any]) -> None:
    assert reuse([cell(**asked)], tmp_path, [done]) == []
    assert not any(tmp_path.iterdir())


@pytest.fixture
def earlier(tmp_path: Path, done: Path) -> Path:
    """Return the run as a version left it that lacked two options, and so named it by another hash."""
    folder = tmp_path / "earlier" / f"{cell().folder.rpartition('-')[0]}-01234567"
    shutil.copytree(done / cell().folder, folder)
    plain = read_json(folder / "config.json")
    del plain["evaluate"]["reference"], plain["method"]["clip"]
    write_json(folder / "config.json", plain)
    return folder


def test_a_finished_run_of_an_earlier_version_is_taken_as_finished(earlier: Path, done: Path) -> None:
    before = (earlier / "evaluations.jsonl").read_bytes()
    demo, place = read_experiment("demo"), earlier.parent / cell().folder
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*was measured under another evaluate table")
        runs = launch(demo, [cell()], earlier.parent, workers=1, device="cpu", console=Console(quiet=True))
        assert [error for _, error in runs] == [None]
    assert (place / "evaluations.jsonl").read_bytes() == before
    assert read_json(place / "config.json") == read_json(done / cell().folder / "config.json")
    assert [path.name for path in earlier.parent.iterdir() if path.is_dir()] == [place.name]


def test_a_control_another_value_of_the_option_is_another_run(earlier: Path) -> None:
    demo, other = read_experiment("demo"), cell(method__clip=1.0, train__steps=1, evaluate__every=1)
    list(launch(demo, [other], earlier.parent, workers=1, device="cpu", console=Console(quiet=True)))
    assert {path.name for path in earlier.parent.iterdir() if path.is_dir()} == {earlier.name, other.folder}


def test_a_run_of_an_earlier_version_is_reused(earlier: Path, tmp_path: Path) -> None:
    assert reuse([cell()], tmp_path / "reused", [earlier.parent]) == [cell().folder]
    assert reuse([cell(method__clip=1.0)], tmp_path / "other", [earlier.parent]) == []  # control


def test_a_damaged_configuration_is_no_earlier_run(earlier: Path) -> None:
    (earlier / "config.json").write_text("{")
    small = cell(train__steps=1, evaluate__every=1)
    runs = launch(
        read_experiment("demo"), [small], earlier.parent, workers=1, device="cpu", console=Console(quiet=True)
    )
    assert [error for _, error in runs] == [None]
    assert is_finished(earlier.parent / small.folder)


def test_a_run_folder_that_exists_is_left_alone(tmp_path: Path, done: Path) -> None:
    (tmp_path / cell().folder).mkdir()
    assert reuse([cell()], tmp_path, [done]) == []
    assert not is_finished(tmp_path / cell().folder)


def test_a_folder_without_finished_runs_is_refused(tmp_path: Path, done: Path) -> None:
    shutil.copytree(done, tmp_path / "cut")
    (tmp_path / "cut" / cell().folder / "export" / "immiscible.json").unlink()
    with pytest.raises(ValueError, match="no finished run to reuse"):
        reuse([cell()], tmp_path / "new", [tmp_path / "cut"])
