"""The Fréchet distance between Gaussian fits of features (Heusel et al., arXiv:1706.08500)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from immiscible_diffusion.metrics._features import comparable
from immiscible_diffusion.registry import register
from immiscible_diffusion.types import Float

__all__ = ["Frechet", "frechet_distance"]


def frechet_distance(real: Float[Tensor, "n f"], generated: Float[Tensor, "m f"]) -> float:
    """Return |mu_1 - mu_2|^2 + tr(S_1 + S_2 - 2 (S_1 S_2)^(1/2)), a squared distance, in float64.

    The trace of the root is that of (S_1^(1/2) S_2 S_1^(1/2))^(1/2), which is symmetric: no complex values, and
    singular covariances do no harm. The value falls as the number of samples grows; compare equal numbers.

    Raises:
        ValueError: fewer than two rows, or features of different length.

    >>> import torch
    >>> frechet_distance(torch.tensor([[0.0], [2.0]]), torch.tensor([[3.0], [5.0]]))
    9.0
    """
    real, generated = comparable(real, generated)
    first, second = torch.cov(real.T).reshape(real.shape[1], -1), torch.cov(generated.T).reshape(real.shape[1], -1)
    values, vectors = torch.linalg.eigh(first)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    overlap = torch.linalg.eigvalsh(root @ second @ root).clamp(min=0).sqrt().sum()
    shift = (real.mean(0) - generated.mean(0)).square().sum()
    return float(shift + first.trace() + second.trace() - 2 * overlap)


@register("metric")
@dataclass(frozen=True)
class Frechet:
    """The Fréchet distance; FID where the features are those of the 2015 Inception network, and only there."""

    def __call__(self, real: Tensor, generated: Tensor) -> float:
        """Return the squared Fréchet distance of features (n, f) and (m, f)."""
        return frechet_distance(real, generated)
