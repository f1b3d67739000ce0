"""Nearest of k against the law it claims: k explicit noises of which one is kept."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy.stats import ks_2samp
from torch import Tensor

from immiscible_diffusion.couplings import nearest

COSTS = ["l2", "dot", "cosine", "l1"]
MAX_OF_NORMALS = {2: 0.566, 4: 1.032, 8: 1.424, 16: 1.765, 32: 2.068, 64: 2.345}


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed))


def reference(x: Tensor, k: int, cost: str, seed: int = 1) -> Tensor:
    """Return the best of k noises for each row of x, each drawn in full."""
    source, kept, least = generator(seed), torch.zeros_like(x), torch.full((len(x),), torch.inf)
    for _ in range(k):
        noise = torch.randn(x.shape, generator=source)
        product = torch.linalg.vecdot(x, noise)
        value = {
            "l2": lambda noise=noise: (x - noise).norm(dim=1),
            "l1": lambda noise=noise: (x - noise).abs().sum(1),
            "dot": lambda product=product: -product,
            "cosine": lambda noise=noise, product=product: -product / noise.norm(dim=1),
        }[cost]()
        kept, least = torch.where((value < least)[:, None], noise, kept), torch.minimum(value, least)
    return kept


def split(x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Return the noise's part along x / |x|, (b,), and the rest, (b, d); a row of zeros counts as the first axis."""
    unit = torch.where(x.norm(dim=1, keepdim=True) > 0, x, torch.eye(x.shape[1])[0])
    unit = unit / unit.norm(dim=1, keepdim=True)
    along = torch.linalg.vecdot(unit, noise)
    return along, noise - along[:, None] * unit


def p_value(x: Tensor, noise: Tensor, other: Tensor) -> float:
    """Return the lesser p of two-sample tests of the projection on x and of the norm."""
    pairs = [(split(x, each)[0], each.norm(dim=1)) for each in (noise, other)]
    return min(float(ks_2samp(a.numpy(), b.numpy()).pvalue) for a, b in zip(*pairs, strict=True))


def repeated(d: int, rows: int, scale: float = 1.0) -> Tensor:
    return (scale * randn(1, d, seed=d)).expand(rows, d)


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize(("d", "k", "rows"), [(1, 4, 4000), (2, 8, 4000), (3, 64, 2000), (64, 8, 4000), (3072, 8, 500)])
@pytest.mark.parametrize("scale", [1.0, 0.0])
def test_the_law_is_that_of_k_explicit_noises(d: int, k: int, rows: int, scale: float, cost: Any) -> None:
    x = repeated(d, rows, scale)
    assert p_value(x, nearest(x, k, cost=cost, generator=generator(2)), reference(x, k, cost)) > 1e-4


def flipped(x: Tensor, noise: Tensor) -> Tensor:
    along, rest = split(x, noise)
    return rest - (noise - rest)


def not_rescaled(x: Tensor, noise: Tensor) -> Tensor:
    _, rest = split(x, noise)
    _, fresh = split(x, randn(*x.shape, seed=5))
    return noise - rest + fresh


BROKEN: dict[str, Callable[[Tensor, int, Any], Tensor]] = {
    "twice the k": lambda x, k, cost: nearest(x, 2 * k, cost=cost, generator=generator(2)),
    "half the k": lambda x, k, cost: nearest(x, k // 2, cost=cost, generator=generator(2)),
    "flipped": lambda x, k, cost: flipped(x, nearest(x, k, cost=cost, generator=generator(2))),
    "not rescaled": lambda x, k, cost: not_rescaled(x, nearest(x, k, cost=cost, generator=generator(2))),
    "independent": lambda x, k, cost: randn(*x.shape, seed=2),
    "another cost": lambda x, k, cost: nearest(x, k, cost="dot" if cost == "l2" else "l2", generator=generator(2)),
}


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("law", BROKEN)
def test_a_broken_law_fails_the_check_of_the_law(law: str, cost: Any) -> None:
    if law == "not rescaled" and cost == "dot":
        pytest.skip("dot leaves the rest of the noise as it was drawn")
    x = repeated(8, 6000)
    assert p_value(x, BROKEN[law](x, 8, cost), reference(x, 8, cost)) < 1e-4
