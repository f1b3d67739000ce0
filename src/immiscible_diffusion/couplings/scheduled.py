"""Wrappers that pair only after a warm-up, or only a share of the batches."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from immiscible_diffusion.checks import (
    check_finite,
    check_number,
    check_whole,
)
from immiscible_diffusion.couplings._drop_in import Rows
from immiscible_diffusion.couplings._misuse import warn_of
from immiscible_diffusion.couplings._wrapper import Wrapper, noise_from
from immiscible_diffusion.couplings.assignment import Assignment
from immiscible_diffusion.priors import Gaussian, StandardNormal
from immiscible_diffusion.registry import register
from immiscible_diffusion.tensors import normal_like
from immiscible_diffusion.types import Coupling, Float, Prior

__all__ = ["Mixed", "Warmup", "linear"]


def _step(coupling: object, rows: Rows, matters: bool) -> int:
    """Return the training step, 0 with a warning where the loop gives none and the coupling depends on it."""
    if rows.step is None and matters:
        name = type(coupling).__name__.lower()
        warn_of(
            f"{name} depends on the training step and was called without it, which counts as step 0 for ever: call it "
            "as couple(x, step=step)"
        )
    return rows.step or 0


def linear(step: int, *, start: float, end: float, steps: int) -> float:
    """Interpolate linearly from ``start`` at step 0 to ``end`` at ``steps``; constant afterwards.

    >>> [linear(step, start=0.0, end=0.5, steps=10) for step in (0, 5, 10, 99)]
    [0.0, 0.25, 0.5, 0.5]
    """
    return start + (end - start) * (min(step / steps, 1.0) if steps else 1.0)


@register("coupling")
@dataclass(frozen=True)
class Warmup(Wrapper):
    """Draw independent noise for the first steps, and pair from then on.

    Robot policies are trained this way: pairing starts when the task is mostly solved (Immiscible Diffusion Policy,
    arXiv:2610.09369). The call needs ``step``; without it every call counts as step 0.

    Marginal: standard normal before ``steps``, then the coupling's.
    Cost: b d normals before ``steps``, then the coupling's.

    Args:
        coupling: pairs after the warm-up.
        steps: how many training steps draw independent noise.

    Raises:
        ValueError: ``coupling`` is no coupling, or ``steps`` is no whole number >= 0.

    >>> couple, x = Warmup(steps=100), 9 * torch.tensor([[1.0, 1.0], [-1.0, -1.0]]).repeat(256, 1)
    >>> [bool((couple(x, step=step) * x).mean() > 3) for step in (99, 100)]
    [False, True]
    """

    coupling: Coupling = field(default_factory=Assignment)
    steps: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(steps=self.steps, at_least=0)

    def pair(self, x: Float[Tensor, "b *dims"], rows: Rows) -> Float[Tensor, "b *dims"]:
        """Return independent noise before ``steps``, then the coupling's, (b, *dims).

        Raises:
            ValueError: NaN or infinity on the CPU, or an error of the coupling.
        """
        if _step(self, rows, self.steps > 0) < self.steps:
            return _independent(x, rows.generator)
        return noise_from(self.coupling, x, rows)


@register("coupling")
@dataclass(frozen=True)
class Mixed(Wrapper):
    """Pair a share of the batches, and draw independent noise for the others.

    The share changes linearly from ``start`` to ``end`` over ``steps`` and is constant afterwards. Whole batches are
    drawn, not rows, because an assignment is better the more rows it sees. The draw depends on neither data nor noise,
    so the noise's distribution is a mixture of the two. The call needs ``step``; without it the share is ``start``.

    Marginal: the mixture of the standard normal and the coupling's, hence standard normal, exactly, around every
        coupling that permutes.
    Cost: the share's part of the coupling's, and b d normals for the rest.

    Args:
        coupling: pairs its share of the batches.
        start: the share of paired batches at step 0, in 0..1.
        end: the share from ``steps`` on, in 0..1.
        steps: how many training steps the share takes from ``start`` to ``end``.

    Raises:
        ValueError: ``coupling`` is no coupling, a share outside 0..1, or ``steps`` is no whole number >= 0.

    >>> couple, x = Mixed(start=0.0, end=1.0, steps=10), torch.randn(4, 2)
    >>> couple(x, step=5).shape
    torch.Size([4, 2])
    """

    coupling: Coupling = field(default_factory=Assignment)
    start: float = 0.5
    end: float = 0.5
    steps: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(steps=self.steps, at_least=0)
        check_number(start=self.start, end=self.end, at_least=0, at_most=1)

    def pair(self, x: Float[Tensor, "b *dims"], rows: Rows) -> Float[Tensor, "b *dims"]:
        """Return the coupling's noise or independent noise, as the generator decides, (b, *dims).

        A share of 0 or 1 needs no draw: the noise is then the noise of one of the two, bit for bit.

        Raises:
            ValueError: NaN or infinity on the CPU, or an error of the coupling.
        """
        step = _step(self, rows, self.steps > 0 and self.start != self.end)
        share = linear(step, start=self.start, end=self.end, steps=self.steps)
        source = x.device if rows.generator is None else rows.generator.device
        drawn = torch.rand((), generator=rows.generator, device=source, dtype=torch.float32) if 0 < share < 1 else None
        if share == 0 or (drawn is not None and bool(drawn >= share)):
            return _independent(x, rows.generator)
        return noise_from(self.coupling, x, rows)

    def prior(self, data: Iterable[Tensor]) -> Prior:
        """Return the Gaussian with the moments of the mixture at the end of the schedule.

        With share s, and mean m and covariance S of the wrapped coupling's start, the mean is s m and the covariance
        s S + (1 - s) I + s (1 - s) m m^T.

        Raises:
            ValueError: that start is neither a standard normal nor a ``Gaussian``.
        """
        start = self.coupling.prior(data)
        if isinstance(start, StandardNormal) or self.end == 0:
            return StandardNormal()
        if self.end == 1:
            return start
        if not isinstance(start, Gaussian):
            raise ValueError(f"a {type(start).__name__} has no mixture with the normal here; a Gaussian has")
        return _mixture(start, self.end)


def _independent(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Return standard normal noise; on the CPU, refuse data now that the coupling would refuse after the warm-up."""
    if x.device.type == "cpu":
        check_finite(x=x)
    return normal_like(x, generator)


def _mixture(prior: Gaussian, share: float) -> Gaussian:
    """Return the Gaussian with the moments of a draw from ``prior`` with probability ``share``, else from N(0, I)."""
    mean, directions = prior.mean.double(), prior.directions.double()
    basis = torch.linalg.qr(torch.cat([directions, mean.unsqueeze(0)]).T).Q
    along, shift = directions @ basis, mean @ basis
    excess = share * (along.T * (prior.variances.double() - float(prior.scale))) @ along
    values, vectors = torch.linalg.eigh(excess + share * (1 - share) * torch.outer(shift, shift))
    scale = share * float(prior.scale) + 1 - share
    turned = (basis @ vectors).T.contiguous()
    return Gaussian((share * mean).float(), turned.float(), (scale + values).float(), scale)
