"""Consistency training by noise level, against a net whose answer is known."""

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
from studies.__main__ import run
from studies.denoising import paired
from studies.levels import by_level
from studies.study_figures import levels_figure

pytestmark = pytest.mark.medium


class Silent(nn.Module):
    """Predicts 0, so that f(x_t) = c_skip x_t."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return 0 * x_t


def test_error_and_loss_are_their_definitions() -> None:
    config = read_experiment("digits-consistency").cells("smoke")[0].config
    method = Consistency(first=10, last=20, growth="doubling", weight="inverse_gap")
    trained = Trained(Silent(), method, Pixels(), StandardNormal(), (1, 8, 8))
    measured = by_level(trained, config, sigmas=(0.5, 80.0), rows=128)
    x = config.codec.encode(config.source.held_out().raw[:128])
    noise, levels = paired(config, x, None), method.levels(1.0)

    def f(sigma: float) -> Tensor:
        return 0.25 / ((sigma - 0.002) ** 2 + 0.25) * (x + sigma * noise)

    near = int((levels - 0.5).abs().argmin())
    assert measured.sigmas == [float(levels[near]), pytest.approx(80.0)]
    for i, place in enumerate((near, len(levels) - 1)):
        here, below = f(float(levels[place])), f(float(levels[place - 1]))
        assert measured.error[i] == pytest.approx(float((here - x).square().mean() / x.var(0, correction=0).mean()))
        assert measured.loss[i] == pytest.approx(float((here - below).square().mean()), rel=1e-3)
    assert measured.error[0] != pytest.approx(measured.error[1], rel=0.1)
    with pytest.raises(ValueError, match="it must be Consistency"):
        by_level(Trained(Silent(), Denoising(), Pixels(), StandardNormal(), (1, 8, 8)), config)


def test_the_picture_is_drawn_by_its_command(tmp_path: Path) -> None:
    cells = read_experiment("digits-consistency").cells("smoke", [("train.seed", [0, 1])])
    runs = [{"arm": c.arm, "seed": c.seed, "folder": c.folder, "point": {"coupling": c.arm}} for c in cells]
    for cell in cells:
        list(execute(cell.config, tmp_path / cell.folder, torch.device("cpu")))
    write_json(tmp_path / "index.json", {"experiment": "x", "runs": [*runs, {**runs[0], "folder": "not-finished"}]})
    assert run(["draw", "levels", str(tmp_path), "--out", str(tmp_path)]) == 0
    with Image.open(tmp_path / "levels.webp") as picture:
        assert min(picture.size) > 400
    rows = json.loads((tmp_path / "levels.json").read_text())["rows"]
    assert len(rows) == len(runs)
    assert all(len(row["error"]) == len(row["sigmas"]) == 6 for row in rows)
    assert run(["draw", "levels"]) == 2
    with pytest.raises(ValueError, match="needs a run of each arm"):
        levels_figure({})
