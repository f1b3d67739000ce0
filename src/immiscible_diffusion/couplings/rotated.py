"""Noise that is paired and then rotated: a control that keeps the pairing and takes away all nearness."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from immiscible_diffusion.checks import check_whole
from immiscible_diffusion.couplings._drop_in import Rows
from immiscible_diffusion.couplings._wrapper import Wrapper, mapped_start, noise_from
from immiscible_diffusion.couplings.assignment import Assignment
from immiscible_diffusion.priors import Gaussian
from immiscible_diffusion.registry import register
from immiscible_diffusion.streams import stream
from immiscible_diffusion.tensors import batch_rows
from immiscible_diffusion.types import Coupling, Float, Prior

__all__ = ["Rotated", "rotate"]

_ROUNDS = 3
"""Of signs and a Hartley transform: with three of them no structured row stays structured (seen with two as well)."""


@torch.no_grad()
def rotate(rows: Float[Tensor, "b d"], seed: int) -> Float[Tensor, "b d"]:
    """Return each row under one orthogonal map that the seed and d name, (b, d), float32 or float64.

    The map is three rounds of random signs and the discrete Hartley transform, x -> Re F x - Im F x with the unitary
    Fourier transform F, which is orthogonal and its own inverse.

    Cost: O(b d log d); the signs are 3 d draws on the CPU.

    >>> x = torch.tensor([[3.0, 0.0, 4.0]])
    >>> turned = rotate(x, seed=0)
    >>> torch.allclose(turned.norm(), x.norm()), torch.allclose(turned, x)
    (True, False)
    """
    rows = rows if rows.dtype == torch.float64 else rows.float()
    signs = torch.randint(0, 2, (_ROUNDS, rows.shape[1]), generator=stream(seed, 0, "noise")).mul_(2).sub_(1)
    for sign in signs.to(rows):
        turned = torch.fft.fft(rows * sign, norm="ortho")
        rows = turned.real - turned.imag
    return rows


@register("coupling")
@dataclass(frozen=True)
class Rotated(Wrapper):
    """Pair by another coupling and return its noise under one fixed rotation, the same for all rows and steps.

    Each datum keeps a region of noise of its own, of the same shape and just as easily told from the others'; but a
    path is no shorter than with independent noise. What a coupling gains beyond this control is owed to nearness.
    ``flipped`` puts the noise on the far side instead.

    Marginal: the coupling's, rotated; standard normal, exactly, around every coupling that permutes.
    Cost: the coupling's, and O(b d log d).

    Args:
        coupling: pairs the noise before it is rotated.
        seed: names the rotation; the same rotation at every step and for every training seed.

    Raises:
        ValueError: ``coupling`` is no coupling, or a negative seed.

    >>> x = 3 * torch.randn(64, 12, generator=torch.Generator().manual_seed(0))
    >>> near, apart = Assignment()(x), Rotated()(x)
    >>> bool((near * x).sum(1).mean() > 2 * (apart * x).sum(1).mean())
    True
    """

    coupling: Coupling = field(default_factory=Assignment)
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(seed=self.seed, at_least=0)

    def pair(self, x: Float[Tensor, "b *dims"], rows: Rows) -> Float[Tensor, "b *dims"]:
        """Return the coupling's noise, rotated, (b, *dims).

        Raises:
            ValueError: as the coupling.
        """
        noise = noise_from(self.coupling, x, rows)
        return rotate(batch_rows(noise), self.seed).reshape(x.shape).to(x.dtype)

    def prior(self, data: Iterable[Tensor]) -> Prior:
        """Return the start of the wrapped coupling, rotated.

        Raises:
            ValueError: that start is neither a standard normal nor a ``Gaussian``.
        """
        return mapped_start(self.coupling.prior(data), "rotated", self._rotated)

    def _rotated(self, start: Gaussian) -> Gaussian:
        mean, directions = rotate(start.mean.unsqueeze(0), self.seed)[0], rotate(start.directions, self.seed)
        return Gaussian(mean, directions, start.variances, start.scale)
