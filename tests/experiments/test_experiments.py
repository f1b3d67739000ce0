"""The experiment files of the papers: each resolves at every scale, and every run of each goes through at ``smoke``."""

import re
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from immiscible_diffusion.experiments.experiment import read_experiment
from immiscible_diffusion.experiments.values import built_in, parse_override
from immiscible_diffusion.files import read_lines
from immiscible_diffusion.runs.run import execute

pytestmark = pytest.mark.medium

CIFAR = "bases/cifar10.toml", "bases/cifar10-ddim.toml", "bases/consistency.toml", "bases/few-steps.toml"
SCALES = ["smoke", "cpu", "gpu", "paper"]


def base_of(name: str) -> str:
    """Return the file that an experiment extends, empty where it extends none."""
    extends: str = tomllib.loads(built_in()[name].read_text(encoding="utf-8")).get("extends", "")
    return extends


MINE = [name for name in built_in() if base_of(name) in CIFAR and read_experiment(name).published]
"""The papers' experiments on images. An experiment without published numbers to stand beside need not follow them."""


def test_there_are_files_to_test() -> None:
    assert len(MINE) >= 11


@pytest.mark.usefixtures("unchecked")  # the check of a protocol would ask the source for its rows
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", MINE)
def test_every_file_resolves_at_every_scale(name: str, scale: str) -> None:
    experiment = read_experiment(name)
    cells = experiment.cells(scale)
    assert set(experiment.scale) == set(SCALES)
    assert len({cell.folder for cell in cells}) == len(cells)
    assert any(cell.arm.split("-")[-1] == "independent" for cell in cells)
    seeds = {arm: {cell.seed for cell in cells if cell.arm == arm} for arm in (cell.arm for cell in cells)}
    assert all(arm_seeds == ({0, 1, 2} if scale in ("cpu", "paper") else {0}) for arm_seeds in seeds.values())
    for cell in cells:
        plain = cell.config.plain()
        assert plain["source"]["use"] == ("digits" if scale == "smoke" else "images")
        if scale == "cpu":
            assert (plain["evaluate"]["samples"] >= 2000, plain["evaluate"]["features"]["use"]) == (True, "classifier")
        elif scale == "gpu":
            assert plain["evaluate"]["features"] == {**plain["evaluate"]["features"], "use": "inception", "layer": 768}
        if scale == "paper":
            assert (plain["evaluate"]["samples"], plain["evaluate"]["features"]["layer"]) == (50_000, 2048)


FAMILIES = ["edm", "fig4b-consistency"]
"""A file for each method and net, whose runs the default tests carry out; painting has its own tests."""
SMOKE = [name for name in built_in() if "smoke" in read_experiment(name).scale]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in FAMILIES else pytest.mark.slow) for name in SMOKE]
)
def test_every_run_of_every_file_goes_through_at_smoke(name: str, tmp_path: Path) -> None:
    """Smoke test."""
    cells = read_experiment(name).cells("smoke")
    for cell in cells:
        folder = tmp_path / cell.folder
        assert list(execute(cell.config, folder, torch.device("cpu")))[-1] == cell.config.train.steps
        lines = read_lines(folder / "evaluations.jsonl")
        assert {line["sampling_steps"] for line in lines} == set(cell.config.evaluate.steps)
        coupling = str(cell.config.plain()["coupling"])
        selects = any(f"'{name}'" in coupling for name in ("nearest", "oversampled"))
        assert {line["start"] for line in lines} == ({"matched", "normal"} if selects else {"matched"})


@pytest.mark.parametrize("name", MINE)
def test_published_numbers_belong_to_arms_and_have_a_grade(name: str) -> None:
    experiment = read_experiment(name)
    arms = {cell.arm for cell in experiment.cells("smoke")}
    rows = experiment.published.get("rows", [])
    assert experiment.published["note"]
    assert set(experiment.published) <= {"note", "rows", "thresholds"}
    for row in rows:
        assert row["arm"] in arms
        assert row["grade"].startswith(("primary: ", "secondary: "))
        assert {"metric", "value"} <= set(row)


@pytest.mark.usefixtures("unchecked")
def test_the_published_set_ups_are_those_of_the_papers() -> None:
    """arXiv:2406.12303, Table 1 and the steps of Table 5; arXiv:2505.18521, Tables 8 and 9."""

    def first(name: str) -> Any:
        return read_experiment(name).cells("paper")[0].config

    batches = {"fig4a-table3-consistency": 512, "fig4b-consistency": 1024, "fig4c-consistency": 2048}
    batches |= {"fig5-table4-ddim": 256, "few-steps-flow": 256}
    assert {name: first(name).train.batch for name in batches} == batches
    recipes = {"fig4a-table3-consistency": (2e-4, 0.9, 150), "fig4b-consistency": (1e-4, 0.95, 200)}
    recipes["fig4c-consistency"] = recipes["fig4b-consistency"]
    for name, recipe in recipes.items():  # openai's commands for CIFAR-10 and ImageNet-64
        config = first(name)
        assert (config.train.lr, config.method.teacher, config.method.last) == recipe
        assert (config.train.warmup, config.train.clip) == (0, 0)
    every, steps = first("table5-norm").evaluate.every, first("table5-norm").train.steps
    assert list(range(3 * every, steps + 1, every)) == [70_200, 93_600, 117_000, 140_400, 163_800]
    assert first("fig5-table4-ddim").evaluate.steps == (20, 50, 100, 500, 1000)
    assert {cell.config.train.batch for cell in read_experiment("fig8-batch").cells("paper")} == {128, 256, 512}
    ks = [cell.config.coupling for cell in read_experiment("knn-sweep").cells("paper", [("train.seed", 0)])]
    assert [getattr(couple, "k", 1) for couple in ks] == [1, 2, 4, 8, 16, 32]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("scale", "deviation"), [("smoke", 95.9), ("cpu", 59.1), ("paper", 64.2)])
def test_a_scale_may_give_a_varied_key_other_choices(scale: str, deviation: float) -> None:
    cells = read_experiment("image-scale").cells(scale, [("train.seed", 0)])
    deviations = {cell.arm.split("-")[0]: cell.config.plain()["codec"]["std"] for cell in cells}
    assert len(cells) == 6
    assert deviations == {label: pytest.approx(deviation / float(label), abs=0.06) for label in ("0.5", "1", "2")}
    for cell in cells:  # and DDIM clips to the data's largest absolute value
        ends = cell.config.codec.encode(torch.tensor([0, 255], dtype=torch.uint8).reshape(1, 1, 1, 2))
        assert cell.config.plain()["method"]["clip"] == pytest.approx(float(ends.abs().max()), abs=1e-3)


def test_an_axis_that_varies_two_keys_needs_two_values() -> None:
    experiment = read_experiment("image-scale")
    for wrong in (48.0, [48.0], [48.0, 1.0, 2.0]):
        with pytest.raises(ValueError, match="a list of 2 values"):
            experiment.cells("smoke", [("grid.codec.std, method.clip", {"2": wrong})])


def test_so_may_an_override_but_not_of_a_key_that_is_not_varied() -> None:
    experiment = read_experiment("fig8-batch")
    cells = experiment.cells("smoke", [parse_override("grid.train.batch=[8, 12]")])
    assert [cell.arm for cell in cells] == ["8-independent", "8-assignment", "12-independent", "12-assignment"]
    assert [cell.config.train.batch for cell in cells] == [8, 8, 12, 12]
    with pytest.raises(ValueError, match="unknown key grid"):
        experiment.cells("smoke", [("grid.train.steps", [1, 2])])
    with pytest.raises(ValueError, match=r"grid\.train\.batch must be a list of values"):
        experiment.cells("smoke", [("grid.train.batch", 8)])


def test_image_scales_are_the_deviation_of_the_digits() -> None:
    """Over all training and held-out pixels; a scale of [-1, 1] is another."""
    from immiscible_diffusion import Digits

    raw = next(Digits(held_out_rows=1).batches(1796, 0)).raw.float()
    for cell in read_experiment("image-scale").cells("smoke"):
        x = cell.config.codec.encode(raw.to(torch.uint8))
        assert float(x.std()) == pytest.approx(float(cell.arm.split("-")[0]), rel=0.01)
        assert abs(float(x.mean())) < 0.01


def test_folders_of_runs_have_safe_names_whatever_the_labels() -> None:
    """A label such as a path must not lead out of the folder of the experiment, and two labels keep two folders."""
    labels = ["/etc/passwd", "../up", "a b[1]", "ü", "x" * 300, "..", ".hidden", "c:\\d", "a?b*c"]
    values = {label: 10 + i for i, label in enumerate(labels)}
    cells = replace(read_experiment("demo"), grid={"train.steps": values}).cells()
    assert [cell.arm for cell in cells] == labels
    folders = [cell.folder for cell in cells]
    assert len(set(folders)) == len(labels)
    for folder in folders:
        assert Path(folder).name == folder
        assert len(folder.encode()) < 200
        assert not folder.startswith(".")
        assert re.fullmatch(r"[\w.,=+-]+", folder)


def test_a_run_is_named_by_what_it_trains() -> None:
    def folder(*overrides: tuple[str, object]) -> str:
        return read_experiment("demo").cells("smoke", overrides)[0].folder

    assert folder(("evaluate.samples", 30), ("evaluate.steps", [7])) == folder()
    assert folder(("train.lr", 0.5)) != folder()


def test_two_runs_do_not_share_a_folder() -> None:
    with pytest.raises(ValueError, match="two runs would share the folder 1-seed0-"):
        replace(read_experiment("demo"), grid={"train.seed": {"a": 0, "b": 0}, "net.depth": {"1": 1}}).cells()
