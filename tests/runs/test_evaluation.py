"""When runs are measured, and what is compared where held-out data are padded."""

from itertools import pairwise

import pytest
import torch

from immiscible_diffusion.experiments.config import Evaluation
from immiscible_diffusion.experiments.experiment import read_experiment
from immiscible_diffusion.features import PooledPixels
from immiscible_diffusion.priors import StandardNormal
from immiscible_diffusion.runs import evaluation
from immiscible_diffusion.runs.check import data_shape
from immiscible_diffusion.sample import Trained


def due(every: int, last: int, growth: float = 1.0) -> list[int]:
    return Evaluation(every, (5,), 10, 0, PooledPixels(), {}, growth=growth).due(last)


def test_evaluations_are_equally_far_apart_or_grow_apart() -> None:
    assert due(250, 1000) == [250, 500, 750, 1000]
    assert due(300, 1000) == [300, 600, 900, 1000]
    assert due(2000, 1000) == [1000]
    assert due(100, 6400, 2.0) == [100, 200, 400, 800, 1600, 3200, 6400]
    steps = due(100, 20_000, 1.3)
    assert steps[:6] == [100, 200, 300, 400, 600, 800]  # at least one interval on, and multiples of every
    assert all(step % 100 == 0 for step in steps)
    ratios = [after / before for before, after in pairwise(steps[6:-1])]
    assert all(1.3 <= ratio < 1.45 for ratio in ratios)


@pytest.mark.parametrize("growth", [0.5, float("inf"), float("nan")])
def test_a_growth_that_is_none(growth: float) -> None:
    with pytest.raises(ValueError, match="growth is"):
        due(100, 1000, growth)


@pytest.mark.medium
def test_padding_is_not_compared() -> None:
    """What was never trained must not be measured: at padding the drawn actions are those of the held-out rows."""
    config = read_experiment("diffusion-policy").cells("smoke")[0].config
    net = config.net.build(data_shape(config), config.source.classes).eval()
    trained = Trained(net, config.method, config.codec, StandardNormal(), data_shape(config))
    with torch.no_grad():
        drawn = torch.cat([part() for part in evaluation._parts(trained, config, 2, "matched")])
    held_out = config.source.held_out()
    assert held_out.mask is not None
    rows = torch.arange(len(drawn)) % len(held_out.raw)
    mask = held_out.mask[rows].expand_as(drawn)
    assert 0 < mask.float().mean() < 1
    same = drawn == held_out.raw[rows]
    assert bool(same[~mask].all())
    assert not bool(same[mask].any())  # control: what is real is drawn
