"""Mean and covariance of features, gathered batch by batch and over processes."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from immiscible_diffusion.types import Features, Float

__all__ = ["Moments", "features_of", "moments_of"]

_ROWS = 4096
"""Rows turned into float64 at once."""


@dataclass(frozen=True, eq=False)
class Moments:
    """Count, mean and covariance of features, in float64.

    Nothing changes in place: ``add`` and ``merge`` return new moments.
    Batches are joined by the pairwise update of Chan, Golub and LeVeque (1983), which never subtracts squares of
    means: up to rounding, the result is the same as for all rows at once, whatever the batches and their order.

    Args:
        mean: (f,).
        covariance: (f, f), divided by n - 1; zeros for fewer than two rows.
        count: rows seen, or None for statistics from a file that does not say; those can be compared but not added to.

    Raises:
        ValueError: the mean is not (f,) or the covariance not (f, f), or they are not finite.

    >>> import torch
    >>> rows = torch.tensor([[0.0], [2.0], [7.0]])
    >>> Moments.of(rows[:1]).add(rows[1:]).covariance.item()
    13.0
    """

    mean: Tensor
    covariance: Tensor
    count: int | None

    def __post_init__(self) -> None:
        if self.mean.ndim != 1 or self.covariance.shape != (len(self.mean), len(self.mean)):
            came = f"{tuple(self.mean.shape)} and {tuple(self.covariance.shape)}"
            raise ValueError(f"mean and covariance must be (f,) and (f, f); there came {came}")
        if not bool(torch.isfinite(self.mean).all()) or not bool(torch.isfinite(self.covariance).all()):
            raise ValueError("mean and covariance must be finite; the features or the file they come from are damaged")

    @classmethod
    def of(cls, features: Float[Tensor, "n f"]) -> "Moments":
        """Return the moments of features, on their device."""
        f = features.shape[1]
        device = features.device if features.device.type in ("cpu", "cuda") else torch.device("cpu")
        zeros = torch.zeros(f + 1, f, dtype=torch.float64, device=device)
        return cls(zeros[0], zeros[1:], 0).add(features)

    def add(self, features: Float[Tensor, "n f"]) -> "Moments":
        """Return the moments of all features so far, these included.

        Raises:
            ValueError: features of another length, or the count is unknown.
        """
        result = self
        for part in torch.split(features.to(self.mean.device), _ROWS):
            if len(part) == 0:  # a mean of nothing is not a number
                continue
            rows = part.double()
            mean = rows.mean(0)
            centred = rows - mean
            covariance = centred.T @ centred / max(1, len(rows) - 1)
            result = result.merge(Moments(mean, covariance, len(rows)))
        return result

    def merge(self, other: "Moments") -> "Moments":
        """Return the moments of both together, as where several processes saw a part each.

        Raises:
            ValueError: features of another length, or a count is unknown.
        """
        if self.count is None or other.count is None:
            raise ValueError("these moments came without their number of rows: they can be compared, not added to")
        if len(self.mean) != len(other.mean):
            raise ValueError(f"cannot add features of length {len(other.mean)} to features of length {len(self.mean)}")
        n, m = self.count, other.count
        if n == 0 or m == 0:
            return other if n == 0 else self
        shift = other.mean.to(self.mean.device) - self.mean
        scatter = self.covariance * (n - 1) + other.covariance.to(self.mean.device) * (m - 1)
        scatter = scatter + torch.outer(shift, shift) * (n * m / (n + m))
        return Moments(self.mean + shift * (m / (n + m)), scatter / (n + m - 1), n + m)


def features_of(batches: Iterable[Tensor], features: Features) -> tuple[Moments, Tensor]:
    """Return the moments and the features, (n, f) on the CPU, of images that come in batches (b, c, h, w).

    Raises:
        ValueError: there are no images.

    >>> from immiscible_diffusion.features import PooledPixels
    >>> moments, rows = features_of(torch.zeros(2, 5, 3, 8, 8, dtype=torch.uint8), PooledPixels(2))
    >>> moments.count, rows.shape
    (10, torch.Size([10, 12]))
    """
    kept = [features(raw).cpu() for raw in batches]
    if not kept:
        raise ValueError("no images: the features of nothing were asked for")
    rows = torch.cat(kept)
    return Moments.of(rows), rows


def moments_of(batches: Iterable[Tensor], features: Features) -> Moments:
    """Return the moments alone of images that come in batches; memory does not grow with their number.

    Raises:
        ValueError: there are no images.

    >>> from immiscible_diffusion.features import PooledPixels
    >>> moments_of(torch.zeros(2, 5, 3, 8, 8, dtype=torch.uint8), PooledPixels(2)).count
    10
    """
    result: Moments | None = None
    for raw in batches:
        rows = features(raw)
        result = Moments.of(rows) if result is None else result.add(rows)
    if result is None:
        raise ValueError("no images: the moments of nothing were asked for")
    return result
