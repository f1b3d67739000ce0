"""Noise that is paired and then negated: an ablation that keeps the pairing but not the short paths."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import Tensor

from immiscible_diffusion.couplings._drop_in import Rows
from immiscible_diffusion.couplings._wrapper import Wrapper, mapped_start, noise_from
from immiscible_diffusion.couplings.assignment import Assignment
from immiscible_diffusion.priors import Gaussian
from immiscible_diffusion.registry import register
from immiscible_diffusion.types import Coupling, Float, Prior

__all__ = ["Flipped"]


@register("coupling")
@dataclass(frozen=True)
class Flipped(Wrapper):
    """Pair by another coupling and return the negative of its noise (arXiv:2406.12303, Fig. 7).

    Each datum still has its own region of noise, but the far one instead of the near one, so what remains of the effect
    is not due to shorter paths. The paths then cross in the middle, as the authors concede.

    Departs: the paper does not say how the noise is flipped; here its sign changes.

    Marginal: the coupling's, mirrored at the origin; standard normal, exactly, around every coupling that permutes.
    Cost: the coupling's, and b d negations.

    Args:
        coupling: pairs the noise before it is negated.

    Raises:
        ValueError: ``coupling`` is no coupling.

    >>> import torch
    >>> x = 3 * torch.tensor([[1.0], [-1.0]]).repeat(32, 2)
    >>> bool((Flipped()(x) * x).mean() < -1)
    True
    """

    coupling: Coupling = field(default_factory=Assignment)

    def pair(self, x: Float[Tensor, "b *dims"], rows: Rows) -> Float[Tensor, "b *dims"]:
        """Return the negative of the coupling's noise, (b, *dims).

        Raises:
            ValueError: as the coupling.
        """
        return -noise_from(self.coupling, x, rows)

    def prior(self, data: Iterable[Tensor]) -> Prior:
        """Return the start of the wrapped coupling, mirrored at the origin.

        Raises:
            ValueError: that start is neither a standard normal nor a ``Gaussian``.
        """
        return mapped_start(
            self.coupling.prior(data),
            "mirrored",
            lambda start: Gaussian(-start.mean, start.directions, start.variances, start.scale),
        )
