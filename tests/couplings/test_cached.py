"""Remembered assignment: what it keeps, that its cost only falls, and that a saved run goes on as it would have."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from scipy.stats import kstest, norm
from torch import Tensor

from immiscible_diffusion.couplings import Assignment, assign
from immiscible_diffusion.couplings._seeded_noise import normal_rows
from immiscible_diffusion.couplings.cached import Cached, rematch
from immiscible_diffusion.priors import StandardNormal
from immiscible_diffusion.streams import stream
from immiscible_diffusion.types import Coupling, HasMemory

pytestmark = pytest.mark.medium


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed))


def distance(x: Tensor, noise: Tensor) -> float:
    return float((x.double() - noise.double()).flatten(1).norm(dim=1).sum())


N, D, B = 256, 6, 32
DATA = 1.5 * randn(N, D)


def epochs(couple: Any, count: int, *, start: int = 0, data: Tensor = DATA) -> list[Tensor]:
    """Return the noise of every row, (n, d), for each epoch of shuffled batches."""
    noises = []
    for epoch in range(start, start + count):
        order, noise = torch.randperm(len(data), generator=generator(epoch)), torch.empty_like(data)
        for i in range(0, len(data), B):
            rows, step = order[i : i + B], epoch * len(data) + i
            noise[rows] = couple(data[rows], generator=stream(0, step, "noise"), index=rows, step=step)
        noises.append(noise)
    return noises


def totals(couple: Any, count: int) -> list[float]:
    """Return the total distance of the first cache's noise from its data after each epoch, all batches written back."""
    found = []
    for epoch in range(count):
        epochs(couple, 1, start=epoch)
        found.append(distance(DATA, normal_rows(couple.memory()["seeds"][0], D)))
    return found


def distinct(seeds: Tensor) -> int:
    return len(set(seeds.flatten().tolist()))


def never_rises(values: list[float]) -> bool:
    return all(after <= before + 1e-4 for before, after in pairwise(values))


@pytest.mark.slow
def test_the_total_cost_never_rises_and_ends_below_that_of_any_batch() -> None:
    """The optimum over the whole data set bounds it from below; 30 epochs end at 1.027 times it, seen."""
    couple = Cached()
    costs = totals(couple, 30)
    noise = normal_rows(couple.memory()["seeds"][0], D)
    fresh = [distance(DATA, drawn) for drawn in epochs(Assignment(), 30)]
    optimum = distance(DATA, assign(DATA, noise))
    assert never_rises(costs)
    assert optimum <= costs[-1] < 1.05 * optimum
    assert costs[-1] < 0.85 * min(fresh)
    assert not never_rises(fresh)


def test_a_cost_that_forgets_to_write_back_does_not_converge() -> None:
    class Forgetful:
        """Pairs remembered noise anew and leaves the memory as it was."""

        def __init__(self) -> None:
            self.inner = Cached()

        def __call__(self, x: Tensor, *args: Any, index: Tensor, **options: Any) -> Tensor:
            kept = self.inner.memory().get("seeds", torch.zeros(1, 0)).clone()
            noise = self.inner(x, *args, index=index, **options)
            self.memory()["seeds"][:, : kept.shape[1]] = kept
            return noise

        def memory(self) -> dict[str, Tensor]:
            return self.inner.memory()

    costs = totals(Forgetful(), 6)
    assert costs[-1] > 1.2 * totals(Cached(), 6)[-1]


@pytest.mark.parametrize("caches", [1, 3])
def test_the_seeds_are_only_ever_permuted_within_their_cache(caches: int) -> None:
    couple = Cached(caches=caches)
    epochs(couple, 1)
    before = couple.memory()["seeds"].clone()
    assert before.shape == (caches, N)
    assert before.dtype == torch.int64
    assert distinct(before) == caches * N
    epochs(couple, 5, start=1)
    after = couple.memory()["seeds"]
    assert torch.equal(after.sort(1).values, before.sort(1).values)
    assert not torch.equal(after, before)


def test_the_noise_is_that_of_the_seeds_that_are_kept() -> None:
    couple, rows = Cached(), torch.tensor([9, 2, 4, 7])
    noise = couple(DATA[rows], generator=generator(0), index=rows)
    seeds = couple.memory()["seeds"][0]
    assert seeds.shape == (10,)
    assert torch.equal(noise, normal_rows(seeds[rows], D))
    assert torch.equal(noise, assign(DATA[rows], noise[[2, 0, 3, 1]]))
    again = couple(DATA[rows.flip(0)], generator=generator(1), index=rows.flip(0))
    assert torch.equal(again, noise.flip(0))


@pytest.mark.slow
def test_remembered_noise_is_standard_normal_over_all_rows_and_caches() -> None:
    """With the data far from the origin in one direction, any selection of noise would lean that way."""
    couple, data = Cached(caches=4), randn(4000, 3) + torch.tensor([3.0, 0.0, 0.0])
    for epoch in range(6):
        paired = epochs(couple, 1, start=epoch, data=data)[0]
    kept = normal_rows(couple.memory()["seeds"].flatten(), 3)
    for noise in (kept, kept[:, 0]):
        assert kstest(noise.flatten().numpy(), norm.cdf).pvalue > 1e-4
        assert kstest(noise.flatten().numpy() + 0.05, norm.cdf).pvalue < 1e-4
    assert float(torch.linalg.vecdot(paired, data).mean()) > 1


def test_every_cache_is_used_and_one_at_a_time() -> None:
    couple, rows = Cached(caches=4), torch.arange(B)
    seen = {couple(DATA[:B], generator=stream(0, i, "noise"), index=rows).numpy().tobytes() for i in range(40)}
    assert len(seen) == 4
    for noise in map(bytes, seen):
        assert any(noise == normal_rows(seeds, D).numpy().tobytes() for seeds in couple.memory()["seeds"])


def test_a_row_that_comes_twice_gets_two_noises_and_remembers_the_first() -> None:
    couple, rows = Cached(), torch.tensor([3, 1, 3, 0, 1, 3])
    couple(DATA[:4], generator=generator(0), index=torch.arange(4))
    before = couple.memory()["seeds"].clone()
    noise = couple(DATA[rows], generator=generator(1), index=rows)
    after = couple.memory()["seeds"]
    assert len(set(map(tuple, noise.tolist()))) == 6
    assert torch.equal(after.sort().values, before.sort().values)
    assert torch.equal(noise[[0, 1, 3]], normal_rows(after[0, [3, 1, 0]], D))
    fresh = noise[[2, 4, 5]]
    assert not (fresh[:, None] == normal_rows(before[0], D)).all(-1).any()
    assert torch.equal(fresh, assign(DATA[[3, 1, 3]], fresh.flip(0)))


def test_a_saved_run_goes_on_as_it_would_have() -> None:
    couple, resumed, forgot = Cached(caches=2), Cached(caches=2), Cached(caches=2)
    epochs(couple, 3)
    resumed.remember({name: tensor.clone() for name, tensor in couple.memory().items()})
    expected = epochs(couple, 2, start=3)
    assert all(map(torch.equal, epochs(resumed, 2, start=3), expected))
    assert torch.equal(resumed.memory()["seeds"], couple.memory()["seeds"])
    assert not any(map(torch.equal, epochs(forgot, 2, start=3), expected))
    resumed.remember({})
    assert resumed.memory() == {}
    assert all(map(torch.equal, epochs(resumed, 2), epochs(Cached(caches=2), 2)))


def test_new_rows_leave_what_is_remembered() -> None:
    couple = Cached()
    couple(DATA[:8], generator=generator(0), index=torch.arange(8))
    before = couple.memory()["seeds"].clone()
    couple(DATA[8:20], generator=generator(1), index=torch.arange(8, 20))
    after = couple.memory()["seeds"]
    assert torch.equal(after[:, :8], before)
    assert after.shape == (1, 20)
    assert distinct(after) == 20


def test_without_row_numbers_it_is_plain_assignment_and_remembers_nothing() -> None:
    couple = Cached(cost="dot", precision="bf16")
    expected = assign(DATA, torch.randn(N, D, generator=generator(3)), cost="dot", precision="bf16")
    assert torch.equal(couple(DATA, generator=generator(3)), expected)
    assert couple.memory() == {}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_noise_is_like_x(dtype: torch.dtype) -> None:
    x = randn(5, 3, 4, 4).to(dtype).requires_grad_()
    noise = Cached()(x, generator=generator(0), index=torch.arange(5, dtype=torch.int32))
    assert (noise.shape, noise.dtype, noise.requires_grad) == (x.shape, dtype, False)
    assert dtype != torch.float64 or not torch.equal(noise, noise.float().double())


def test_it_is_a_coupling_that_remembers_and_starts_from_the_standard_normal() -> None:
    assert isinstance(Cached(), Coupling)
    assert isinstance(Cached(), HasMemory)
    assert Cached().prior([DATA]) == StandardNormal()
    assert Cached() == Cached()
    assert repr(Cached()) == "Cached(caches=1, cost='l2', precision='fp32')"


ROWS = torch.arange(4)
FAILURES: dict[str, tuple[Callable[[], object], str]] = {
    "shape": (
        lambda: Cached()(DATA[:4], index=ROWS[:3]),
        r"index has dtype torch.int64 and shape \(3,\); it must .* \(4,\)",
    ),
    "float": (lambda: Cached()(DATA[:4], index=ROWS.float()), r"index has dtype torch.float32"),
    "negative": (lambda: Cached()(DATA[:4], index=ROWS - 1), r"index holds -1; row numbers must be >= 0"),
    "nan": (lambda: Cached()(DATA[:4] * torch.nan, index=ROWS), r"x holds NaN or infinity, first in row 0"),
    "caches": (lambda: Cached(caches=0), r"caches is 0; it must be a whole number >= 1"),
    "caches by halves": (lambda: Cached(caches=1.5), r"caches is 1.5;"),  # type: ignore[arg-type]
    "cost": (lambda: Cached(cost="l3"), r"no cost named 'l3'"),  # type: ignore[arg-type]
    "precision": (lambda: Cached(precision="fp8"), r"no precision named 'fp8'"),  # type: ignore[arg-type]
    "memory": (lambda: Cached().remember({"noise": DATA}), r"is seeds \(caches, n\), int64; there came {'noise'"),
    "memory dtype": (lambda: Cached().remember({"seeds": DATA}), r"there came {'seeds': \(\(256, 6\), torch.float32"),
    "memory caches": (
        lambda: Cached(caches=2).remember({"seeds": ROWS[None]}),
        r"there came 1 caches; this coupling has caches = 2",
    ),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("failure", FAILURES)
def test_misuse_is_named(failure: str) -> None:
    call, message = FAILURES[failure]
    with pytest.raises(ValueError, match=message):
        call()


def test_rematch_pairs_by_the_cost_that_was_asked_for() -> None:
    seeds = torch.arange(B)
    noise, kept = rematch(DATA[:B], seeds, cost="l1")
    assert torch.equal(noise, assign(DATA[:B], normal_rows(seeds, D), cost="l1"))
    assert torch.equal(noise, normal_rows(kept, D))
    assert not torch.equal(noise, rematch(DATA[:B], seeds)[0])
