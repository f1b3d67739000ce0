"""Couplings that begin late or pair a share of the batches: when they pair, and from where sampling then starts."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from scipy.stats import binom, kstest, norm
from torch import Tensor

from immiscible_diffusion.couplings import Assignment, Independent, Nearest
from immiscible_diffusion.couplings.cached import Cached
from immiscible_diffusion.couplings.scheduled import Mixed, Warmup, linear
from immiscible_diffusion.priors import Gaussian, StandardNormal
from immiscible_diffusion.registry import describe, make
from immiscible_diffusion.streams import stream
from immiscible_diffusion.types import Coupling, HasMemory, Prior

pytestmark = pytest.mark.medium


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed))


X = 2 * randn(16, 3)


def noise_of(couple: Any, step: int, seed: int = 0) -> Tensor:
    noise: Tensor = couple(X, generator=stream(seed, step, "noise"), step=step)
    return noise


def first_paired(couple: Any, steps: int) -> int:
    """Return the first step whose noise is assignment's; before it all, and after it none, must be independent."""
    paired = [torch.equal(noise_of(couple, i), noise_of(Assignment(), i)) for i in range(steps)]
    plain = [torch.equal(noise_of(couple, i), noise_of(Independent(), i)) for i in range(steps)]
    assert [not each for each in plain] == paired == sorted(paired)
    return paired.index(True)


@pytest.mark.parametrize("steps", [0, 1, 7])
def test_pairing_begins_at_its_step(steps: int) -> None:
    assert first_paired(Warmup(steps=steps), 12) == steps
    assert first_paired(Warmup(steps=steps + 1), 12) != steps
    assert first_paired(Mixed(Warmup(steps=steps), start=1, end=1), 12) == steps


@pytest.mark.parametrize(("step", "share"), [(0, 0.2), (500, 0.55), (1000, 0.9), (10**6, 0.9)])
@pytest.mark.slow
def test_the_share_of_paired_batches_runs_in_a_line(step: int, share: float) -> None:
    """The bounds are a binomial's at 1e-4."""
    couple, batches = Mixed(start=0.2, end=0.9, steps=1000), 400
    x = 5 * randn(64, 2)
    paired = sum(
        float(torch.linalg.vecdot(x, couple(x, generator=stream(i, 0, "noise"), step=step)).mean()) > 3
        for i in range(batches)
    )
    bounds = binom(batches, share).ppf([1e-4, 1 - 1e-4])
    assert bounds[0] <= paired <= bounds[1]
    wrong = binom(batches, share - 0.2).ppf([1e-4, 1 - 1e-4])
    assert not wrong[0] <= paired <= wrong[1]
    assert linear(step, start=0.2, end=0.9, steps=1000) == pytest.approx(share)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_share_of_none_or_all_is_either_alone_draw_for_draw(share: float) -> None:
    couple = Mixed(start=share, end=share)
    alone = Assignment() if share else Independent()
    assert all(torch.equal(noise_of(couple, i), noise_of(alone, i)) for i in range(20))
    assert not any(torch.equal(noise_of(Mixed(), i), noise_of(alone, i)) for i in range(5))


def test_the_mixture_of_permutations_is_standard_normal() -> None:
    """Which rows are paired must not depend on the noise: choosing the half with the longer noise is seen."""
    noise = torch.cat([noise_of(Mixed(), 0, seed) for seed in range(500)])
    assert kstest(noise.flatten().numpy(), norm.cdf).pvalue > 1e-4
    longer = noise[noise.norm(dim=1) > noise.norm(dim=1).median()]
    assert kstest(longer.flatten().numpy(), norm.cdf).pvalue < 1e-4


def covariance(prior: Gaussian) -> Tensor:
    directions, variances = prior.directions.double(), prior.variances.double() - float(prior.scale)
    return (
        float(prior.scale) * torch.eye(prior.mean.numel(), dtype=torch.float64)
        + (directions.T * variances) @ directions
    )


DATA = randn(60, 5) + torch.tensor([2.0, 1.0, 0.0, 0.0, -0.5])


@pytest.mark.parametrize("share", [0.3, 0.8])
@pytest.mark.slow
def test_the_start_of_a_mixture_has_the_moments_of_the_noise(share: float) -> None:
    """Five standard errors; the coupling's own start, the control, is beyond them."""
    couple, rows = Mixed(Nearest(k=8, cost="dot"), start=0.0, end=share, steps=10), 4000
    prior, paired = couple.prior([DATA]), Nearest(k=8, cost="dot").prior([DATA])
    assert isinstance(prior, Gaussian)
    assert isinstance(paired, Gaussian)
    noise = torch.cat([couple(DATA, generator=stream(i, 0, "noise"), step=10) for i in range(rows)]).double()
    # Rows of one batch are paired or not together: the error of their share is that of the number of batches.
    error = 5 * 0.5 / math.sqrt(rows) * float(paired.mean.norm())
    assert float((noise.mean(0) - prior.mean).norm()) < error
    assert float((noise.T.cov() - covariance(prior)).norm()) < 3 * error
    assert float((noise.mean(0) - paired.mean).norm()) > error
    expected = (
        share * covariance(paired) + (1 - share) * torch.eye(5) + share * (1 - share) * paired.mean.outer(paired.mean)
    )
    torch.testing.assert_close(covariance(prior), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(prior.mean, share * paired.mean)


def test_the_moments_of_a_mixture_hold_for_a_scale_and_for_few_directions() -> None:
    gaussian = Gaussian(torch.tensor([1.0, 0.0, 2.0, 0.0]), torch.eye(4)[:1], torch.tensor([3.0]), 0.8)
    prior = Mixed(Fixed(gaussian), start=0.25, end=0.25).prior([])
    assert isinstance(prior, Gaussian)
    expected = 0.25 * covariance(gaussian) + 0.75 * torch.eye(4) + 0.25 * 0.75 * gaussian.mean.outer(gaussian.mean)
    torch.testing.assert_close(covariance(prior), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(prior.directions @ prior.directions.T, torch.eye(2), rtol=0, atol=1e-6)


@dataclass(frozen=True)
class Fixed:
    """A coupling of a given start."""

    start: Any

    def __call__(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        return torch.zeros_like(x)

    def prior(self, data: Iterable[Tensor]) -> Prior:
        own: Prior = self.start
        return own


@dataclass(frozen=True)
class Odd:
    def sample(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        return torch.zeros(shape)


def test_the_start_is_the_couplings_own_where_it_is_alone() -> None:
    gaussian = Gaussian(torch.ones(2), torch.eye(2), torch.ones(2))
    assert Warmup(Fixed(gaussian)).prior([]) is gaussian
    assert Mixed(Fixed(gaussian), start=0.0, end=1.0).prior([]) is gaussian
    assert Mixed(Fixed(gaussian), start=1.0, end=0.0).prior([]) == StandardNormal()
    assert Mixed(Fixed(Odd()), end=1.0).prior([]) == Odd()
    assert Mixed().prior([]) == Warmup().prior([]) == StandardNormal()


@pytest.mark.parametrize("wrap", [Warmup, Mixed])
def test_what_is_wrapped_sees_the_whole_call_and_keeps_its_memory(wrap: Any) -> None:
    inner = Cached()
    couple = wrap(inner, steps=0) if wrap is Warmup else wrap(inner, 1.0, 1.0)
    assert isinstance(wrap(), HasMemory)
    assert couple.memory() == {}
    couple(X, generator=stream(0, 0, "noise"), index=torch.arange(16), step=3)
    assert couple.memory()["seeds"].shape == (1, 16)
    kept = {name: tensor.clone() for name, tensor in couple.memory().items()}
    couple.remember({})
    assert inner.memory() == {}
    couple.remember(kept)
    assert torch.equal(inner.memory()["seeds"], kept["seeds"])
    plain = wrap(Assignment(), steps=5)
    plain.remember({})
    assert plain.memory() == {}
    seen: list[Any] = []

    @dataclass(frozen=True)
    class Watching(Fixed):
        def __call__(self, *call: Any, **options: Any) -> Tensor:
            seen.append((*call, options))
            return torch.zeros_like(X)

    cond, index, source = torch.arange(16), torch.arange(16), generator(0)
    wrap(Watching(None), **({"steps": 0} if wrap is Warmup else {"start": 1.0, "end": 1.0}))(
        X, cond=cond, generator=source, index=index, step=7
    )
    assert seen == [(X, {"cond": cond, "generator": source, "index": index, "step": 7})]


@pytest.mark.parametrize(
    "choice",
    [
        {"use": "warmup", "coupling": {"use": "nearest", "k": 4, "cost": "dot"}, "steps": 100},
        {"use": "mixed", "coupling": {"use": "assignment", "cost": "l1"}, "start": 0.1, "end": 0.7, "steps": 9},
    ],
)
def test_files_can_nest_them(choice: dict[str, Any]) -> None:
    couple = make("coupling", choice)
    assert isinstance(make("coupling", choice), Coupling)
    assert describe("coupling", couple) == {**choice, "coupling": describe("coupling", couple.coupling)}
    assert make("coupling", describe("coupling", couple)) == couple
    assert make("coupling", choice["use"]).coupling == Assignment()


FAILURES: dict[str, tuple[Callable[[], object], str]] = {
    "coupling": (lambda: Warmup("assignment"), r"coupling is 'assignment'; it must be a coupling"),  # type: ignore[arg-type]
    "mixed coupling": (lambda: Mixed(None), r"coupling is None"),  # type: ignore[arg-type]
    "steps": (lambda: Warmup(steps=-1), r"steps is -1; it must be a whole number >= 0"),
    "half a step": (lambda: Mixed(steps=0.5), r"steps is 0.5"),  # type: ignore[arg-type]
    "start": (lambda: Mixed(start=1.1), r"start is 1.1; it must be a number >= 0 and <= 1"),
    "end": (lambda: Mixed(end=math.nan), r"end is nan"),
    "nan in the warm-up": (lambda: Warmup(steps=5)(X * math.nan), r"x holds NaN or infinity, first in row 0"),
    "nan unpaired": (lambda: Mixed(start=0.0, end=0.0)(X * math.inf), r"x holds NaN or infinity, first in row 0"),
    "start of another kind": (lambda: Mixed(Fixed(Odd())).prior([]), r"Odd has no mixture with the normal"),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("failure", FAILURES)
def test_misuse_is_named(failure: str) -> None:
    call, message = FAILURES[failure]
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("couple", [Warmup(steps=3), Mixed(start=0.0, end=1.0, steps=3)])
def test_a_loop_that_gives_no_step_is_told(couple: Any) -> None:
    x = torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
    with pytest.warns(UserWarning, match=r"counts as step 0 for ever: call it as couple\(x, step=step\)"):
        couple(x)
    couple(x, step=0)
    for same_at_every_step in (Warmup(steps=0), Mixed(start=0.5, end=0.5)):
        same_at_every_step(x)
