"""The flipped pairing: the coupling's noise with its sign turned, and a start that follows."""

from typing import Any

import pytest
import torch
from scipy.stats import kstest, norm
from torch import Tensor

from immiscible_diffusion.couplings import Assignment, Cached, Flipped, Independent, Nearest
from immiscible_diffusion.priors import Gaussian, StandardNormal
from immiscible_diffusion.registry import describe, make
from immiscible_diffusion.streams import stream

pytestmark = pytest.mark.medium


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


X = 2 * randn(64, 8)


def noise_of(couple: Any, x: Tensor = X, step: int = 0, **options: Any) -> Tensor:
    noise: Tensor = couple(x, generator=stream(0, step, "noise"), **options)
    return noise


@pytest.mark.parametrize("inner", [Assignment(), Nearest(8), Independent()])
def test_it_is_the_negative_of_what_it_wraps_draw_for_draw(inner: Any) -> None:
    assert torch.equal(noise_of(Flipped(inner)), -noise_of(inner))
    assert not torch.equal(noise_of(Flipped(inner)), noise_of(inner))


@pytest.mark.slow
def test_the_assigned_noise_is_as_far_as_assignment_is_near() -> None:
    """Mean inner products of 400 batches; independent noise has none."""
    means = {}
    for name, couple in {"near": Assignment(), "far": Flipped(), "plain": Independent()}.items():
        dots = torch.stack([torch.linalg.vecdot(X, noise_of(couple, step=i)).mean() for i in range(400)])
        means[name] = float(dots.mean())
    assert means["far"] == -means["near"]
    assert means["near"] > 2
    assert abs(means["plain"]) < 0.2


def test_its_noise_is_standard_normal() -> None:
    """A flip of half the noises alone, those of positive sum, would not be: the control."""
    noise = torch.cat([noise_of(Flipped(), step=i) for i in range(200)])
    assert kstest(noise.flatten().numpy(), norm.cdf).pvalue > 1e-4
    some = torch.where(noise.sum(1, keepdim=True) > 0, -noise, noise)
    assert kstest(some.flatten().numpy(), norm.cdf).pvalue < 1e-4


@pytest.mark.slow
def test_the_start_of_a_permutation_is_the_standard_normal_and_of_a_selection_its_mirror() -> None:
    """Measured: the mean of flipped noise is the prior's mean, and not the unflipped prior's."""
    assert Flipped().prior(iter([X])) == StandardNormal()
    data = X + 3
    prior, unflipped = Flipped(Nearest(64, "dot")).prior(iter([data])), Nearest(64, "dot").prior(iter([data]))
    assert isinstance(prior, Gaussian)
    assert isinstance(unflipped, Gaussian)
    measured = torch.stack([noise_of(Flipped(Nearest(64, "dot")), data, i).mean(0) for i in range(500)]).mean(0)
    torch.testing.assert_close(prior.mean, measured, rtol=0, atol=0.03)  # 6 standard errors of 32,000 rows
    assert not torch.allclose(unflipped.mean, measured, rtol=0, atol=0.03)
    assert torch.equal(prior.variances, unflipped.variances)


def test_memory_is_that_of_the_coupling() -> None:
    first, second = Flipped(Cached()), Cached()
    index = torch.arange(len(X))
    for step in range(3):
        flipped, plain = (noise_of(couple, step=step, index=index) for couple in (first, second))
        assert torch.equal(flipped, -plain)
    assert all(torch.equal(first.memory()[key], value) for key, value in second.memory().items())
    fresh = Flipped(Cached())
    fresh.remember(first.memory())
    assert torch.equal(noise_of(fresh, step=3, index=index), noise_of(first, step=3, index=index))
    assert Flipped().memory() == {}


def test_it_is_made_from_a_file() -> None:
    couple = make("coupling", {"use": "flipped", "coupling": {"use": "assignment", "cost": "l1"}})
    assert couple == Flipped(Assignment("l1"))
    assert make("coupling", describe("coupling", couple)) == couple


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("bad", [None, "assignment"])
def test_what_is_no_coupling_is_refused(bad: Any) -> None:
    with pytest.raises(ValueError, match="it must be a coupling"):
        Flipped(bad)
