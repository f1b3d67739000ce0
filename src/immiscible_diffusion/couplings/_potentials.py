"""Potentials of semidiscrete optimal transport: the mathematics of ``semidiscrete``.

One number for each datum, its potential g_k, splits noise space into cells: noise z belongs to the datum of largest
g_k + <z, x_k>. With the right potentials every cell has mass 1 / n, and the map is the optimal one for squared
distance (Mousavi-Hosseini et al., arXiv:2509.25519).
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from immiscible_diffusion.checks import check_finite, check_number, check_whole
from immiscible_diffusion.couplings._quadratic_potentials import quadratic_potentials
from immiscible_diffusion.streams import stream
from immiscible_diffusion.tensors import batch_rows, full_precision, normal
from immiscible_diffusion.types import Float, Int

__all__ = [
    "Potentials",
    "ascend",
    "assign_data",
    "fit_dual",
    "measured_at",
    "noises_a_step",
    "steps_left",
    "unevenness",
]

_CHUNK = 4096
"""Data compared at once: on a CPU their scores with a batch of noises fit in the L2 cache."""
_DRAW = 512
_AHEAD = 8.0
"""The quadratic potentials that a fit starts from are worth about so many noises a datum."""
_GROWTH = 1.15
"""The cells are measured each time that the noises a datum, with those eight, are so many times those of before."""


@torch.no_grad()
@full_precision
def assign_data(
    noise: Float[Tensor, "b *dims"], data: Float[Tensor, "n *dims"], dual: Float[Tensor, " n"]
) -> Int[Tensor, " b"]:
    """Return the index of the datum that each noise falls on, argmax over k of g_k + <z, x_k>, (b,).

    Cost: O(b n d); memory b times 4,096 on a CPU, b n elsewhere, and no copy of the data.

    Raises:
        ValueError: shapes that do not fit; NaN or infinity on the CPU.

    >>> assign_data(torch.tensor([[-1.0], [0.4]]), torch.tensor([[0.0], [1.0]]), torch.tensor([0.0, -0.5])).tolist()
    [0, 0]
    """
    rows, data = batch_rows(noise, "noise").float(), batch_rows(data, "data")
    if rows.shape[1] != data.shape[1] or dual.shape != (len(data),):
        shapes = [tuple(tensor.shape) for tensor in (noise, data, dual)]
        raise ValueError(f"noise (b, *dims), data (n, *dims) and potentials (n,) do not fit: there came {shapes}")
    best = torch.full((len(rows),), -math.inf, device=rows.device, dtype=torch.float32)
    index = torch.zeros(len(rows), dtype=torch.long, device=rows.device)
    chunk = _CHUNK if rows.device.type == "cpu" else len(data)
    for i in range(0, len(data), chunk):
        score = torch.addmm(dual[i : i + chunk].float(), rows, data[i : i + chunk].float().T)
        value, k = score.max(1)
        index = torch.where(value > best, k + i, index)
        best = torch.maximum(value, best)
    if rows.device.type == "cpu" and not bool(best.isfinite().all()):
        check_finite(noise=noise, data=data, dual=dual)
    return index


class Potentials(NamedTuple):
    """A state of the fit: the potentials of mean 0, (n,), float32, and how many steps were taken."""

    dual: Tensor
    steps: int


@torch.no_grad()
def ascend(data: Float[Tensor, "n *dims"], start: Potentials | None = None, *, seed: int = 0) -> Iterator[Potentials]:
    """Yield the potentials at the start and after every step of a stochastic ascent, for ever.

    The potentials minimise E[max_k (g_k + <z, x_k>)] - mean(g), which is convex; the gradient at k is the mass of cell
    k less 1 / n. The start is the best quadratic, ``quadratic_potentials``. Then each noise of a batch that falls on a
    datum lowers its potential by c / (h + 8), with h the noises a datum so far (Robbins and Monro). The scale c is the
    spread of the data over sqrt(2 ln n), by which the best of n such scores leads. So unevenness falls as about
    1.3 / (h + 8), near the least that so many noises a datum can tell, and the fit may go on from any state as if it
    had not been cut: step i draws from ``stream(seed, i, "noise")`` alone.

    Args:
        data: the data set in model space, on the device that is to do the work.
        start: a state that this yielded before, for the same data and seed.
        seed: names the noises.

    Cost: a step is O(b n d) for b = ``noises_a_step(n)``; memory of the data and of b times 4,096.

    Raises:
        ValueError: no floating data, or NaN or infinity.

    >>> data = torch.tensor([[0.0], [1.0]])
    >>> *_, last = zip(range(2000), ascend(data))
    >>> bool((last[1].dual[0] - last[1].dual[1]).abs() < 0.05)
    True
    """
    rows = batch_rows(data, "data").float()
    check_finite(data=rows)
    n, d = rows.shape
    spread = float((rows - rows.mean(0)).square().sum(1).mean().sqrt())
    scale, batch = spread / math.sqrt(2 * math.log(max(n, 2))), noises_a_step(n)

    def owners(dual: Tensor, step: int) -> Tensor:
        return assign_data(normal((batch, d), stream(seed, step, "noise", rows.device), rows.device), rows, dual)

    dual, steps = start or Potentials(quadratic_potentials(rows, owners, scale), 0)
    dual = dual.to(rows.device)
    yield Potentials(dual, steps)
    while True:
        change = torch.bincount(owners(dual, steps), minlength=n).to(dual) - batch / n
        steps += 1
        dual = dual - scale / (steps * batch / n + _AHEAD) * change
        yield Potentials(dual, steps)


def noises_a_step(n: int) -> int:
    """Return how many noises a step of the fit draws: an eighth of the data, 16 to 512."""
    return max(16, min(_DRAW, n // 8))


def measured_at(n: int, steps: int) -> bool:
    """Return whether a fit to n data is measured after so many steps: at the start, then at a growing distance."""
    a_step, place = noises_a_step(n) / n / _AHEAD, 0
    while (due := math.ceil((_GROWTH**place - 1) / a_step)) < steps:
        place += 1
    return due == steps


def steps_left(n: int, steps: int, *, left: float, wanted: float) -> int:
    """Return about how many more steps a fit takes from the unevenness ``left`` down to the one ``wanted``."""
    a_step = noises_a_step(n) / n
    return max(0, math.ceil((steps + _AHEAD / a_step) * (left / wanted - 1)))


def fit_dual(data: Float[Tensor, "n *dims"], *, noises: float = 30, seed: int = 0) -> Float[Tensor, " n"]:
    """Return the potentials of the data, (n,), float32, of mean 0, fitted with a number of noises; see ``ascend``.

    Args:
        data: the data set in model space.
        noises: how many for each datum, a positive number; ``unevenness`` is then about 1.3 / (``noises`` + 8).
        seed: names the noises.

    Raises:
        ValueError: as ``ascend``, or a number that is not positive.

    >>> data = torch.tensor([[0.0], [1.0]])
    >>> dual = fit_dual(data, noises=1000)
    >>> bool((dual[0] - dual[1]).abs() < 0.1)
    True
    """
    check_number(noises=noises, above=0)
    n = len(batch_rows(data, "data"))
    last = math.ceil(noises * n / noises_a_step(n))
    return next(state.dual for state in ascend(data, seed=seed) if state.steps >= last)


@torch.no_grad()
def unevenness(
    data: Float[Tensor, "n *dims"],
    dual: Float[Tensor, " n"],
    *,
    draws: int,
    generator: torch.Generator | None = None,
) -> float:
    """Return the chi^2 distance of the cells' masses from 1 / n, n sum_k p_k^2 - 1, without bias.

    The paper stops at 0.05. The weights of the data under ``semidiscrete`` are off 1 / n by at most half its square
    root in total variation. The estimate's own standard error is about sqrt(2 n) / draws at 0.

    Args:
        data: as in ``ascend``.
        dual: the potentials.
        draws: how many noises to count, at least 2; 6 sqrt(n) / u tells u from 0.
        generator: where noise comes from; the global one if None.

    >>> data, dual = torch.tensor([[0.0], [1.0]]), torch.zeros(2)
    >>> bool(unevenness(data, dual, draws=1000, generator=torch.Generator().manual_seed(0)) < 0.1)
    True
    """
    check_whole(draws=draws, at_least=2)
    rows = batch_rows(data, "data").float()
    n, d = rows.shape
    count = torch.zeros(n, dtype=torch.long, device=rows.device)
    for i in range(0, draws, _DRAW):
        noise = normal((min(_DRAW, draws - i), d), generator, rows.device)
        count += torch.bincount(assign_data(noise, rows, dual), minlength=n)
    pairs = (count * (count - 1)).sum().double() / (draws * (draws - 1))
    return float(n * pairs - 1)
