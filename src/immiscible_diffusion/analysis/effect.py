"""What a coupling does to the pairs of one data set."""

import time
from collections.abc import Iterable
from statistics import median

import torch
from torch import Tensor

from immiscible_diffusion.couplings import Independent
from immiscible_diffusion.streams import stream
from immiscible_diffusion.types import Coupling

__all__ = ["effect"]


def effect(coupling: Coupling, data: Iterable[tuple[Tensor, Tensor | None]], *, seed: int = 0) -> dict[str, float]:
    """Return how near a coupling brings noise to data, and what that costs.

    ``distance_reduction_percent`` compares the mean L2 distance of the pairs with that of independent pairs under the
    same random streams; it depends on the data's scale. ``noise_square`` is the noise's mean square, 1 for a standard
    normal; ``cosine`` the mean cosine between datum and noise; ``milliseconds`` the median wall time of a batch after
    the first.

    Args:
        coupling: the coupling.
        data: batches in model space with their conditions.
        seed: names the random streams.

    Raises:
        ValueError: there are no data.
    """
    paired, independent, cosine, square, spent = [], [], [], [], []
    for i, (x, cond) in enumerate(data):
        begun = time.perf_counter()
        noise = coupling(x, cond, stream(seed, i, "noise", x.device))
        spent.append(1000 * (time.perf_counter() - begun))
        plain = Independent()(x, cond, stream(seed, i, "noise", x.device))
        paired.append(_distance(x, noise))
        independent.append(_distance(x, plain))
        cosine.append(torch.nn.functional.cosine_similarity(x.flatten(1), noise.flatten(1)).mean().item())
        square.append(noise.square().mean().item())
    if not spent:
        raise ValueError("the effect of a coupling needs at least one batch of data")
    count = len(spent)
    return {
        "distance_reduction_percent": 100 * (1 - sum(paired) / sum(independent)),
        "cosine": sum(cosine) / count,
        "noise_square": sum(square) / count,
        "milliseconds": median(spent[1:] or spent),
        "batches": count,
    }


def _distance(x: Tensor, noise: Tensor) -> float:
    return float(torch.linalg.vector_norm((x - noise).flatten(1).float(), dim=1).mean())
