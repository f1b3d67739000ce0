"""A run in several processes: its records are those of one process, and each can go on from the other's."""

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from immiscible_diffusion.experiments.experiment import Cell, Experiment, read_experiment
from immiscible_diffusion.files import read_lines
from immiscible_diffusion.processes import results
from immiscible_diffusion.runs.folder import is_finished
from immiscible_diffusion.runs.launch import launch
from immiscible_diffusion.runs.team import started_team
from immiscible_diffusion.runs.together import launch_together

pytestmark = pytest.mark.medium

CONSOLE = Console(quiet=True)


def demo(**train: Any) -> tuple[Experiment, list[Cell]]:
    """Return the smallest demo with one arm."""
    experiment = read_experiment("demo")
    values = [("train.seed", 0), ("grid.coupling", ["assignment"]), ("evaluate.samples", 300)]
    return experiment, experiment.cells("smoke", [*values, *((f"train.{key}", value) for key, value in train.items())])


def carried_out(rank: int, port: int, folder: str, way: str) -> str:
    """Be one of two processes that carry out the demo; return how it ended."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_PORT": str(port)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}
    options: dict[str, Any] = {"max_seconds": 1e-3} if way == "time" else {}
    if way == "signal" and rank == 1:
        threading.Thread(target=terminate_once_it_trains, args=(Path(folder),), daemon=True).start()
    experiment, cells = demo(steps=100_000 if way == "signal" else 8)
    with started_team("cpu") as team:
        try:
            for _, error in launch_together(experiment, cells, Path(folder), team=team, console=CONSOLE, **options):
                if error is not None:
                    return str(error)
        except (KeyboardInterrupt, TimeoutError) as stop:
            return type(stop).__name__
        except OSError as refused:
            return str(refused)
        finally:
            torch.distributed.destroy_process_group()
    return "finished"


def terminate_once_it_trains(folder: Path) -> None:
    while not list(folder.glob("assignment-*/config.json")):
        time.sleep(0.05)
    time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)


def together(folder: Path, way: str = "whole") -> list[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return list(results(carried_out, [(rank, port, str(folder), way) for rank in range(2)], 2))


def alone(folder: Path, **train: Any) -> None:
    assert [error for _, error in launch(*demo(**train), folder, workers=1, device="cpu", console=CONSOLE)] == [None]


def run_of(folder: Path) -> Path:
    (run,) = folder.glob("assignment-*")
    return run


def measured(folder: Path) -> list[dict[str, Any]]:
    lines = read_lines(run_of(folder) / "evaluations.jsonl")
    return [{k: v for k, v in line.items() if isinstance(v, int | float) and k != "wall_seconds"} for line in lines]


def weights(folder: Path) -> Iterator[torch.Tensor]:
    yield from load_file(run_of(folder) / "checkpoints" / "step-000000008" / "net.safetensors").values()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    alone(folder)
    return folder


def close(folder: Path, whole: Path) -> bool:
    pairs = zip(measured(folder), measured(whole), strict=True)
    same = all(ours == pytest.approx(theirs, rel=1e-3) for ours, theirs in pairs)
    return same and all(
        torch.allclose(*both, rtol=1e-3, atol=1e-5) for both in zip(weights(folder), weights(whole), strict=True)
    )


def test_two_processes_write_what_one_writes(tmp_path: Path, whole: Path) -> None:
    assert together(tmp_path) == ["finished"] * 2
    assert is_finished(run_of(tmp_path))
    assert close(tmp_path, whole)
    names = sorted(path.relative_to(run_of(tmp_path)).as_posix() for path in run_of(tmp_path).rglob("*"))
    assert names == sorted(path.relative_to(run_of(whole)).as_posix() for path in run_of(whole).rglob("*"))
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in whole.iterdir()}


@pytest.mark.slow
def test_at_the_end_of_its_time_a_run_is_saved_and_one_process_goes_on(tmp_path: Path, whole: Path) -> None:
    assert together(tmp_path, "time") == ["TimeoutError"] * 2
    kept = [path.name for path in (run_of(tmp_path) / "checkpoints").iterdir()]
    assert kept == ["step-000000001"]
    alone(tmp_path)
    assert close(tmp_path, whole)


def test_a_signal_to_one_process_ends_and_saves_all(tmp_path: Path) -> None:
    assert together(tmp_path, "signal") == ["KeyboardInterrupt"] * 2
    (last,) = [path.name for path in (run_of(tmp_path) / "checkpoints").iterdir()][-1:]
    assert 0 < int(last.removeprefix("step-")) < 100_000


def test_what_is_wrong_is_told_in_every_process(tmp_path: Path) -> None:
    (tmp_path / "pairs.json").mkdir()
    outcomes = together(tmp_path)
    assert outcomes[0] == outcomes[1]
    assert "pairs.json" in outcomes[0]
