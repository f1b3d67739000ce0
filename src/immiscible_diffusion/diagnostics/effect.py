"""How much nearer a coupling brings noise to the data of one set, and what that costs."""

import itertools
import time
from collections.abc import Iterable, Iterator
from statistics import median
from typing import Any

import torch
from torch import Tensor

from immiscible_diffusion.couplings import Independent
from immiscible_diffusion.diagnostics.marginal import leak, principal_variance
from immiscible_diffusion.streams import stream
from immiscible_diffusion.types import Coupling, HasChoice, HasMemory, HasWindow

__all__ = ["Pairable", "effect", "pools"]

Pairable = (
    tuple[Tensor, Tensor | None]
    | tuple[Tensor, Tensor | None, Tensor | None]
    | tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]
)
"""A batch in model space, its condition, where the data are padded its mask, and the numbers of its rows."""

_DIRECTIONS = 32
_PROBED = 8 * _DIRECTIONS
"""Rows below which a probe would fit its own noise."""
_MOST = 1024
"""Rows after which no more are kept for the probe."""


def effect(coupling: Coupling, data: Iterable[Pairable], *, seed: int = 0) -> dict[str, float]:
    """Return how near a coupling brings noise to data, and what that costs.

    ``distance_reduction_percent`` compares the mean L2 distance of the pairs with independent pairs under the
    same random streams; it depends on the data's scale. ``noise_square`` is the noise's mean square, 1 for a standard
    normal; ``cosine`` the mean cosine between datum and noise; ``milliseconds`` the median wall time of a batch after
    the first. Where there are labels, ``leak_accuracy`` is how often a linear probe reads the label from the noise's
    leading 32 principal directions of the data, and ``leak_chance`` the share of the commonest label: more is a leak.
    A coupling with a window pairs so many batches at once, as in training; one with a memory gets it back as it was.

    Args:
        coupling: the coupling.
        data: batches in model space with their conditions, masks where they are padded, and row numbers for couplings
            that need them; padding is not measured.
        seed: names the random streams.

    Raises:
        ValueError: there are no data.
    """
    paired, independent, cosine, square, spent = [], [], [], [], []
    seen: list[tuple[Tensor, Tensor, Tensor]] = []
    kept = {name: value.clone() for name, value in coupling.memory().items()} if isinstance(coupling, HasMemory) else {}
    window = coupling.window if isinstance(coupling, HasWindow) else 1
    for i, (x, cond, options) in enumerate(pools(data, window)):
        begun = time.perf_counter()
        if isinstance(coupling, HasChoice):  # of rows of its own, whose conditions are not known here
            chosen = coupling.choose(len(x), stream(seed, i, "noise", x.device))
            x, noise, cond = chosen.x, chosen.noise, None
        else:
            noise = coupling(x, cond=cond, generator=stream(seed, i, "noise", x.device), step=0, **options)
        spent.append(1000 * (time.perf_counter() - begun) / window)
        if isinstance(coupling, HasChoice):  # the same noise, at other rows
            plain = noise.roll(1, 0)
        else:
            plain = Independent()(x, cond=cond, generator=stream(seed, i, "noise", x.device))
        share = 1.0
        if (mask := options.get("mask")) is not None:
            x, noise, plain = (torch.where(mask, tensor, 0) for tensor in (x, noise, plain))
            share = float(mask.float().mean())
        paired.append(_distance(x, noise))
        independent.append(_distance(x, plain))
        cosine.append(torch.nn.functional.cosine_similarity(x.flatten(1), noise.flatten(1)).mean().item())
        square.append(noise.square().mean().item() / max(share, 1e-30))
        known = sum(len(rows) for rows, _, _ in seen)
        if cond is not None and not cond.is_floating_point() and known < _MOST:
            seen.append((x.flatten(1).float().cpu(), noise.flatten(1).float().cpu(), cond.cpu()))
    if isinstance(coupling, HasMemory):
        coupling.remember(kept)
    if not spent:
        raise ValueError("the effect of a coupling needs at least one batch of data")
    count = len(spent)
    return {
        "distance_reduction_percent": 100 * (1 - sum(paired) / sum(independent)),
        "cosine": sum(cosine) / count,
        "noise_square": sum(square) / count,
        "milliseconds": median(spent[1:] or spent),
        "batches": count * window,
        **_leaked(seen),
    }


def pools(data: Iterable[Pairable], window: int = 1) -> Iterator[tuple[Tensor, Tensor | None, dict[str, Any]]]:
    """Yield pools of several batches: data, condition, and the keywords of a coupling (mask and row numbers).

    Keywords are left out where batches have no mask or row numbers. Batches at the end that fill no window are left
    out, unless there is no full window.
    """
    whole = False
    batches = iter(data)
    while pool := list(itertools.islice(batches, window)):
        if whole and len(pool) < window:
            return
        whole = True
        filled = [(*batch, *[None] * (4 - len(batch))) for batch in pool]
        x, cond, mask, index = filled[0] if window == 1 else map(_joined, zip(*filled, strict=True))
        options = {"mask": mask, "index": index}
        yield x, cond, {name: value for name, value in options.items() if value is not None}  # type: ignore[misc]


def _joined(parts: tuple[Tensor | None, ...]) -> Tensor | None:
    tensors = [part for part in parts if part is not None]
    return torch.cat(tensors) if len(tensors) == len(parts) else None


def _leaked(seen: list[tuple[Tensor, Tensor, Tensor]]) -> dict[str, float]:
    """Return how well a probe reads the labels from the noise; empty if there are too few rows for a probe."""
    if sum(len(x) for x, _, _ in seen) < _PROBED:
        return {}
    x, noise, labels = (torch.cat(parts) for parts in zip(*seen, strict=True))
    _, coordinates = principal_variance(x, noise, min(_DIRECTIONS, x.shape[1]))
    probe = leak(coordinates, labels)
    return {"leak_accuracy": probe["accuracy"], "leak_chance": probe["chance"]}


def _distance(x: Tensor, noise: Tensor) -> float:
    return float(torch.linalg.vector_norm((x - noise).flatten(1).float(), dim=1).mean())
