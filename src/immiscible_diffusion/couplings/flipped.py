"""Noise that was paired and then turned round: the ablation that keeps the pairing and gives up the transport."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from immiscible_diffusion.couplings.assignment import Assignment
from immiscible_diffusion.priors import Gaussian, StandardNormal
from immiscible_diffusion.registry import register
from immiscible_diffusion.types import Coupling, Float, Prior, Remembering

__all__ = ["Flipped"]


@register("coupling")
@dataclass(frozen=True)
class Flipped:
    """Pair by another coupling and return the negative of its noise (arXiv:2406.12303, Fig. 7).

    Each datum keeps a region of noise of its own, but the far one and not the near one: what is left of the effect is
    not owed to shorter paths. Paths then cross in the middle, which the authors concede.

    Departs: the paper says that the noise is flipped and not how; here its sign is.

    Marginal: that of the coupling, mirrored at the origin; standard normal, exactly, around every coupling that
        permutes.
    Cost: the coupling's, and b d negations.

    Args:
        coupling: what pairs before the noise is turned round.

    Raises:
        ValueError: ``coupling`` is none.

    >>> x = 3 * torch.tensor([[1.0], [-1.0]]).repeat(32, 2)
    >>> bool((Flipped()(x) * x).mean() < -1)
    True
    """

    coupling: Coupling = field(default_factory=Assignment)

    def __post_init__(self) -> None:
        if not isinstance(self.coupling, Coupling):
            raise ValueError(f"coupling is {self.coupling!r}; it must be a coupling, such as Assignment()")

    def __call__(
        self,
        x: Float[Tensor, "b *dims"],
        cond: Tensor | None = None,
        generator: torch.Generator | None = None,
        *,
        index: Tensor | None = None,
        step: int = 0,
    ) -> Float[Tensor, "b *dims"]:
        """Return the negative of the coupling's noise, (b, *dims).

        Raises:
            ValueError: as the coupling.
        """
        return -self.coupling(x, cond, generator, index=index, step=step)

    def prior(self, data: Iterable[Tensor]) -> Prior:
        """Return the coupling's own start, mirrored at the origin.

        Raises:
            ValueError: the coupling's own start is neither a standard normal nor a ``Gaussian``.
        """
        own = self.coupling.prior(data)
        if isinstance(own, StandardNormal):
            return own
        if not isinstance(own, Gaussian):
            raise ValueError(f"no mirror of {type(own).__name__} is known; there is that of Gaussian")
        return Gaussian(-own.mean, own.directions, own.variances, own.scale)

    def memory(self) -> dict[str, Tensor]:
        """Return what the coupling remembers, which is its noise before the flip."""
        return self.coupling.memory() if isinstance(self.coupling, Remembering) else {}

    def remember(self, memory: dict[str, Tensor]) -> None:
        """Hand the coupling what it is to take over."""
        if isinstance(self.coupling, Remembering):
            self.coupling.remember(memory)
