import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from immiscible_diffusion.experiments.experiment import Cell, read_experiment
from immiscible_diffusion.files import read_json, read_lines
from immiscible_diffusion.runs.folder import is_finished
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


def test_a_run_folder_that_exists_is_left_alone(tmp_path: Path, done: Path) -> None:
    (tmp_path / cell().folder).mkdir()
    assert reuse([cell()], tmp_path, [done]) == []
    assert not is_finished(tmp_path / cell().folder)


def test_a_folder_without_finished_runs_is_refused(tmp_path: Path, done: Path) -> None:
    shutil.copytree(done, tmp_path / "cut")
    (tmp_path / "cut" / cell().folder / "export" / "immiscible.json").unlink()
    with pytest.raises(ValueError, match="no finished run to reuse"):
        reuse([cell()], tmp_path / "new", [tmp_path / "cut"])
