"""Compare couplings on one's own data, to choose one."""

import time
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor

from immiscible_diffusion.couplings._cost import pairwise
from immiscible_diffusion.diagnostics.effect import Pairable, effect, pools
from immiscible_diffusion.diagnostics.idle import idle_reason
from immiscible_diffusion.diagnostics.marginal import gaussian_kl, leak, principal_variance
from immiscible_diffusion.streams import stream
from immiscible_diffusion.tensors import normal_like
from immiscible_diffusion.types import Coupling, HasChoice, HasCostMatrix, HasWindow

__all__ = ["inspect"]

_DIRECTIONS = 32


def inspect(couplings: Mapping[str, Coupling], data: Sequence[Pairable], *, seed: int = 0) -> list[dict[str, Any]]:
    """Return what each coupling does to these batches, a dict each.

    Beside the figures of ``effect``: ``shift`` the mean of the noise along x / |x|, 0 for a standard normal;
    ``kl`` the divergence, in nat, of the noise's Gaussian fit from N(0, I) in the data's leading 32 principal
    directions, less its finite-sample bias; ``principal_variance`` the noise's variance along each of them; ``leak``
    what a linear probe reads of the label, where there are labels; ``cost_ms`` the time of the cost matrix alone;
    ``idle`` why the coupling can pair next to nothing here, empty if it can.

    Args:
        couplings: label -> coupling.
        data: batches in model space, with labels or None, and masks where they are padded.
        seed: names the random streams; equal for all couplings.

    Raises:
        ValueError: no data.
    """
    if not data:
        raise ValueError("an inspection needs at least one batch of data")
    batches = list(pools(data))
    labels = [cond for _, cond, _ in batches if cond is not None and not cond.is_floating_point()]
    rows = []
    for label, coupling in couplings.items():
        measured: dict[str, Any] = {"coupling": label, **effect(coupling, data, seed=seed)}
        x, noise = _paired(coupling, data, seed)
        norm = torch.linalg.vector_norm(x, dim=1).clamp(min=1e-30)
        measured["shift"] = float(((noise * x).sum(1) / norm).mean())
        count = min(_DIRECTIONS, x.shape[1], len(x) // 4)
        variances, coordinates = principal_variance(x, noise, count)
        measured["principal_variance"] = [round(value, 5) for value in variances.tolist()]
        measured["kl"] = gaussian_kl(coordinates)
        known = len(labels) == len(data) and not isinstance(coupling, HasChoice)
        measured["leak"] = leak(coordinates, torch.cat(labels)[: len(x)]) if known else None
        measured["cost_ms"] = _cost_milliseconds(coupling, [x for x, _, _ in batches])
        measured["idle"] = idle_reason(coupling, len(data[0][0]), labels)
        rows.append(measured)
    return rows


def _paired(coupling: Coupling, data: Sequence[Pairable], seed: int) -> tuple[Tensor, Tensor]:
    """Return the data, 0 where they are padding, and their noise, (n, d) each."""
    xs, noises = list[Tensor](), list[Tensor]()
    for i, (x, cond, options) in enumerate(pools(data, coupling.window if isinstance(coupling, HasWindow) else 1)):
        if isinstance(coupling, HasChoice):
            chosen = coupling.choose(len(x), stream(seed, i, "noise"))
            xs.append(chosen.x)
            noises.append(chosen.noise)
            continue
        noises.append(coupling(x, cond=cond, generator=stream(seed, i, "noise"), step=0, **options))
        xs.append(torch.where(options["mask"], x, 0) if "mask" in options else x)
    return torch.cat(xs).flatten(1).float(), torch.cat(noises).flatten(1).float()


def _cost_milliseconds(coupling: Coupling, data: Sequence[Tensor]) -> float | None:
    """Return the median time of the cost matrix alone, for couplings that make one, else None."""
    if not isinstance(coupling, HasCostMatrix):
        return None
    spent = []
    for x in data[:10]:
        noise = normal_like(x, stream(0, 0, "noise"))
        begun = time.perf_counter()
        pairwise(x, noise, coupling.cost, coupling.precision)
        spent.append(1000 * (time.perf_counter() - begun))
    return median(spent)
