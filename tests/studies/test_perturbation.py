"""Pictures of changed noise, against a model whose pictures are the noise itself."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from immiscible_diffusion import Denoising, Pixels, Trained
from immiscible_diffusion.experiments.experiment import read_experiment
from immiscible_diffusion.files import write_json
from immiscible_diffusion.priors import StandardNormal
from immiscible_diffusion.runs.run import execute
from studies.__main__ import run
from studies.perturbation import perturb
from studies.study_figures import perturbation_figure

pytestmark = pytest.mark.medium


class Still(nn.Module):
    """Predicts no velocity, times a factor: the sample is the noise, or 0 where the factor is 1."""

    def __init__(self, factor: float = 0.0) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.factor * x_t


CONFIG = read_experiment("demo").cells("smoke")[0].config
CODEC = Pixels(127.5, 20.0)  # so wide that next to nothing is cut off at 0 and 255


def model(factor: float) -> Trained:
    return Trained(Still(factor), Denoising(), CODEC, StandardNormal(), (1, 8, 8))


def test_the_change_of_an_identity_is_known() -> None:
    """|z - (z + w e) / s|^2 = (1 - 1/s)^2 + (w/s)^2 in units of 2, for s^2 = 1 + w^2."""
    weights = (0.1, 0.5, 1.0, 100.0)
    perturbed = perturb(model(0.0), CONFIG, weights=weights, steps=1, noises=64, draws=4)
    for w, change in zip(weights, perturbed.change, strict=True):
        s = (1 + w * w) ** 0.5
        assert change == pytest.approx(((1 - 1 / s) ** 2 + (w / s) ** 2) / 2, rel=0.05)
    assert perturbed.change[-1] == pytest.approx(1, rel=0.05)
    assert perturbed.images.shape == (5, 1, 8, 8)
    assert perturbed.images.dtype == torch.uint8
    again = perturb(model(0.0), CONFIG, weights=weights, steps=1, noises=64, draws=4)
    assert again.change == perturbed.change


def test_what_cannot_be_told_is_refused() -> None:
    with pytest.raises(ValueError, match="all images are the same"):
        perturb(model(1.0), CONFIG, steps=1, noises=4, draws=1)
    with pytest.raises(ValueError, match="give at least 2"):
        perturb(model(0.0), CONFIG, noises=1)
    with pytest.raises(ValueError, match="a run of each"):
        perturbation_figure({})


def test_the_picture_is_drawn_by_its_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cells = read_experiment("demo").cells("smoke")
    for cell in cells:
        list(execute(cell.config, tmp_path / cell.folder, torch.device("cpu")))
    runs = [{"arm": cell.arm, "seed": cell.seed, "folder": cell.folder} for cell in cells]
    write_json(tmp_path / "index.json", {"experiment": "demo", "runs": runs})
    assert run(["draw", "perturbation", str(tmp_path), "--steps", "2", "--out", str(tmp_path)]) == 0
    with Image.open(tmp_path / "perturbation.webp") as picture:
        assert min(picture.size) > 250
    rows = json.loads((tmp_path / "perturbation.json").read_text())["rows"]
    assert len(rows) == len(cells)
    assert run(["draw", "perturbation"]) == 2
    assert "needs the folder of an experiment" in capsys.readouterr().err
