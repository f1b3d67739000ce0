"""What a run writes, told to a real TensorBoard tracker while it goes on."""

from pathlib import Path

import pytest
from rich.console import Console

from immiscible_diffusion.experiments.experiment import read_experiment
from immiscible_diffusion.experiments.values import parse_override
from immiscible_diffusion.files import read_lines
from immiscible_diffusion.runs.launch import launch
from immiscible_diffusion.runs.trackers import Follower, tracked, tracker_names

pytestmark = pytest.mark.medium


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """Return what TensorBoard reads from a folder: tag -> step -> value."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: {each.step: each.value for each in events.Scalars(tag)} for tag in events.Tags()["scalars"]}


@pytest.mark.slow
def test_tensorboard_holds_the_log_and_the_evaluations(tmp_path: Path) -> None:
    sets = ["coupling=assignment", "train.seed=0", "train.steps=100", "evaluate.every=50", "train.checkpoint=20"]
    sets += ["evaluate.samples=20", "evaluate.steps=[2]", "net.width=8"]
    (cell,) = read_experiment("demo").cells(None, [parse_override(text) for text in sets])
    console = Console(quiet=True)
    experiment = read_experiment("demo")
    runs = launch(experiment, [cell], tmp_path, workers=1, device="cpu", console=console, tracker="tensorboard")
    assert list(runs) == [(cell, None)]
    curves = scalars(tmp_path / "trackers" / cell.folder)
    log = {line["step"]: line["loss"] for line in read_lines(tmp_path / cell.folder / "log.jsonl")}
    assert curves["loss"] == pytest.approx(log)
    assert list(log) == [50, 100]
    evaluated = {line["step"]: line["frechet"] for line in read_lines(tmp_path / cell.folder / "evaluations.jsonl")}
    assert curves["frechet/2 steps, matched"] == pytest.approx(evaluated)
    assert list(evaluated) == [50, 100]


class Kept:
    """A tracker that remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[tuple[int | None, dict[str, float]]] = []
        self.configuration: dict[str, object] = {}

    def store_init_configuration(self, values: dict[str, object]) -> None:
        self.configuration = values

    def log(self, values: dict[str, float], step: int | None = None) -> None:
        self.told.append((step, values))


class Broken(Kept):
    """A tracker that lost its server after the first line, and counts what it is still asked."""

    asked = 0

    def log(self, values: dict[str, float], step: int | None = None) -> None:
        self.asked += 1
        if self.asked > 1:
            raise ConnectionError("no network")
        super().log(values, step)

    def finish(self) -> None:
        raise ConnectionError("no network")


def test_a_tracker_that_fails_is_told_once_and_done_without(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"train": {"steps": 2}}')
    (tmp_path / "log.jsonl").write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "loss": 0.25}\n')
    broken = Broken()
    follower = Follower(broken, tmp_path)
    with pytest.warns(UserWarning, match=r"tracker of .* failed \(ConnectionError: no network\); the run goes on"):
        assert follower.send() == 0
    assert follower.send() == 0
    assert (broken.asked, broken.told) == (2, [(1, {"loss": 0.5})])
    follower.finish()  # a second warning would fail the test


def test_every_line_is_told_once(tmp_path: Path) -> None:
    kept = Kept()
    follower = Follower(kept, tmp_path)
    assert follower.send() == 0  # the folder has nothing yet
    (tmp_path / "config.json").write_text('{"train": {"steps": 2}}')
    (tmp_path / "log.jsonl").write_text('{"step": 1, "loss": 0.5}\n')
    assert follower.send() == 1
    (tmp_path / "log.jsonl").write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "loss": 0.25}\n')
    assert follower.send() == 1
    assert follower.send() == 0
    assert kept.told == [(1, {"loss": 0.5}), (2, {"loss": 0.25})]
    assert kept.configuration == {"train.steps": 2}


def test_an_unknown_tracker_is_refused(tmp_path: Path) -> None:
    assert {"tensorboard", "wandb"} <= set(tracker_names())
    with pytest.raises(ValueError, match="no tracker 'board'"), tracked("board", tmp_path / "run"):
        pass
