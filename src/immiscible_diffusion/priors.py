"""Starting distributions for sampling, for couplings that change the distribution of the noise."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from immiscible_diffusion.types import Float

__all__ = ["Gaussian", "StandardNormal"]


@dataclass(frozen=True)
class StandardNormal:
    """The standard normal: the marginal under independent noise and under every permutation of it."""

    def sample(self, shape: tuple[int, ...], generator: torch.Generator) -> Float[Tensor, "n *dims"]:
        """Return independent standard normal values, (n, *dims), float32."""
        return torch.randn(shape, generator=generator, device=generator.device, dtype=torch.float32)


@dataclass(frozen=True, eq=False)
class Gaussian:
    """A Gaussian whose covariance is a multiple of the identity plus low rank, on flattened rows.

    Args:
        mean: the mean of a row, (d,), float32.
        directions: orthonormal directions that have variances of their own, (r, d), float32.
        variances: the variance along each of them, (r,), float32, positive.
        scale: the variance along every other direction, positive; one number, a tensor when it comes from a file.

    Raises:
        ValueError: the shapes do not fit, or a variance is not positive.
    """

    mean: Float[Tensor, " d"]
    directions: Float[Tensor, "r d"]
    variances: Float[Tensor, " r"]
    scale: float | Tensor = 1.0

    def __post_init__(self) -> None:
        r, d = self.directions.shape
        if self.mean.shape != (d,) or self.variances.shape != (r,):
            raise ValueError(
                f"a Gaussian start needs mean (d,), directions (r, d) and variances (r,); there came "
                f"{tuple(self.mean.shape)}, {tuple(self.directions.shape)} and {tuple(self.variances.shape)}"
            )
        if not bool((self.variances > 0).all()):
            raise ValueError(f"variances must be positive; the least is {self.variances.min().item()}")
        if isinstance(self.scale, Tensor) and self.scale.numel() != 1:
            raise ValueError(f"scale must be one number; there came a tensor of shape {tuple(self.scale.shape)}")
        if not 0 < float(self.scale) < math.inf:
            raise ValueError(f"scale must be positive and finite; there came {float(self.scale)}")

    def sample(self, shape: tuple[int, ...], generator: torch.Generator) -> Float[Tensor, "n *dims"]:
        """Return draws of this Gaussian, (n, *dims), float32.

        The same generator state gives ``StandardNormal`` noise moved by the mean and the directions, and scaled
        across them, so that samples from the two starts can be compared pair by pair.

        Raises:
            ValueError: a row of this shape has not d coordinates.
        """
        noise = torch.randn(shape, generator=generator, device=generator.device, dtype=torch.float32).flatten(1)
        if noise.shape[1] != self.mean.numel():
            raise ValueError(f"this start has {self.mean.numel()} coordinates; the shape asked is {shape}")
        mean, directions, variances = (part.to(noise.device) for part in (self.mean, self.directions, self.variances))
        across = math.sqrt(float(self.scale))
        stretch = (noise @ directions.T) * (variances.sqrt() - across)
        return (across * noise + stretch @ directions + mean).reshape(shape)

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors that describe this start, to be saved with the model."""
        scale = torch.tensor(float(self.scale), dtype=torch.float64)
        return {"mean": self.mean, "directions": self.directions, "variances": self.variances, "scale": scale}

    @staticmethod
    def from_moments(
        mean: Float[Tensor, " d"], excess: Float[Tensor, "d d"], *, keep: float = 0.999, scale: float = 1.0
    ) -> "Gaussian":
        """Return the Gaussian with this mean and covariance scale I + excess, to low rank.

        Args:
            mean: the mean, (d,).
            excess: the covariance less ``scale`` times the identity, (d, d), symmetric, float64.
            keep: the share of the summed absolute eigenvalues of the excess that is kept.
            scale: the variance in every direction without excess.
        """
        values, vectors = torch.linalg.eigh(excess)
        order = values.abs().argsort(descending=True)
        reached, whole = values[order].abs().cumsum(0), values.abs().sum()
        kept = order[: int((reached < keep * whole).sum()) + 1] if whole > 0 else order[:0]
        variances = (scale + values[kept]).float()
        return Gaussian(mean.float(), vectors[:, kept].T.contiguous().float(), variances, scale)
