"""The Fréchet distance between Gaussian fits of features (Heusel et al., arXiv:1706.08500)."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from immiscible_diffusion.metrics._rows import comparable
from immiscible_diffusion.metrics.moments import Moments
from immiscible_diffusion.registry import register
from immiscible_diffusion.types import Float

__all__ = ["Frechet", "frechet_distance", "frechet_from_moments"]


def frechet_distance(real: Float[Tensor, "n f"], generated: Float[Tensor, "m f"]) -> float:
    """Return |mu_1 - mu_2|^2 + tr(S_1 + S_2 - 2 (S_1 S_2)^(1/2)), a squared distance, in float64.

    The trace of the root is that of (S_1^(1/2) S_2 S_1^(1/2))^(1/2), which is symmetric: no complex values, and
    singular covariances do no harm. The value falls as the number of samples grows; compare equal numbers.

    Raises:
        ValueError: fewer than two rows, features of different length, or not finite.

    >>> import torch
    >>> frechet_distance(torch.tensor([[0.0], [2.0]]), torch.tensor([[3.0], [5.0]]))
    9.0
    """
    real, generated = comparable(real, generated)
    if len(real) + len(generated) > real.shape[1]:
        return frechet_from_moments(Moments.of(real), Moments.of(generated))
    return _of_few(real.double(), generated.to(real.device).double())


def _of_few(real: Tensor, generated: Tensor) -> float:
    """Return the distance where rows are fewer than features, (n, f) and (m, f), without any (f, f) covariance.

    With centred rows X and Y over the roots of n - 1 and m - 1, the eigenvalues of the product of both covariances are
    the squares of the singular values of X Y^T, so the trace of its root is their sum.
    """
    means = real.mean(0), generated.mean(0)
    first, second = ((x - mean) / (len(x) - 1) ** 0.5 for x, mean in zip((real, generated), means, strict=True))
    overlap = torch.linalg.svdvals(first @ second.T).sum()
    shift = (means[0] - means[1]).square().sum()
    return max(0.0, float(shift + first.square().sum() + second.square().sum() - 2 * overlap))


def frechet_from_moments(real: Moments, generated: Moments) -> float:
    """Return the squared Fréchet distance of two Gaussians, in float64.

    Raises:
        ValueError: moments of different length, or of fewer than two rows.

    >>> import torch
    >>> unit, wide = (Moments(torch.zeros(2), scale * torch.eye(2), None) for scale in (1.0, 4.0))
    >>> frechet_from_moments(unit, wide)
    2.0
    """
    if real.mean.shape != generated.mean.shape:
        raise ValueError(f"moments of {len(real.mean)} features and of {len(generated.mean)} cannot be compared")
    if any(moments.count is not None and moments.count < 2 for moments in (real, generated)):
        raise ValueError(f"a covariance needs two rows; there came {real.count} and {generated.count}")
    first, second = real.covariance, generated.covariance.to(real.covariance.device)
    values, vectors = torch.linalg.eigh(first)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    overlap = torch.linalg.eigvalsh(root @ second @ root).clamp(min=0).sqrt().sum()
    shift = (real.mean - generated.mean.to(real.mean.device)).square().sum()
    # A squared distance: rounding alone takes it below 0, by about 1e-8 of the traces for singular covariances.
    return max(0.0, float(shift + first.trace() + second.trace() - 2 * overlap))


@register("metric")
@dataclass(frozen=True)
class Frechet:
    """The Fréchet distance. It is FID only in the features of the 2015 Inception network."""

    better: ClassVar[Literal["lower", "higher"]] = "lower"
    least: ClassVar[int] = 2

    def __call__(self, real: Tensor, generated: Tensor) -> float:
        """Return the squared Fréchet distance of features (n, f) and (m, f)."""
        return frechet_distance(real, generated)
