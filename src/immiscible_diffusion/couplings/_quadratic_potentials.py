"""Where the fit of semidiscrete potentials starts: the best potentials among quadratics in few directions of the data.

The potentials of normal data are a quadratic; those of images are nearly one. So few noises, far fewer than data, show
what each single potential would need many noises to learn.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from immiscible_diffusion.streams import stream
from immiscible_diffusion.tensors import normal
from immiscible_diffusion.types import Float, Int

__all__ = ["quadratic_potentials"]

_DIRECTIONS, _POWERS = 16, 4
_STEPS, _LENGTH = 64, 2.0
_PART = 4096
"""Rows whose distance from the mean is computed at once."""


def quadratic_potentials(
    rows: Float[Tensor, "n d"], owners: Callable[[Tensor, int], Int[Tensor, " b"]], scale: float
) -> Float[Tensor, " n"]:
    """Return potentials of mean 0, (n,), that are linear in the columns of ``_columns``.

    They minimise the convex objective of ``ascend`` among such potentials: 64 stochastic steps along normed gradients,
    each over the root of the sum of their squares so far (AdaGrad with one scale for all), of which the last half is
    averaged.

    Args:
        rows: the data.
        owners: given potentials and the number of a step, the datum that each noise of that step falls on.
        scale: of the potentials' differences; it sets the length of the steps.
    """
    columns = _columns(rows)
    weights, averaged = columns.new_zeros(columns.shape[1]), columns.new_zeros(columns.shape[1])
    squares = columns.new_zeros(())
    for i in range(_STEPS):
        gradient = columns[owners(columns @ weights, i)].mean(0)
        squares = squares + gradient.square().sum()
        weights = weights - _LENGTH * scale * gradient / squares.sqrt().clamp(min=torch.finfo(columns.dtype).tiny)
        if i >= _STEPS // 2:
            averaged = averaged + weights / (_STEPS - _STEPS // 2)
    return columns @ averaged


def _columns(rows: Float[Tensor, "n d"]) -> Float[Tensor, "n columns"]:
    """Return what potentials are made of, as orthogonal columns of mean 0 and mean square 1; the data are not copied.

    For every datum they are its place along 16 directions of large variance, that squared, its distance from the mean,
    and that squared.
    """
    n, d = rows.shape
    mean = rows.mean(0)
    basis = normal((d, min(_DIRECTIONS, d)), stream(0, 0, "noise", rows.device), rows.device)
    for _ in range(_POWERS):
        along = rows @ basis - mean @ basis
        basis = torch.linalg.qr(rows.T @ along - mean[:, None] * along.sum(0)).Q
    along = rows @ basis - mean @ basis
    far = torch.cat([(part - mean).norm(dim=1, keepdim=True) for part in torch.split(rows, _PART)])
    raw = torch.cat([along, along.square(), far, far.square()], 1).double()
    columns: Tensor = math.sqrt(n) * torch.linalg.qr(raw - raw.mean(0)).Q
    return columns.float()
