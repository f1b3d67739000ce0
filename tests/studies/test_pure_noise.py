"""Denoising by noise level against nets whose answer is known, and the pictures of the papers from real runs."""

import dataclasses
import io
import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from immiscible_diffusion import Denoising, Pixels, Trained
from immiscible_diffusion.experiments.experiment import read_experiment
from immiscible_diffusion.files import write_json
from immiscible_diffusion.methods import Consistency
from immiscible_diffusion.priors import StandardNormal
from immiscible_diffusion.runs.run import execute
from immiscible_diffusion.schedules import Betas
from studies.__main__ import run
from studies.denoising import DenoisingResult, clean_error, denoise, predict_clean, read_run
from studies.study_figures import denoising_figure, miscibility_figure

pytestmark = pytest.mark.medium


class Constant(nn.Module):
    """Predicts the same clean data whatever it sees."""

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.answer = nn.Parameter(answer)

    def forward(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.answer.expand_as(x_t)


def model(answer: Tensor) -> Trained:
    method = Denoising(schedule=Betas(), predict="x0")
    return Trained(Constant(answer), method, Pixels(), StandardNormal(), (1, 8, 8))


X = torch.randn(50, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_the_mean_of_the_data_has_an_error_of_one_at_every_level() -> None:
    for t in (0.1, 0.5, 0.999):
        assert clean_error(model(X.mean(0)), X, torch.zeros_like(X), t) == pytest.approx(1, rel=1e-5)
        assert clean_error(model(X.mean(0) + 1), X, torch.zeros_like(X), t) > 1.5


def test_clean_data_follow_from_every_prediction() -> None:
    """A net that answers with the true combination gives the data back; with another method's, it does not."""
    noise, t = torch.randn(X.shape, generator=torch.Generator().manual_seed(1)), 0.4
    alpha, sigma = (float(value) for value in Betas().coefficients(torch.tensor([t])))
    answers = {"eps": noise, "x0": X, "v": alpha * noise - sigma * X, "velocity": noise - X}
    for predict, answer in answers.items():
        trained = dataclasses.replace(model(answer), method=Denoising(schedule=Betas(), predict=predict))  # type: ignore[arg-type]
        torch.testing.assert_close(predict_clean(trained, alpha * X + sigma * noise, t), X, atol=1e-4, rtol=0)
        wrong = dataclasses.replace(model(answer), method=Denoising(schedule=Betas(), predict="eps"))
        if predict != "eps":
            assert not torch.allclose(predict_clean(wrong, alpha * X + sigma * noise, t), X, atol=0.1)


def test_a_net_that_always_says_the_same_has_no_spread() -> None:
    (cell, *_) = read_experiment("fig7-ablation").cells("smoke")
    denoised = denoise(model(torch.zeros(1, 8, 8)), cell.config, times=[0.9, 0.1], steps=2, images=3, rows=70)
    assert denoised.spread == 0
    assert denoised.times == [0.9, 0.1]
    assert denoised.coupled == denoised.independent
    assert denoised.guesses.shape == denoised.samples.shape == (3, 1, 8, 8)
    assert torch.equal(denoised.guesses, denoised.guesses[:1].expand(3, -1, -1, -1))


def test_the_runs_own_coupling_pairs_the_held_out_data() -> None:
    """A net that returns its input is nearer to the data where the noise is nearer, and farther where it is flipped."""

    class Echo(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))

        def forward(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
            return self.weight * x_t

    trained = dataclasses.replace(model(torch.zeros(1, 8, 8)), net=Echo())
    cells = read_experiment("fig7-ablation").cells("smoke", [("train.batch", 100)])
    by_arm = {cell.arm: denoise(trained, cell.config, times=[0.5], steps=1, rows=250) for cell in cells}
    near, plain, far = (by_arm[arm].coupled[0] for arm in ("assignment", "independent", "flipped"))
    assert near < 0.97 * plain < plain < 0.97 * far
    assert len({denoised.independent[0] for denoised in by_arm.values()}) == 1


def test_other_methods_are_refused() -> None:
    (cell, *_) = read_experiment("fig7-ablation").cells("smoke")
    other = dataclasses.replace(model(X.mean(0)), method=Consistency())
    with pytest.raises(ValueError, match="Consistency"):
        denoise(other, cell.config)
    with pytest.raises(ValueError, match="do not vary"):
        clean_error(model(X.mean(0)), torch.ones(4, 1, 8, 8), torch.ones(4, 1, 8, 8), 0.5)
    with pytest.raises(ValueError, match="not the folder of a finished run"):
        read_run(Path("nowhere"))


@pytest.mark.slow
def test_both_pictures_are_drawn_by_their_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Smoke test; the numbers beside the pictures are the analyses'."""
    out = str(tmp_path / "figures")
    assert run(["draw", "miscibility", "--points", "20", "--batch", "32", "--out", out]) == 0
    rows = json.loads((tmp_path / "figures" / "miscibility.json").read_text())["rows"]
    assert [row["points"] for row in rows] == [20, 20, 20]
    assert rows[1]["debiased"] > rows[0]["debiased"]
    cells = read_experiment("fig7-ablation").cells("smoke", [("train.seed", [0, 1])])
    for cell in cells:
        assert list(execute(cell.config, tmp_path / cell.folder, torch.device("cpu")))[-1] == 2
    runs = [{"arm": cell.arm, "seed": cell.seed, "folder": cell.folder} for cell in cells]
    write_json(
        tmp_path / "index.json",
        {"experiment": "x", "runs": [*runs, {"arm": "cut", "seed": 0, "folder": "not-finished"}]},
    )
    assert run(["draw", "denoising", str(tmp_path), "--steps", "2", "--out", out]) == 0
    rows = json.loads((tmp_path / "figures" / "denoising.json").read_text())["rows"]
    assert sorted({row["arm"] for row in rows}) == ["assignment", "flipped", "independent"]
    assert len(rows) == 6
    for name in ("miscibility", "denoising"):
        with Image.open(tmp_path / "figures" / f"{name}.webp") as picture:
            assert min(picture.size) > 500
    capsys.readouterr()
    write_json(tmp_path / "index.json", {"experiment": "x", "runs": [{"arm": "x", "seed": 0, "folder": "../x"}]})
    assert run(["draw", "denoising", str(tmp_path), "--out", out]) == 2
    assert "not a folder beside it" in capsys.readouterr().err
    assert run(["draw", "something"]) == 2
    assert run(["draw", "denoising"]) == 2
    assert "no picture named 'something'" in capsys.readouterr().err


def test_pictures_of_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="needs a data set"):
        miscibility_figure([])
    nothing: list[dict[str, list[DenoisingResult]]] = [{}, {"a": []}]
    for arms in nothing:
        with pytest.raises(ValueError, match="needs an arm"):
            denoising_figure(arms)


def test_the_picture_tells_couplings_apart() -> None:
    x, cluster = X.flatten(1)[:, :2], torch.arange(50) % 3

    def drawn(noise: Tensor) -> Image.Image:
        return Image.open(io.BytesIO(miscibility_figure([("x", {"c": (x, noise, cluster)})])))

    first, again, other = (drawn(n) for n in (x.flip(0), x.flip(0), x.flip(1)))
    assert first.tobytes() == again.tobytes()
    assert first.tobytes() != other.tobytes()
