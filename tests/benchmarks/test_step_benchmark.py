"""What a coupling adds to a training step."""

import json
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.__main__ import app
from benchmarks.step import ARMS, step_line
from benchmarks.step import bench_step as measured
from immiscible_diffusion import MLP, Denoising, Digits, Pixels
from immiscible_diffusion.cli.options import run_app
from immiscible_diffusion.couplings import Assignment

pytestmark = pytest.mark.medium


def rows() -> dict[str, dict[str, object]]:
    found = measured(Digits(), Pixels(), Denoising(), MLP(width=8), batch=8, steps=3, rounds=3)
    return {str(row["arm"]): row for row in found}


def test_every_arm_is_measured_and_its_line_printed() -> None:
    by_arm = rows()
    assert list(by_arm) == list(ARMS)
    assert by_arm["independent"]["overhead_percent"] == 0
    for row in by_arm.values():
        assert 0 < float(str(row["min_ms"])) <= float(str(row["median_ms"])) <= float(str(row["max_ms"]))
        assert str(row["arm"]) in step_line(row)


@pytest.mark.slow
def test_a_slow_coupling_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Assignment.__call__

    def slow(self: Assignment, x: Tensor, *args: object, **options: object) -> Tensor:
        time.sleep(0.1)
        return pair(self, x)

    monkeypatch.setattr(Assignment, "__call__", slow)
    with torch.random.fork_rng(devices=[]):
        assert float(str(rows()["assignment"]["overhead_percent"])) > 100


@pytest.mark.slow
def test_the_command_records_every_arm(tmp_path: Path) -> None:
    assert run_app(app, ["step", "--rounds", "2", "--out", str(tmp_path / "step.json")]) == 0
    record = json.loads((tmp_path / "step.json").read_text())
    assert [row["arm"] for row in record["rows"]] == list(ARMS)
    assert record["environment"]["packages"]["torch"]


def test_a_benchmark_of_images_needs_some(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("papers", "images"):
        assert run_app(app, [name]) == 2
        assert "--images" in capsys.readouterr().err
