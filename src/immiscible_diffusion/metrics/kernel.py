"""The kernel distance between features (Binkowski et al., arXiv:1801.01401)."""

from dataclasses import dataclass

from torch import Tensor

from immiscible_diffusion.metrics._features import comparable
from immiscible_diffusion.registry import register
from immiscible_diffusion.types import Float

__all__ = ["Kernel", "kernel_distance"]


def kernel_distance(real: Float[Tensor, "n f"], generated: Float[Tensor, "m f"]) -> float:
    """Return the unbiased squared MMD under the kernel (x . y / f + 1)^3, in float64.

    Unbiased at any number of samples, hence slightly negative at times where the two laws agree.

    Raises:
        ValueError: fewer than two rows, or features of different length.

    >>> import torch
    >>> kernel_distance(torch.tensor([[0.0], [0.0]]), torch.tensor([[0.0], [0.0]]))
    0.0
    """
    real, generated = comparable(real, generated)
    return float(_within(real) + _within(generated) - 2 * _kernel(real, generated).mean())


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _within(x: Tensor) -> Tensor:
    kernel = _kernel(x, x)
    return (kernel.sum() - kernel.trace()) / (len(x) * (len(x) - 1))


@register("metric")
@dataclass(frozen=True)
class Kernel:
    """The kernel distance; KID where the features are those of the 2015 Inception network, and only there."""

    def __call__(self, real: Tensor, generated: Tensor) -> float:
        """Return the unbiased squared MMD of features (n, f) and (m, f)."""
        return kernel_distance(real, generated)
