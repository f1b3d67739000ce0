"""Sampling steps that methods share: from one point of the path of noise to the next."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from immiscible_diffusion.tensors import normal_like
from immiscible_diffusion.types import Generators

__all__ = ["Estimate", "Node", "Sampler", "check_sampler", "fresh_like", "solve"]

Sampler = Literal["ddim", "heun", "dpmpp"]

Estimate = Callable[[Tensor, float], tuple[Tensor, Tensor]]
"""Maps x_t (n, *dims) at a node's time to the estimated data and noise, each (n, *dims)."""


class Node(NamedTuple):
    """One point of the path: x_t = alpha x + sigma noise at time t."""

    t: float
    alpha: float
    sigma: float


def solve(
    estimate: Estimate,
    x_t: Tensor,
    nodes: Sequence[Node],
    *,
    sampler: Sampler,
    eta: float = 0.0,
    churn: float = 0.0,
    generator: Generators = None,
) -> Tensor:
    """Return data, (n, *dims), by following the path from x_t at the first node to the last, which is pure data.

    Args:
        estimate: what the net makes of x_t.
        x_t: where to start.
        nodes: the points of the path, of falling noise; the last has sigma = 0.
        sampler: how a step is made. ``ddim`` keeps the estimates of data and noise (Song et al., arXiv:2010.02502,
            eq. 12); it is Euler's step in sigma / alpha, and on the straight path in t. ``heun`` averages the slope at
            both ends (Karras et al., arXiv:2206.00364, Alg. 1) and asks the net twice a step, but for the last.
            ``dpmpp`` continues the estimate of the data from the step before (DPM-Solver++(2M), Lu et al.,
            arXiv:2211.01095, Alg. 2).
        eta: the share of DDPM's fresh noise in a step of ``ddim``, in [0, 1].
        churn: S_churn of Karras et al., Alg. 2: noise added before a step, over the whole range of sigma, with
            S_noise = 1; alpha must be 1.
        generator: draws the fresh noise.
    """
    gamma = min(churn / (len(nodes) - 1), math.sqrt(2) - 1)
    before: tuple[Node, Tensor] | None = None
    for start, end in pairwise(nodes):
        here = start
        if gamma:
            here = Node(start.t * (1 + gamma), 1.0, start.sigma * (1 + gamma))
            x_t = x_t + math.sqrt(here.sigma**2 - start.sigma**2) * fresh_like(x_t, generator)
        x, eps = estimate(x_t, here.t)
        if end.sigma == 0:  # every sampler's last step, whose h is infinite
            x_t = x
        elif sampler == "heun":
            x_t = _heun(estimate, x_t, (x, eps), here, end, straight=nodes[0].alpha == 0)
        elif sampler == "dpmpp":
            x_t = _dpmpp(x_t, x, here, end, before)
        elif eta:
            x_t = _ancestral(x, eps, here, end, eta, generator)
        else:
            x_t = end.alpha * x + end.sigma * eps
        before = here, x
    return x_t


def check_sampler(sampler: str, known: Sequence[str]) -> None:
    """Refuse a sampler that is not among the known.

    Raises:
        ValueError: it is not.
    """
    if sampler not in known:
        hint = "; Euler's step is 'ddim'" if sampler == "euler" else ""
        raise ValueError(f"no sampler named {sampler!r}; there are {list(known)}{hint}")


def fresh_like(x: Tensor, generator: Generators) -> Tensor:
    """Return standard normal noise like x, (n, *dims), each image's from its own generator where there is one each."""
    if isinstance(generator, Sequence):
        return torch.stack([normal_like(row, own) for row, own in zip(x, generator, strict=True)])
    return normal_like(x, generator)


def _heun(
    estimate: Estimate, x_t: Tensor, here_parts: tuple[Tensor, Tensor], here: Node, end: Node, *, straight: bool
) -> Tensor:
    """Average the slope at both ends: d(x_t / alpha) / d(sigma / alpha) = eps.

    A path that starts in pure noise has no sigma / alpha there; its slope is that of x_t / (alpha + sigma) over
    sigma / (alpha + sigma), which is noise - x, and its coordinate on the straight path t itself.
    """
    x, eps = here_parts
    x_after, eps_after = estimate(end.alpha * x + end.sigma * eps, end.t)
    if straight:
        scale, scale_after, slope = here.alpha + here.sigma, end.alpha + end.sigma, eps - x + eps_after - x_after
    else:
        scale, scale_after, slope = here.alpha, end.alpha, eps + eps_after
    way = end.sigma / scale_after - here.sigma / scale
    return scale_after * (x_t / scale + way / 2 * slope)


def _dpmpp(x_t: Tensor, x: Tensor, here: Node, end: Node, before: tuple[Node, Tensor] | None) -> Tensor:
    h = _log_snr(end) - _log_snr(here)
    if before is not None and h:  # two nodes of one level: nothing is left to continue
        r = (_log_snr(here) - _log_snr(before[0])) / h
        x = x + (x - before[1]) / (2 * r)
    return end.sigma / here.sigma * x_t - end.alpha * math.expm1(-h) * x


def _log_snr(node: Node) -> float:
    return math.log(node.alpha / node.sigma) if node.alpha > 0 else -math.inf


def _ancestral(x: Tensor, eps: Tensor, here: Node, end: Node, eta: float, generator: Generators) -> Tensor:
    """Replace a part of the estimated noise by fresh noise (arXiv:2010.02502, eq. 16, for any alpha and sigma).

    With eta = 1 the fresh part is the deviation of q(x_end | x_here, x).
    """
    left = here.sigma**2 - (here.alpha / end.alpha * end.sigma) ** 2
    fresh = eta * end.sigma / here.sigma * math.sqrt(max(left, 0.0))
    kept = math.sqrt(max(end.sigma**2 - fresh**2, 0.0))
    return end.alpha * x + kept * eps + fresh * fresh_like(x, generator)
