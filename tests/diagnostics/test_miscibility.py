"""The measure of miscibility against closed forms, and the paths of the picture."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from immiscible_diffusion.couplings import Assignment, Flipped, Independent, Nearest
from immiscible_diffusion.couplings._nearest_start import max_normal_moments
from immiscible_diffusion.diagnostics.miscibility import flower, leading_plane, miscibility, paths
from immiscible_diffusion.schedules import Betas

pytestmark = pytest.mark.medium


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_independent_noise_is_apart_by_chance_alone() -> None:
    """The distance of two means of m standard normals in d dimensions is sqrt(2 / m) times a chi of d degrees."""
    found = miscibility(Independent(), randn(12, 3, 10, 10), [randn(4, 3, 10, 10, seed=1)], points=100)
    chi = math.sqrt(2) * math.exp(math.lgamma(150.5) - math.lgamma(150))
    assert found.distance == pytest.approx(math.sqrt(2 / 100) * chi, rel=0.02)
    assert found.floor == pytest.approx(math.sqrt(2 * 300 / 100))
    assert found.debiased < 0.3 * found.floor


@pytest.mark.parametrize("points", [200, 2000])
@pytest.mark.slow
def test_nearest_by_inner_product_has_a_closed_form(points: int) -> None:
    """Its means are c u, c being the mean of the maximum of k normals; between orthogonal data sqrt(2) c."""
    x = 5 * torch.eye(20)[:6]
    estimate = miscibility(Nearest(16, "dot"), x, [randn(2, 20)], points=points)
    expected = math.sqrt(2) * max_normal_moments(16)[0]
    assert estimate.debiased == pytest.approx(expected, rel=0.02)
    assert estimate.distance > estimate.debiased
    raw_bias = estimate.distance / expected - 1
    assert raw_bias > 0.01 or points == 2000  # the control: without the correction few points show


@pytest.mark.slow
def test_pairing_sets_the_clusters_apart_and_a_flip_does_not_change_that() -> None:
    x, others = 2 * randn(6, 30), [2 * randn(58, 30, seed=i) for i in (1, 2, 3)]
    rows = {each: miscibility(couple, x, others, points=300) for each, couple in COUPLES.items()}
    assert rows["assignment"].debiased > rows["nearest"].debiased > 5 * rows["independent"].debiased
    assert rows["flipped"] == rows["assignment"]


COUPLES: dict[str, Any] = {
    "independent": Independent(),
    "assignment": Assignment(),
    "nearest": Nearest(2),
    "flipped": Flipped(),
}


@pytest.mark.parametrize(("images", "points", "others"), [(1, 9, 1), (3, 1, 1), (3, 9, 0)])
def test_too_little_is_refused(images: int, points: int, others: int) -> None:
    with pytest.raises(ValueError, match="miscibility needs 2 images"):
        miscibility(Independent(), randn(images, 4), [randn(2, 4)] * others, points=points)


def test_paths_begin_at_data_and_end_at_noise() -> None:
    x, noise = randn(5, 3, 2), randn(5, 3, 2, seed=1)
    ways = paths(x, noise, count=5)
    assert torch.equal(ways[0], x)
    assert torch.equal(ways[-1], noise)
    torch.testing.assert_close(ways[1], 0.75 * x + 0.25 * noise)
    curved = paths(x, noise, count=5, schedule=Betas())
    torch.testing.assert_close(curved[-1], noise, atol=0.05, rtol=0)
    assert not torch.allclose(curved[1], ways[1], atol=0.05)
    with pytest.raises(ValueError, match="count >= 2"):
        paths(x, noise, count=1)


def test_the_plane_is_that_of_the_largest_variances() -> None:
    x = randn(500, 6) * torch.tensor([1.0, 9, 1, 1, 5, 1]) + 3
    mean, plane = leading_plane(x)
    torch.testing.assert_close(mean, x.mean(0))
    torch.testing.assert_close(plane @ plane.T, torch.eye(2), atol=1e-5, rtol=0)
    assert float(plane[0, 1].abs()) > 0.99
    assert float(plane[1, 4].abs()) > 0.98
    with pytest.raises(ValueError, match="a plane needs"):
        leading_plane(x[:, :1])


def test_the_set_to_draw_has_its_clusters_where_it_says() -> None:
    x, leaf = flower(6000, torch.Generator().manual_seed(0))
    for i in range(6):
        angle = math.pi * i / 3
        centre = torch.tensor([2 * math.cos(angle), 2 * math.sin(angle)])
        torch.testing.assert_close(x[leaf == i].mean(0), centre, atol=0.03, rtol=0)
        assert float(x[leaf == i].std(0).mean()) == pytest.approx(0.15, rel=0.05)
