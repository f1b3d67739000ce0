"""What holds for every metric and every features object that is registered."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from immiscible_diffusion.registry import lookup, make, names
from shapes import unchecked

NETWORKS = {"classifier", "clip", "dinov2", "efficientnet_lite", "inception"}
OFFLINE = [name for name in names("features") if name not in NETWORKS]
"""Features without weights to fetch or to train; a network that has them is tested beside its own file."""
LOWER = [name for name in names("metric") if lookup("metric", name).better == "lower"]
HIGHER = [name for name in names("metric") if lookup("metric", name).better == "higher"]


def test_every_metric_says_which_way_is_better() -> None:
    assert sorted(LOWER + HIGHER) == names("metric")
    assert {"frechet", "kernel", "cmmd"} <= set(LOWER)
    assert {"precision", "recall", "density", "coverage", "inception_score"} <= set(HIGHER)


@pytest.mark.parametrize("name", LOWER)
def test_distances_are_zero_on_equal_and_rise_with_the_shift(name: str) -> None:
    metric, generator = make("metric", name), torch.Generator().manual_seed(0)
    real = torch.randn(400, 6, generator=generator)
    near, far = (torch.randn(300, 6, generator=generator) + shift for shift in (0.0, 1.0))
    assert abs(metric(real, real)) < abs(metric(real, far)) / 100
    assert metric(real, near) < metric(real, far)
    assert metric(real, far) == pytest.approx(metric(far, real))


@pytest.mark.parametrize("name", HIGHER)
def test_scores_fall_with_damage(name: str) -> None:
    metric, generator = make("metric", name), torch.Generator().manual_seed(0)
    real = 3 * torch.randn(400, 6, generator=generator)
    near = 3 * torch.randn(400, 6, generator=generator)
    assert metric(real, near) > metric(real, 0.2 * near + 9)


@pytest.mark.parametrize("name", names("metric"))
def test_values_do_not_depend_on_the_rows_precision(name: str) -> None:
    metric, generator = make("metric", name), torch.Generator().manual_seed(0)
    real, near = (torch.randn(200, 6, generator=generator) for _ in range(2))
    value = metric(real, near)
    assert isinstance(value, float)
    assert metric(real.double(), near.double()) == pytest.approx(value, rel=1e-9)


SIZED = [*names("metric"), {"use": "kernel", "subsets": 3, "size": 7}, {"use": "recall", "k": 9}]


@pytest.mark.parametrize("choice", SIZED, ids=str)
def test_least_is_the_fewest_rows_a_side_that_can_be_compared(choice: Any) -> None:
    metric, generator = make("metric", choice), torch.Generator().manual_seed(0)
    rows = torch.randn(metric.least, 3, generator=generator)
    assert isinstance(metric(rows, rows), float)
    with unchecked(), pytest.raises(ValueError, match=r"rows|features must be"):
        metric(rows[1:], rows[1:])


@pytest.mark.parametrize("name", OFFLINE)
def test_features_say_what_they_are(name: str) -> None:
    features = make("features", name)
    assert features.fingerprint.startswith(name)


@pytest.mark.parametrize("name", sorted({*OFFLINE} - {"values"}))
def test_features_are_rows_and_independent_of_the_batch(name: str) -> None:
    """``values`` is for numbers that are no images."""
    raw = torch.randint(0, 256, (9, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    features = make("features", name)
    whole = features(raw)
    assert whole.shape[0] == 9
    assert whole.ndim == 2
    torch.testing.assert_close(torch.cat([features(raw[:4]), features(raw[4:])]), whole)


def test_features_of_networks_take_grey_images(shared_data: Callable[[str], Path]) -> None:
    (weights,) = shared_data("inception-2015").glob("*.safetensors")
    features: Any = make("features", {"use": "inception", "weights": str(weights), "layer": 64})
    raw = torch.randint(0, 256, (2, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(features(raw), features(raw.expand(2, 3, 8, 8)))
