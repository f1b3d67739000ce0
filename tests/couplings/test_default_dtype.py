"""Noise depends on the generator alone, and not on torch's default dtype."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from immiscible_diffusion.couplings import (
    Cells,
    Joint,
    Mixed,
    Nearest,
    Oversampled,
    Viewed,
    fit_dual,
    measured_prior,
    nearest,
    oversample,
)
from immiscible_diffusion.couplings.solvers.sparse import solve_sparse
from immiscible_diffusion.priors import StandardNormal
from immiscible_diffusion.registry import make
from immiscible_diffusion.schedules import uniform
from immiscible_diffusion.streams import stream
from immiscible_diffusion.tensors import normal
from pairing import PAIRING

pytestmark = pytest.mark.medium

X = torch.randn(24, 6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
MASK = (torch.arange(6) <= torch.arange(24)[:, None] % 6).unsqueeze(2)
INDEX = torch.arange(24)


def registered(name: str, **options: Any) -> Tensor:
    coupling: Any = make("coupling", name)
    return coupling(X, cond=INDEX % 2, generator=stream(0, 0, "noise"), index=INDEX, step=3, **options)  # type: ignore[no-any-return]


def semidiscrete() -> Tensor:
    dual = fit_dual(X, noises=20)
    return torch.cat([dual, Cells(X, dual, flip=True).choose(24, stream(0, 1, "noise")).noise.flatten()])


def prior(coupling: Any) -> Tensor:
    start = coupling.prior(iter([X, X + 1]))
    return torch.cat([start.sample((3, 6, 4), stream(0, 0, "sample")).flatten(), start.mean.flatten().float()])


CALLS: dict[str, Callable[[], Tensor]] = {
    **{name: lambda name=name: registered(name) for name in PAIRING},  # type: ignore[misc]
    **{f"{name}, masked": lambda name=name: registered(name, mask=MASK) for name in PAIRING},  # type: ignore[misc]
    **{
        f"nearest by {cost}": lambda cost=cost: nearest(X, 4, cost=cost, generator=stream(0, 0, "noise"))  # type: ignore[misc]
        for cost in ("l2", "dot", "l1", "cosine")
    },
    "oversampled in the span": lambda: oversample(X[:4], 32, generator=stream(0, 0, "noise")),
    "joint": lambda: Joint(seed=1)(X, step=1),
    "mixed": lambda: Mixed(start=0.3, end=0.3)(X, generator=stream(0, 2, "noise")),
    "viewed, pooled": lambda: Viewed("pooled", size=2)(X.reshape(6, 4, 6, 4), generator=stream(0, 0, "noise")),
    "semidiscrete": semidiscrete,
    "the start of nearest": lambda: prior(Nearest()),
    "the start of oversampled": lambda: prior(Oversampled(times=4)),
    "a measured start": lambda: measured_prior(Nearest(), iter([X, X])).mean,
    "standard normal": lambda: StandardNormal().sample((3, 2), stream(0, 0, "sample")),
    "uniform times": lambda: uniform(9, stream(0, 0, "time"), torch.device("cpu")),
    "normal": lambda: normal((9, 4), stream(0, 0, "noise"), torch.device("cpu")),
    "large assignments": lambda: torch.from_numpy(
        solve_sparse(torch.randn(300, 300, generator=torch.Generator().manual_seed(0), dtype=torch.float32))
    ),
}


@pytest.fixture(params=[torch.bfloat16, torch.float16, torch.float64], ids=str)
def default(request: pytest.FixtureRequest) -> Iterator[torch.dtype]:
    yield request.param
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("name", CALLS)
def test_noise_does_not_depend_on_the_default_dtype(name: str, default: torch.dtype) -> None:
    expected = CALLS[name]()
    torch.set_default_dtype(default)
    drawn = CALLS[name]()
    assert drawn.dtype == expected.dtype
    assert torch.equal(drawn, expected)


def test_code_that_leaves_the_dtype_open_fails_the_check(default: torch.dtype) -> None:
    torch.set_default_dtype(default)
    assert torch.randn(3).dtype == default
    assert not torch.equal(
        torch.randn(40, generator=stream(0, 0, "noise")).float(),
        normal((40,), stream(0, 0, "noise"), torch.device("cpu")),
    )
