"""Checkpoints of sharded weights: two processes write and read them, one process reads them, damage is seen."""

import json
import shutil
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from immiscible_diffusion import MLP, Consistency, Digits, Pixels, Train, fit, new_state
from immiscible_diffusion.couplings import Cached
from immiscible_diffusion.experiments.experiment import Cell, Experiment, read_experiment
from immiscible_diffusion.files import digest_of_file, read_json, read_lines
from immiscible_diffusion.runs import checkpoint
from immiscible_diffusion.runs.launch import launch
from immiscible_diffusion.runs.team import Team, started_team
from immiscible_diffusion.runs.together import launch_together
from immiscible_diffusion.train import State
from immiscible_diffusion.train.shards import check_sharding
from several import SHARDED, several

CONFIG = Train(steps=3, batch=16, precision="fp16")
NEWEST = "step-000000005"


def fresh(accelerator: Any = None, seed: int = 1) -> State:
    torch.manual_seed(seed)
    return new_state(MLP(width=15, depth=1).build((1, 8, 8), None), CONFIG, accelerator)


def contents(state: State) -> dict[str, Any]:
    """Return all that a checkpoint holds, sharded tensors put together."""
    whole = (lambda net: net) if state.shards is None else state.shards.whole
    moments = state.optimizer.state_dict()["state"]
    assert state.teacher is not None
    assert state.scaler is not None
    return {
        **{name: whole(net).state_dict() for name, net in (("net", state.net), ("ema", state.ema))},
        "teacher": whole(state.teacher).state_dict(),
        "optimizer": {
            f"{i}.{name}": value.full_tensor() if hasattr(value, "full_tensor") else value
            for i, values in moments.items()
            for name, value in values.items()
        },
        "memory": state.memory,
        "scaler": state.scaler.state_dict(),
        "step": state.step,
    }


def train_and_save(rank: int, folder: str) -> None:
    """Be one of two processes: train, save twice, and write what was in the state."""
    from accelerate import Accelerator

    warnings.simplefilter("error", UserWarning)
    accelerator = Accelerator(cpu=True)
    state, team = fresh(accelerator), Team(accelerator)
    steps = fit(state, Digits(), Pixels(), Cached(), Consistency(), CONFIG, accelerator=accelerator)
    for _ in steps:
        pass
    for state.step in (3, 4, 5):
        checkpoint.save(state, Path(folder) / "checkpoints", team=team)
    torch.save(contents(state), Path(folder) / f"saved-{rank}.pt")


def load(rank: int, folder: str, name: str) -> str:
    """Be one of several processes: load the newest, write what is in the state, and return what was warned of."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    state, team = fresh(accelerator, seed=2), Team(accelerator)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            checkpoint.load_newest(state, Path(folder) / "checkpoints", team)
        except ValueError as error:
            return str(error)
        torch.save(contents(state), Path(folder) / f"{name}-{rank}.pt")
    return " ".join(str(warning.message) for warning in caught if "checkpoint" in str(warning.message))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    several(train_and_save, 2, str(folder), **SHARDED)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def read(path: Path) -> dict[str, Any]:
    made: dict[str, Any] = torch.load(path, weights_only=True)
    return made


def equal(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Return whether two states hold the same, bit for bit."""
    try:
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    except AssertionError:
        return False
    return True


@pytest.mark.medium
def test_each_process_writes_its_shards_as_safetensors_and_one_process_reads_them(folder: Path) -> None:
    path = folder / "checkpoints" / NEWEST
    files = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
    shards = [f"shards/shard-0000{i}-model-00001-of-00001.safetensors" for i in (1, 2)]
    assert files == ["coupling.safetensors", *shards, "state.json"]
    assert sorted(read_json(path / "state.json")["sha256"]) == files[:-1]
    rows = [load_file(path / name)["net.enter.weight"].shape[0] for name in shards]
    assert rows == [8, 7]
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["step-000000004", NEWEST]  # two are kept
    state, before = fresh(), read(folder / "saved-0.pt")
    assert checkpoint.load_newest(state, folder / "checkpoints")
    assert equal(contents(state), before)
    assert equal(read(folder / "saved-1.pt"), before)
    assert not equal(contents(fresh_with_teacher()), before)  # control
    net = MLP(width=15, depth=1).build((1, 8, 8), None)
    checkpoint.load_average(net, folder / "checkpoints", 5)
    assert equal(dict(net.state_dict()), before["ema"])


def fresh_with_teacher() -> State:
    state = fresh()
    state.teacher = fresh(seed=3).net
    return state


def changed(file: Path, name: str, value: torch.Tensor) -> None:
    """Change a tensor of a shard, and the digest with it."""
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    save_file(load_file(file) | {name: value}, file, metadata)
    about = json.loads((file.parents[1] / "state.json").read_text())
    about["sha256"][f"shards/{file.name}"] = digest_of_file(file)
    (file.parents[1] / "state.json").write_text(json.dumps(about))


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


SECOND = "shards/shard-00002-model-00001-of-00001.safetensors"
DAMAGE: dict[str, Any] = {
    "cut": lambda at: cut(at / SECOND),
    "gone": lambda at: (at / SECOND).unlink(),
    "one too many": lambda at: shutil.copy(at / SECOND, at / "shards" / "shard-00003.safetensors"),
    "not a number": lambda at: changed(at / SECOND, "ema.enter.bias", torch.full((7,), torch.nan)),
    "another dtype": lambda at: changed(at / SECOND, "net.leave.bias", torch.zeros(32).double()),
    "too few rows": lambda at: changed(at / SECOND, "net.enter.bias", torch.zeros(6)),
    "not JSON": lambda at: (at / "state.json").write_text("{"),
}


@pytest.mark.medium
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_shard_is_seen_and_the_checkpoint_before_it_is_loaded(folder: Path, damage: str) -> None:
    DAMAGE[damage](folder / "checkpoints" / NEWEST)
    state = fresh()
    with pytest.warns(UserWarning, match=r"step-000000005 is damaged \(.*goes on from step 4"):
        assert checkpoint.load_newest(state, folder / "checkpoints")
    assert state.step == 4
    assert equal(contents(state) | {"step": 5}, read(folder / "saved-0.pt"))


@pytest.mark.medium
def test_versions_that_cannot_be_sharded_with_are_refused() -> None:
    for version, torch_version, message in ((1, "2.13.0", "--fsdp_version 2"), (2, "2.6.0+cpu", "need torch >= 2.9")):
        with pytest.raises(ValueError, match=message):
            check_sharding(SimpleNamespace(fsdp_version=version), torch_version)
    for torch_version in ("2.9.0", "2.10.0", "2.13.0+cpu"):
        check_sharding(SimpleNamespace(fsdp_version=2), torch_version)


@pytest.mark.slow
def test_any_number_of_processes_reads_what_any_number_wrote(folder: Path) -> None:
    before = read(folder / "saved-0.pt")
    for name, world, environment in (("two", 2, SHARDED), ("three", 3, SHARDED), ("whole", 2, {})):
        assert several(load, world, str(folder), name, **environment) == [""] * world
        assert all(equal(read(folder / f"{name}-{rank}.pt"), before) for rank in range(world)), name
    state = fresh()
    checkpoint.load_newest(state, folder / "checkpoints")
    shutil.rmtree(folder / "checkpoints")
    checkpoint.save(state, folder / "checkpoints")  # whole, by one process
    assert several(load, 2, str(folder), "of one", **SHARDED) == [""] * 2
    assert all(equal(read(folder / f"of one-{rank}.pt"), before) for rank in range(2))


@pytest.mark.slow
def test_damage_that_one_process_sees_is_said_in_all(folder: Path) -> None:
    DAMAGE["not a number"](folder / "checkpoints" / NEWEST)  # the first process's shards are whole
    warned = several(load, 2, str(folder), "second", **SHARDED)
    assert sorted(map(bool, warned)) == [False, True]  # the first process warns and renames
    assert equal(read(folder / "second-0.pt") | {"step": 5}, read(folder / "saved-0.pt"))
    cut(folder / "checkpoints" / "step-000000004" / SECOND)
    for said in several(load, 2, str(folder), "none", **SHARDED):
        assert "no checkpoint" in said
        assert "is not as it was written" in said


# Whole runs.

CONSOLE = Console(quiet=True)


def cells() -> tuple[Experiment, list[Cell]]:
    """Return the smallest run whose export is a pipeline of diffusers."""
    experiment = read_experiment("digits-unet")
    values: list[tuple[str, Any]] = [("train.seed", 0), ("grid.coupling", ["assignment"]), ("evaluate.samples", 40)]
    values += [("method", {"use": "denoising", "schedule": {"use": "betas"}, "predict": "eps"}), ("train.steps", 4)]
    return experiment, experiment.cells("smoke", values)


def run(rank: int, folder: str, seconds: float) -> str:
    with started_team("cpu") as team:
        try:
            for _, error in launch_together(*cells(), Path(folder), team=team, console=CONSOLE, max_seconds=seconds):
                if error is not None:
                    raise error
        except TimeoutError:
            return "time"
    return "finished"


def alone(folder: Path, seconds: float = 0.0) -> None:
    try:
        for _, error in launch(*cells(), folder, workers=1, device="cpu", console=CONSOLE, max_seconds=seconds):
            assert error is None
    except TimeoutError:
        assert seconds


def ended(folder: Path) -> tuple[Path, list[dict[str, float]]]:
    (place,) = folder.glob("*/export")
    lines = read_lines(place.parent / "evaluations.jsonl")
    return place, [{k: v for k, v in line.items() if isinstance(v, float) and k != "wall_seconds"} for line in lines]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' own, under NumPy 2
def test_a_sharded_run_is_saved_resumed_and_exported(tmp_path: Path) -> None:
    from diffusers import DiffusionPipeline

    alone(tmp_path / "one")
    assert several(run, 2, str(tmp_path / "two"), 0.0, **SHARDED) == ["finished"] * 2
    assert several(run, 2, str(tmp_path / "two, then one"), 1e-3, **SHARDED) == ["time"] * 2
    (kept,) = (tmp_path / "two, then one").glob("*/checkpoints/*")
    assert kept.name == "step-000000001"
    assert (kept / "shards").is_dir()
    alone(tmp_path / "two, then one")
    assert several(run, 2, str(tmp_path / "whole, then sharded"), 1e-3) == ["time"] * 2
    assert several(run, 2, str(tmp_path / "whole, then sharded"), 0.0, **SHARDED) == ["finished"] * 2
    expected, measured = ended(tmp_path / "one")
    weights = load_file(expected / "unet" / "diffusion_pytorch_model.safetensors")
    for name in ("two", "two, then one", "whole, then sharded"):
        export, lines = ended(tmp_path / name)
        ours = load_file(export / "unet" / "diffusion_pytorch_model.safetensors")
        torch.testing.assert_close(ours, weights, rtol=1e-3, atol=1e-5)
        assert lines == [pytest.approx(line, rel=1e-2) for line in measured]
        pipeline = DiffusionPipeline.from_pretrained(export)
        pipeline.set_progress_bar_config(disable=True)
        image = pipeline(batch_size=1, num_inference_steps=2, output_type="np").images[0]
        assert image.shape[:2] == (8, 8)
