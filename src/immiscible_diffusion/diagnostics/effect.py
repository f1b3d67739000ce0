"""How much nearer a coupling brings noise to the data of one set, and what that costs."""

import time
from collections.abc import Iterable
from statistics import median

import torch
from torch import Tensor

from immiscible_diffusion.couplings import Independent
from immiscible_diffusion.diagnostics.marginal import leak, principal_variance
from immiscible_diffusion.streams import stream
from immiscible_diffusion.types import Coupling

__all__ = ["effect"]

_DIRECTIONS = 32
_PROBED = 8 * _DIRECTIONS
"""Rows below which a probe would fit its own noise."""
_MOST = 1024
"""Rows after which no more are kept for the probe."""


def effect(coupling: Coupling, data: Iterable[tuple[Tensor, Tensor | None]], *, seed: int = 0) -> dict[str, float]:
    """Return how near a coupling brings noise to data, and what that costs.

    ``distance_reduction_percent`` compares the mean L2 distance of the pairs with that of independent pairs under the
    same random streams; it depends on the data's scale. ``noise_square`` is the noise's mean square, 1 for a standard
    normal; ``cosine`` the mean cosine between datum and noise; ``milliseconds`` the median wall time of a batch after
    the first. Where there are labels, ``leak_accuracy`` is how often a linear probe reads the label from the noise's
    leading 32 principal directions of the data, and ``leak_chance`` the share of the commonest label: more is a leak.

    Args:
        coupling: the coupling.
        data: batches in model space with their conditions.
        seed: names the random streams.

    Raises:
        ValueError: there are no data.
    """
    paired, independent, cosine, square, spent = [], [], [], [], []
    seen: list[tuple[Tensor, Tensor, Tensor]] = []
    for i, (x, cond) in enumerate(data):
        begun = time.perf_counter()
        noise = coupling(x, cond, stream(seed, i, "noise", x.device))
        spent.append(1000 * (time.perf_counter() - begun))
        plain = Independent()(x, cond, stream(seed, i, "noise", x.device))
        paired.append(_distance(x, noise))
        independent.append(_distance(x, plain))
        cosine.append(torch.nn.functional.cosine_similarity(x.flatten(1), noise.flatten(1)).mean().item())
        square.append(noise.square().mean().item())
        known = sum(len(each) for each, _, _ in seen)
        if cond is not None and not cond.is_floating_point() and known < _MOST:
            seen.append((x.flatten(1).float().cpu(), noise.flatten(1).float().cpu(), cond.cpu()))
    if not spent:
        raise ValueError("the effect of a coupling needs at least one batch of data")
    count = len(spent)
    return {
        "distance_reduction_percent": 100 * (1 - sum(paired) / sum(independent)),
        "cosine": sum(cosine) / count,
        "noise_square": sum(square) / count,
        "milliseconds": median(spent[1:] or spent),
        "batches": count,
        **_leaked(seen),
    }


def _leaked(seen: list[tuple[Tensor, Tensor, Tensor]]) -> dict[str, float]:
    """Return what a probe reads of the labels; nothing where there are too few rows for one."""
    if sum(len(x) for x, _, _ in seen) < _PROBED:
        return {}
    x, noise, labels = (torch.cat(each) for each in zip(*seen, strict=True))
    _, coordinates = principal_variance(x, noise, min(_DIRECTIONS, x.shape[1]))
    probe = leak(coordinates, labels)
    return {"leak_accuracy": probe["accuracy"], "leak_chance": probe["chance"]}


def _distance(x: Tensor, noise: Tensor) -> float:
    return float(torch.linalg.vector_norm((x - noise).flatten(1).float(), dim=1).mean())
