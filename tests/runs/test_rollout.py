"""Policies carried out: one that knows the way, one that does not, and one that was trained."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from immiscible_diffusion import Digits, Trained
from immiscible_diffusion.cli import run
from immiscible_diffusion.experiments.config import Config
from immiscible_diffusion.experiments.experiment import read_experiment
from immiscible_diffusion.methods.samplers import fresh_like
from immiscible_diffusion.priors import StandardNormal
from immiscible_diffusion.runs.rollout import rollout

pytestmark = pytest.mark.medium


class Scripted(nn.Module):
    """A net that is asked for nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(()))


class Walk:
    """A method that walks from the place it is told in an arch, below the obstacle if so, or nowhere in particular."""

    def __init__(self, side: float, wrong: float = 0.0) -> None:
        self.side, self.wrong = side, wrong

    def sample(self, net: Any, noise: Tensor, cond: Tensor, *, steps: int) -> Tensor:
        low, high = CONFIG.source.windowed()._range  # type: ignore[attr-defined]
        place = (cond[:, 2:] + 1) / 2 * (high - low) + low
        ahead = torch.linspace(0.0, 1.2, 16)[None, :, None] * torch.tensor([1.0, 0.0]) + place[:, None, :]
        arch = self.side * 0.75 * torch.cos(ahead[..., :1].clamp(-1, 1) * torch.pi / 2)
        actions = torch.cat([ahead[..., :1].clamp(max=1.0), arch], 2) + self.wrong * noise
        return actions / torch.tensor([1.1, 0.9])  # as the codec encodes, beyond its bounds too


CONFIG: Config = read_experiment("diffusion-policy").cells("smoke")[0].config


def policy(side: float, wrong: float = 0.0) -> Trained:
    return Trained(Scripted(), Walk(side, wrong), CONFIG.codec, StandardNormal(), (16, 2))  # type: ignore[arg-type]


@pytest.mark.usefixtures("unchecked")
def test_a_policy_that_knows_the_way_succeeds_and_one_that_does_not_fails() -> None:
    above, below = (rollout(policy(side), CONFIG, episodes=30, steps=1) for side in (1.0, -1.0))
    assert (above["success"], above["touched"], above["minority"]) == (1, 0, 0)
    assert (below["success"], below["minority"]) == (1, 1)
    through = rollout(policy(0.0), CONFIG, episodes=30, steps=1)
    assert (through["success"], through["touched"]) == (0, 1)
    assert rollout(policy(1.0, wrong=2.0), CONFIG, episodes=30, steps=1)["success"] < 0.2


class Wander:
    """A method that goes wherever its fresh noise says, and keeps that."""

    def __init__(self) -> None:
        self.drawn: list[Tensor] = []

    def stochastic(self, steps: int) -> bool:
        return steps > 1

    def sample(self, net: Any, noise: Tensor, cond: Tensor, *, steps: int, generator: Any = None) -> Tensor:
        self.drawn.append(fresh_like(noise, generator))
        return self.drawn[-1]


@pytest.mark.usefixtures("unchecked")
def test_fresh_noise_is_each_episodes_own() -> None:
    def drawn(episodes: int, steps: int = 2, seed: int = 0, coupling: str = "independent") -> Tensor:
        method = Wander()
        model = Trained(Scripted(), method, CONFIG.codec, StandardNormal(), (16, 2), coupling)  # type: ignore[arg-type]
        rollout(model, CONFIG, episodes=episodes, steps=steps, seed=seed)
        return torch.stack(method.drawn)

    four = drawn(4)
    assert torch.equal(four, drawn(4))
    assert torch.equal(four[:, :2], drawn(2))
    assert not torch.equal(four, drawn(4, seed=1))
    assert not torch.equal(drawn(4, steps=1), drawn(4, steps=1))  # control: torch's own generator
    with pytest.warns(UserWarning, match=r"Wander in 2 steps adds fresh noise.*by 'assignment'"):
        drawn(1, coupling="assignment")


@pytest.mark.usefixtures("unchecked")
def test_other_data_cannot_be_carried_out() -> None:
    import dataclasses

    with pytest.raises(ValueError, match="source is Digits"):
        rollout(policy(1.0), dataclasses.replace(CONFIG, source=Digits()), episodes=1, steps=1)


@pytest.mark.slow
def test_the_command_carries_out_what_was_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sets = [
        f"--set={option}" for option in ("train.seed=0", "train.steps=400", "evaluate.every=400", "train.warmup=20")
    ]
    arguments = ["train", "diffusion-policy", "--out", str(tmp_path), "--workers", "1", "--set", "coupling=assignment"]
    assert run([*arguments, *sets]) == 0
    folder = tmp_path / "diffusion-policy"
    assert run(["rollout", str(folder), "--episodes", "40", "--steps", "10"]) == 0
    assert "minority" in capsys.readouterr().out
    (line,) = json.loads((folder / "rollout.json").read_text())["lines"]
    assert line["episodes"] == 40
    assert 0 <= line["success"] <= 1 - line["touched"]
    (export,) = folder.glob("*/export")
    assert run(["sample", str(export.parent)]) == 2
    assert "no images" in capsys.readouterr().err
    assert run(["report", str(folder), "--record", str(tmp_path / "record")]) == 0
    assert (tmp_path / "record" / "rollout.json").read_bytes() == (folder / "rollout.json").read_bytes()
    assert list(folder.glob("*/samples/*.png"))
