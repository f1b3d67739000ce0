"""How a coupling changes the distribution of the noise, and how much the noise reveals about the condition."""

import math

import torch
from scipy.special import digamma
from torch import Tensor

from immiscible_diffusion.types import Float, Int

__all__ = ["gaussian_kl", "gaussian_kl_bias", "leak", "principal_variance"]


def gaussian_kl_bias(n: int, d: int) -> float:
    """Return the expected KL divergence, in nat, of a Gaussian fit to n standard normal draws from N(0, I).

    E tr S = d, E |mean|^2 = d / n and E log det S = sum over i = 1 .. d of psi((n - i) / 2) + log(2 / (n - 1)) for
    the Wishart distribution of the covariance S. This is what a raw estimate reports for perfect noise.

    >>> round(gaussian_kl_bias(50_000, 3072), 2)
    48.23
    """
    log_det = sum(digamma((n - i) / 2) for i in range(1, d + 1)) + d * math.log(2 / (n - 1))
    return 0.5 * (d / n - float(log_det))


def gaussian_kl(noise: Float[Tensor, "n d"]) -> float:
    """Return KL(Gaussian fit of the noise | N(0, I)) in nat, less its expected value under perfect noise.

    Raises:
        ValueError: not more rows than coordinates.
    """
    n, d = noise.shape
    if n <= d:
        raise ValueError(f"{n} rows of {d} coordinates; a Gaussian fit needs more rows than coordinates")
    rows = noise.double()
    covariance = torch.cov(rows.T).reshape(d, d)
    raw = 0.5 * (covariance.trace() + rows.mean(0).square().sum() - d - torch.linalg.slogdet(covariance).logabsdet)
    return float(raw) - gaussian_kl_bias(n, d)


def principal_variance(
    x: Float[Tensor, "n d"], noise: Float[Tensor, "n d"], count: int
) -> tuple[Float[Tensor, " k"], Float[Tensor, "n k"]]:
    """Return the noise's variance along the data's leading principal directions, and its coordinates there.

    Args:
        x: data.
        noise: the noise paired with it.
        count: how many directions, at most d and n - 1.

    Returns:
        Variances (k,), largest data variance first; 1 is a standard normal's. Coordinates (n, k).
    """
    rows = x.double() - x.double().mean(0)
    if x.shape[0] <= x.shape[1]:
        values, left = torch.linalg.eigh(rows @ rows.T)
        directions = (rows.T @ left[:, -count:] / values[-count:].clamp(min=1e-300).sqrt()).flip(1)
    else:
        directions = torch.linalg.eigh(rows.T @ rows).eigenvectors[:, -count:].flip(1)
    coordinates = noise.double() @ directions
    return coordinates.var(0), coordinates


def leak(noise: Float[Tensor, "n d"], labels: Int[Tensor, " n"]) -> dict[str, float]:
    """Return how often a linear probe reads the class from the noise: ``accuracy``, ``chance`` and its ``error``.

    Ridge regression on one-hot labels, fitted on one half of the rows and tested on the other. ``chance`` is the share
    of the commonest class, ``error`` the standard error of the accuracy. Noise that is independent of the class scores
    chance; sampling, which draws noise without the class, then matches training.

    Raises:
        ValueError: fewer than four rows, or one label a row is missing.
    """
    if len(noise) < 4 or labels.shape != (len(noise),):
        raise ValueError(
            f"a probe needs four rows or more and one label a row; there came {noise.shape}, {labels.shape}"
        )
    half = len(noise) // 2
    rows = torch.cat([noise.double(), torch.ones(len(noise), 1, dtype=torch.float64)], 1)
    hot = torch.nn.functional.one_hot(labels.long()).double()
    gram = rows[:half].T @ rows[:half]
    ridge = gram + half * torch.eye(len(gram), dtype=torch.float64)
    guess = (rows[half:] @ torch.linalg.solve(ridge, rows[:half].T @ hot[:half])).argmax(1)
    accuracy = float((guess == labels[half:]).double().mean())
    chance = float(labels[half:].bincount().max()) / (len(labels) - half)
    return {"accuracy": accuracy, "chance": chance, "error": math.sqrt(chance * (1 - chance) / (len(labels) - half))}
