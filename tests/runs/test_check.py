"""Everything that would be refused after training is refused before it, all at once, under its key."""

import io
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from rich.console import Console

from immiscible_diffusion.couplings import semidiscrete
from immiscible_diffusion.couplings._potentials import ascend
from immiscible_diffusion.experiments.config import Config
from immiscible_diffusion.experiments.experiment import Cell, read_experiment
from immiscible_diffusion.runs.check import check_run
from immiscible_diffusion.runs.launch import launch
from pictures import photos

CPU = torch.device("cpu")


def cells(*overrides: tuple[str, Any]) -> list[Cell]:
    return read_experiment("demo").cells("smoke", [("grid.coupling", ["independent"]), *overrides])


def config(*overrides: tuple[str, Any]) -> Config:
    return cells(*overrides)[0].config


def problems(*overrides: tuple[str, Any]) -> list[str]:
    return check_run(config(*overrides), CPU).problems


def test_what_is_right_passes() -> None:
    assert problems() == []


UNFITTED = "evaluate.features", "pooled_pixels"
WRONG: dict[str, tuple[list[tuple[str, Any]], str]] = {
    "kernel subsets": (
        [("evaluate.metrics", [{"use": "kernel", "subsets": 3, "size": 100}])],
        "evaluate.metrics.kernel: needs at least 100 samples and there are 40",
    ),
    "more neighbours than samples": (
        [("evaluate.metrics", [{"use": "recall", "k": 60}])],
        "evaluate.metrics.recall: needs at least 61 samples and there are 40",
    ),
    "more splits than samples": (
        [("evaluate.metrics", [{"use": "inception_score", "splits": 41}])],
        "evaluate.metrics.inception_score: needs at least 41 samples",
    ),
    "more neighbours than held-out rows": (
        [("evaluate.metrics", [{"use": "coverage", "k": 30}]), ("source.held_out_rows", 20), UNFITTED],
        "evaluate.metrics.coverage: needs at least 31 held-out images and there are 20",
    ),
    "one held-out row": ([("source.held_out_rows", 1), UNFITTED], "there are 1: raise source.held_out_rows or"),
    "sampling steps beyond the levels": (
        [("method", {"use": "denoising", "schedule": "betas"}), ("evaluate.steps", [2, 2000])],
        "evaluate.steps: ",
    ),
    "guidance without a condition": ([("evaluate.guidance", 2.0)], "evaluate.guidance: guidance is 2.0"),
    "weights that are not there": (
        [("evaluate.features", {"use": "inception", "weights": "nowhere.safetensors"})],
        "evaluate.features: ",
    ),
    "a batch larger than the data": ([("train.batch", 3000)], "batch is 3000"),
    "clipping below the data's range": (
        [
            ("codec", {"use": "pixels", "mean": 120.7, "std": 64.2}),
            ("method", {"use": "denoising", "schedule": "betas", "clip": 1.0}),
        ],
        "method.clip: ",
    ),
    "a net that does not fit the images": (
        [("net", {"use": "unet", "channels": [32] * 6, "layers": 1})],
        "net: ",
    ),
}


@pytest.mark.parametrize("wrong", list(WRONG))
def test_what_only_the_first_evaluation_would_refuse(wrong: str) -> None:
    overrides, line = WRONG[wrong]
    (problem, *_) = problems(*overrides)
    assert line in problem


def test_all_that_is_wrong_is_told_at_once_and_nothing_is_written(tmp_path: Path) -> None:
    wrong = [
        ("method", {"use": "denoising", "schedule": "betas"}),
        ("evaluate.steps", [2, 2000]),
        ("evaluate.guidance", 3.0),
        ("evaluate.metrics", ["frechet", {"use": "kernel", "subsets": 3, "size": 100}]),
    ]
    runs = launch(
        read_experiment("demo"), cells(*wrong), tmp_path / "demo", workers=1, device="cpu", console=Console(quiet=True)
    )
    with pytest.raises(ValueError, match="nothing was trained") as raised:
        next(runs)
    heads = [line.split(":")[0].strip() for line in str(raised.value).splitlines()[1:]]
    assert heads == ["evaluate.guidance", "evaluate.steps", "evaluate.metrics.kernel"]
    assert not (tmp_path / "demo").exists()


def test_a_problem_of_one_arm_names_the_arm(tmp_path: Path) -> None:
    methods = {
        "straight": {"use": "denoising", "schedule": "straight", "predict": "x0"},
        "ddim": {"use": "denoising", "schedule": "betas"},
    }
    both = [
        Cell(name, 0, config(("method", method), ("evaluate.steps", [2, 2000]))) for name, method in methods.items()
    ]
    runs = launch(read_experiment("demo"), both, tmp_path, workers=1, device="cpu", console=Console(quiet=True))
    with pytest.raises(ValueError, match=r"nothing was trained: evaluate.steps: .* \(in ddim\)$"):
        next(runs)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (
            {"held_out_rows": 20},
            r"batch is 128; .* 40 training rows, for source.held_out_rows = 20 of 60 .* train.batch",
        ),
        ({}, r"has 60 images and source.held_out_rows is 500: none to train; lower source.held_out_rows"),
        ({"size": 3, "held_out_rows": 20}, "evaluate.features: .* 3 x 3: set evaluate.features = 'pooled_pixels'"),
        ({"size": 9, "held_out_rows": 20}, r"multiples of 2: \(3, 9, 9\); give net.channels fewer levels"),
        ({"size": 0}, "source.size is 0; it must be at least 1"),
    ],
)
@pytest.mark.medium
@pytest.mark.usefixtures("unchecked")
def test_what_a_newcomer_meets_names_the_option(options: dict[str, Any], line: str, tmp_path: Path) -> None:
    """Control: with the options that are named, the same images pass."""
    source = {"use": "images", "path": str(photos(tmp_path / "photos", 60)), **{"size": 8, **options}}
    net = {"use": "unet", "channels": [8] if options.get("size") == 3 else [8, 8]}
    batch = 128 if options.get("size", 8) == 8 else 40
    with pytest.raises(ValueError, match=line):
        raise ValueError("\n".join(problems(("source", source), ("net", net), ("train.batch", batch))))
    mended = {**source, "size": 8, "held_out_rows": 20}
    assert problems(("source", mended), ("net", net), ("train.batch", 40), UNFITTED) == []


@pytest.mark.medium
def test_features_are_not_fitted_where_something_else_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: they are where nothing is."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    features = "evaluate.features", {"use": "classifier", "seed": 3}
    (problem,) = problems(features, ("evaluate.guidance", 2.0))
    assert problem.startswith("evaluate.guidance: ")
    assert not list(tmp_path.rglob("*.safetensors"))
    assert problems(features) == []
    assert len(list(tmp_path.rglob("classifiers/*.safetensors"))) == 1


@pytest.mark.usefixtures("unchecked")
def test_features_that_cannot_take_the_images(tmp_path: Path) -> None:
    for i in range(30):
        Image.new("RGB", (4, 4), (i, 8 * i, 255 - i)).save(tmp_path / f"{i:02d}.png")
    source = {"use": "images", "path": str(tmp_path), "size": 3, "held_out_rows": 10}
    (problem,) = problems(("source", source), ("codec", "pixels"), ("train.batch", 5))
    assert problem.startswith("evaluate.features: the features `classifier` are for images of 4 to 64 pixels")


@pytest.mark.medium
def test_what_an_option_cannot_do_is_told_at_the_start(tmp_path: Path) -> None:
    console = Console(record=True, file=io.StringIO(), width=300)
    small = [("train.seed", 0), ("train.steps", 1), ("evaluate.steps", [1])]
    couplings = {"alone": {"use": "assignment"}, "drawn": {"use": "nearest"}}
    arms = [
        Cell(name, 0, config(*small, ("grid.coupling", [coupling["use"]]), ("train.batch", 1)))
        for name, coupling in couplings.items()
    ]
    list(launch(read_experiment("demo"), arms, tmp_path / "demo", workers=1, device="cpu", console=console))
    notes = [line for line in console.export_text().splitlines() if line.startswith("Note: ")]
    assert [note.split(": ")[1] for note in notes] == ["alone"]
    assert "a batch of one row has one order: raise train.batch" in notes[0]


def test_the_check_leaves_the_global_generator_and_the_memory_of_a_coupling(tmp_path: Path) -> None:
    given = config(("grid.coupling", ["cached"]))
    before = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert check_run(given, CPU).problems == []
    assert torch.equal(torch.get_rng_state(), before)
    assert given.coupling.memory() == {}  # type: ignore[attr-defined]


@pytest.mark.slow
def test_a_coupling_over_the_data_set_is_checked_and_not_fitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control: what a check must not call is called by the launch, once for all runs."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    fits = list[int]()

    def counted(*arguments: Any, **options: Any) -> Any:
        fits.append(1)
        return ascend(*arguments, **options)

    monkeypatch.setattr(semidiscrete, "ascend", counted)
    coarse = "grid.coupling", {"semidiscrete": {"use": "semidiscrete", "unevenness": 1.0}}
    assert check_run(cells(coarse)[0].config, CPU).problems == []
    assert fits == []
    painting = "source", {"use": "painting", "source": "digits", "codec": "pixels"}
    refused = check_run(cells(coarse, painting)[0].config, CPU).problems
    assert any(line.startswith("coupling: ") and "source Painting cannot give them so" in line for line in refused)
    experiment, console = read_experiment("demo"), Console(file=io.StringIO())
    for _ in range(2):
        for cell, error in launch(
            experiment, cells(coarse), tmp_path / "runs", workers=1, device="cpu", console=console
        ):
            assert error is None, cell
    assert fits == [1]
