import dataclasses
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from immiscible_diffusion.experiments.config import Config, read_config
from immiscible_diffusion.experiments.experiment import read_experiment
from immiscible_diffusion.files import read_lines
from immiscible_diffusion.runs import evaluation
from immiscible_diffusion.runs import run as run_module
from immiscible_diffusion.runs.folder import is_finished
from immiscible_diffusion.runs.run import execute
from sweeps import sweep

pytestmark = pytest.mark.medium

CPU = torch.device("cpu")


def config(**train: Any) -> Config:
    overrides = [("coupling", {"use": "nearest", "k": 4, "cost": "dot"}), ("net.width", 16), ("net.dropout", 0.2)]
    overrides += [(f"train.{key}", value) for key, value in train.items()]
    return read_experiment("demo").cells("smoke", overrides)[0].config


def stop_at(stop: int, given: Config, folder: Path) -> None:
    """Carry out a run up to this step, and interrupt it there."""
    run = execute(given, folder, CPU)
    for step in run:
        if step == stop:
            break
    run.close()


def outcome(folder: Path) -> tuple[bytes, list[dict[str, Any]], list[float]]:
    """Return all that two equal runs share: weights, measurements without their wall time, and losses."""
    lines = [
        {k: v for k, v in line.items() if k != "wall_seconds"} for line in read_lines(folder / "evaluations.jsonl")
    ]
    losses = [line["loss"] for line in read_lines(folder / "log.jsonl")]
    return (folder / "export" / "net.safetensors").read_bytes(), lines, losses


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert list(execute(config(), folder, CPU)) == [0, 1, 2, 3, *[4] * 5, 5, 6, 7, *[8] * 5]
    return folder


def test_a_run_leaves_what_it_says(whole: Path) -> None:
    assert is_finished(whole)
    lines = read_lines(whole / "evaluations.jsonl")
    points = [(line["step"], line["sampling_steps"], line["start"]) for line in lines]
    assert points == list(itertools.product([4, 8], [2, 5], ["matched", "normal"]))
    assert all(line["frechet"] > 0 and line["samples"] == 40 for line in lines)
    assert json.loads((whole / "environment.json").read_text())[0]["packages"]["torch"] == torch.__version__
    about, last = json.loads((whole / "export" / "immiscible.json").read_text())["about"], lines[-4:]
    assert (about["seed"], about["steps"]) == (0, 8)
    assert about["commit"] == json.loads((whole / "environment.json").read_text())[0]["commit"]
    assert [line["frechet"] for line in about["metrics"]] == [line["frechet"] for line in last]
    assert [(line["sampling_steps"], line["start"]) for line in about["metrics"]] == [
        point[1:] for point in points[-4:]
    ]
    card = (whole / "export" / "README.md").read_text()
    assert {f"- {name}: `{json.dumps(about[name])}`" for name in ("seed", "metrics", "commit")} <= set(
        card.splitlines()
    )
    with Image.open(whole / "samples" / "steps-5-matched.png") as grid:
        assert grid.size == (8 * 9 - 1, 5 * 9 - 1)


@pytest.mark.parametrize("stop", sweep([4, 1, 6, 8], 4))
def test_an_interrupted_run_ends_like_an_uninterrupted_one(tmp_path: Path, whole: Path, stop: int) -> None:
    stop_at(stop, config(), tmp_path / "run")
    assert not is_finished(tmp_path / "run")
    assert next(execute(config(), tmp_path / "run", CPU)) == stop
    list(execute(config(), tmp_path / "run", CPU))
    assert outcome(tmp_path / "run") == outcome(whole)


@pytest.mark.parametrize("call", [1, 2])
def test_an_interrupt_in_mid_evaluation_loses_nothing(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    calls = itertools.count(1)
    measure = evaluation.evaluate

    def interrupted(*args: Any) -> Any:
        for line in measure(*args):
            yield line
            if next(calls) == 4 * call - 1:
                raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "evaluate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            list(execute(config(), tmp_path / "run", CPU))
    list(execute(config(), tmp_path / "run", CPU))
    assert outcome(tmp_path / "run") == outcome(whole)


def test_a_second_network_is_measured_beside_the_first(tmp_path: Path, whole: Path) -> None:
    chosen = [("coupling", {"use": "nearest", "k": 4, "cost": "dot"}), ("net.width", 16), ("net.dropout", 0.2)]
    given = read_experiment("demo").cells("smoke", [*chosen, ("evaluate.also", ["pooled_pixels"])])[0]
    list(execute(given.config, tmp_path / "run", CPU))
    lines = read_lines(tmp_path / "run" / "evaluations.jsonl")
    alone = read_lines(whole / "evaluations.jsonl")
    assert [line["frechet"] for line in lines] == [line["frechet"] for line in alone]
    assert {line["frechet-pooled_pixels"] for line in lines}.isdisjoint(line["frechet"] for line in lines)
    assert all(line["kernel-pooled_pixels"] > 0 for line in lines)
    assert "frechet-pooled_pixels" not in alone[0]
    with pytest.raises(ValueError, match="names a network twice"):
        read_experiment("demo").cells("smoke", [("evaluate.also", ["classifier"])])


@pytest.mark.slow
def test_a_killed_run_goes_on_from_the_last_kept_step(tmp_path: Path, whole: Path) -> None:
    """Killed, not stopped: nothing is saved on the way out, so the folder is copied in mid-run."""
    for every, kept in ((0, []), (2, ["step-000000002"])):
        given = config(checkpoint=every)
        run = execute(given, tmp_path / f"run{every}", CPU)
        for step in run:
            if step == 3:
                break
        killed = Path(shutil.copytree(tmp_path / f"run{every}", tmp_path / f"killed{every}"))
        run.close()
        assert sorted(path.name for path in killed.glob("checkpoints/*")) == kept
        assert next(execute(given, killed, CPU)) == (2 if every else 0)
        list(execute(given, killed, CPU))
        assert outcome(killed)[:2] == outcome(whole)[:2]


def test_a_due_state_is_saved_before_it_is_measured(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed by the system in mid-evaluation, nothing is saved on the way out: the steps must be on disk before."""

    def killed(*args: Any) -> Any:
        shutil.copytree(tmp_path / "run", tmp_path / "killed")
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "evaluate", killed)
        with pytest.raises(MemoryError):
            list(execute(config(), tmp_path / "run", CPU))
    assert [path.name for path in (tmp_path / "killed" / "checkpoints").iterdir()] == ["step-000000004"]
    assert next(execute(config(), tmp_path / "killed", CPU)) == 4
    list(execute(config(), tmp_path / "killed", CPU))
    assert outcome(tmp_path / "killed")[:2] == outcome(whole)[:2]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


@pytest.mark.parametrize("loss", ["both cut", "folder gone"])
def test_records_without_a_whole_checkpoint_stop_the_run_and_stay(tmp_path: Path, loss: str) -> None:
    stop_at(6, config(), tmp_path / "run")
    checkpoints = tmp_path / "run" / "checkpoints"
    assert len(list(checkpoints.iterdir())) == 2
    if loss == "both cut":
        for path in checkpoints.iterdir():
            cut(path / "net.safetensors")
    else:
        shutil.rmtree(checkpoints)
    before = contents(tmp_path / "run")
    for _ in range(2):
        with pytest.raises(ValueError, match="Nothing was changed"):
            next(execute(config(), tmp_path / "run", CPU))
        assert contents(tmp_path / "run") == before


def test_a_cut_line_of_the_log_is_left_out_and_told(tmp_path: Path, whole: Path) -> None:
    stop_at(5, config(), tmp_path / "run")
    with (tmp_path / "run" / "log.jsonl").open("a") as log:
        log.write('{"step": 5, "lo')
    with pytest.warns(UserWarning, match="1 lines of .*log.jsonl are damaged"):
        list(execute(config(), tmp_path / "run", CPU))
    assert outcome(tmp_path / "run") == outcome(whole)


def measured(**evaluate: Any) -> Config:
    given = config()
    return dataclasses.replace(given, evaluate=dataclasses.replace(given.evaluate, **evaluate))


def test_a_corrected_evaluation_goes_on_in_the_same_run(tmp_path: Path, whole: Path) -> None:
    stop_at(6, measured(samples=20), tmp_path / "run")
    kept = read_lines(tmp_path / "run" / "evaluations.jsonl")
    with pytest.warns(UserWarning, match="its 4 measurements are kept in evaluations-"):
        assert next(execute(config(), tmp_path / "run", CPU)) == 6
    list(execute(config(), tmp_path / "run", CPU))
    weights, lines, _ = outcome(tmp_path / "run")
    assert weights == outcome(whole)[0]
    assert lines == outcome(whole)[1][4:]
    (aside,) = (tmp_path / "run").glob("evaluations-*.jsonl")
    assert read_lines(aside) == kept


def test_a_finished_run_is_measured_at_further_sampling_steps(tmp_path: Path, whole: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    more = measured(steps=(2, 5, 3))
    assert list(execute(more, tmp_path / "run", CPU)) == [8, 8, 8]
    lines = outcome(tmp_path / "run")[1]
    assert lines[:8] == outcome(whole)[1]
    assert [line["sampling_steps"] for line in lines[8:]] == [3, 3]
    assert list(execute(more, tmp_path / "run", CPU)) == [8]


def test_last_steps_are_measured_at_the_end_alone(tmp_path: Path, whole: Path) -> None:
    list(execute(measured(last_steps=(3,)), tmp_path / "run", CPU))
    lines = outcome(tmp_path / "run")[1]
    (end,) = {line["step"] for line in lines if line["sampling_steps"] == 3}
    assert end == max(line["step"] for line in lines)
    assert [line for line in lines if line["sampling_steps"] != 3] == outcome(whole)[1]


def test_a_run_goes_on_with_the_data_it_began_with(tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i in range(30):
        Image.new("RGB", (8, 8), (i, 8 * i, 255 - i)).save(pictures / f"{i:02d}.png")
    values = read_experiment("demo").cells("smoke")[0].config.plain()
    source = {"use": "images", "path": str(pictures), "size": 8, "held_out_rows": 10}
    plain = {**values, "source": source, "codec": "pixels", "train": {**values["train"], "batch": 5}}
    plain["evaluate"] = {**values["evaluate"], "features": "pooled_pixels"}
    stop_at(2, read_config(plain), tmp_path / "run")
    assert next(execute(read_config(plain), tmp_path / "run", CPU)) == 2
    Image.new("RGB", (8, 8)).save(pictures / "30.png")
    before = contents(tmp_path / "run")
    with pytest.raises(ValueError, match="files were added, removed or changed"):
        next(execute(read_config(plain), tmp_path / "run", CPU))
    assert contents(tmp_path / "run") == before


def test_another_number_of_threads_is_told(tmp_path: Path) -> None:
    stop_at(1, config(), tmp_path / "run")
    path = tmp_path / "run" / "environment.json"
    sessions = json.loads(path.read_text())
    path.write_text(json.dumps([{**sessions[0], "threads": 77}]))
    with pytest.warns(UserWarning, match="on 77 CPU threads so far"):
        next(execute(config(), tmp_path / "run", CPU))


def test_what_a_killed_process_left_half_written_is_removed(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "checkpoints" / ".step-000000004.123.part").mkdir(parents=True)
    (run / ".log.jsonl.123.part").write_text("")
    next(execute(config(), run, CPU))
    assert not list(run.rglob("*.part"))


def test_another_seed_gives_another_outcome(tmp_path: Path, whole: Path) -> None:
    """Control of the equalities above."""
    list(execute(config(seed=1), tmp_path / "run", CPU))
    assert outcome(tmp_path / "run") != outcome(whole)


def test_a_finished_run_is_not_run_again(whole: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.name != ".lock"}
    assert list(execute(config(), whole, CPU)) == [8]
    assert before == {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.name != ".lock"}


def test_a_folder_holds_one_configuration(tmp_path: Path) -> None:
    next(execute(config(), tmp_path / "run", CPU))
    with pytest.raises(ValueError, match="another configuration"):
        next(execute(config(seed=3), tmp_path / "run", CPU))


def test_two_processes_do_not_share_a_folder(tmp_path: Path) -> None:
    first = execute(config(), tmp_path / "run", CPU)
    next(first)
    with pytest.raises(ValueError, match="another process"):
        next(execute(config(), tmp_path / "run", CPU))
    first.close()
    assert next(execute(config(), tmp_path / "run", CPU)) == 0


def test_images_do_not_depend_on_how_many_are_drawn(whole: Path) -> None:
    from immiscible_diffusion import generate
    from immiscible_diffusion.export.model import load_export

    model = load_export(whole / "export")
    few, many = (torch.cat(list(generate(model, n, steps=3, batch=batch))) for n, batch in ((5, 2), (20, 20)))
    difference = (few.int() - many[:5].int()).abs()
    assert int(difference.max()) <= 1  # the batch size may change the last bit before rounding
