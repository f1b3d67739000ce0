"""Couplings that begin late, or that pair a share of the batches, around any other coupling."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from immiscible_diffusion.couplings._cost import check_finite
from immiscible_diffusion.couplings.assignment import Assignment
from immiscible_diffusion.priors import Gaussian, StandardNormal
from immiscible_diffusion.registry import register
from immiscible_diffusion.tensors import batch_rows, normal_like
from immiscible_diffusion.types import Coupling, Float, Prior, Remembering

__all__ = ["Mixed", "Warmup", "linear"]


def linear(step: int, *, start: float, end: float, steps: int) -> float:
    """Return what goes in a line from ``start`` at step 0 to ``end`` at ``steps`` and stays there.

    >>> [linear(step, start=0.0, end=0.5, steps=10) for step in (0, 5, 10, 99)]
    [0.0, 0.25, 0.5, 0.5]
    """
    return start + (end - start) * (min(step / steps, 1.0) if steps else 1.0)


@register("coupling")
@dataclass(frozen=True)
class Warmup:
    """Draw independent noise for the first steps, and pair from then on.

    Robot policies are trained so, with pairing from when the task is mostly solved (Immiscible Diffusion Policy,
    arXiv:2610.09369). The call needs ``step``; without it every call is the first.

    Marginal: standard normal before ``steps``, then the coupling's.
    Cost: b d normals before ``steps``, then the coupling's.

    Args:
        coupling: what pairs after the warm-up.
        steps: how many training steps draw independent noise.

    Raises:
        ValueError: ``coupling`` is none, or ``steps`` is no whole number >= 0.

    >>> couple, x = Warmup(steps=100), 9 * torch.ones(64, 2) * torch.tensor([[1.0], [-1.0]]).repeat(32, 1)
    >>> [bool((couple(x, step=step) * x).mean() > 4) for step in (99, 100)]
    [False, True]
    """

    coupling: Coupling = field(default_factory=Assignment)
    steps: int = 1000

    def __post_init__(self) -> None:
        _check(self.coupling, self.steps)

    def __call__(
        self,
        x: Float[Tensor, "b *dims"],
        cond: Tensor | None = None,
        generator: torch.Generator | None = None,
        *,
        index: Tensor | None = None,
        step: int = 0,
    ) -> Float[Tensor, "b *dims"]:
        """Return independent noise before ``steps``, then the coupling's, (b, *dims).

        Raises:
            ValueError: no floating batch, NaN or infinity on the CPU, or what the coupling raises.
        """
        if step < self.steps:
            return _independent(x, generator)
        return self.coupling(x, cond, generator, index=index, step=step)

    def prior(self, data: Iterable[Tensor]) -> Prior:
        """Return the coupling's own."""
        return self.coupling.prior(data)

    def memory(self) -> dict[str, Tensor]:
        """Return what the coupling remembers."""
        return self.coupling.memory() if isinstance(self.coupling, Remembering) else {}

    def remember(self, memory: dict[str, Tensor]) -> None:
        """Hand the coupling what it is to take over."""
        if isinstance(self.coupling, Remembering):
            self.coupling.remember(memory)


@register("coupling")
@dataclass(frozen=True)
class Mixed:
    """Pair a share of the batches, and draw independent noise for the others.

    The share runs in a line from ``start`` to ``end`` over ``steps`` and stays there. Whole batches are drawn, not
    rows: an assignment is the better the more rows it sees. The draw looks at neither data nor noise, so that the
    noise's law is a mixture of the two. The call needs ``step``; without it the share is ``start``.

    Marginal: the mixture of the standard normal and the coupling's, hence standard normal, exactly, around every
        coupling that permutes.
    Cost: the share's part of the coupling's, and b d normals for the rest.

    Args:
        coupling: what pairs.
        start: the share of paired batches at step 0, in 0..1.
        end: the share from ``steps`` on, in 0..1.
        steps: how many training steps the share takes from ``start`` to ``end``.

    Raises:
        ValueError: ``coupling`` is none, a share outside 0..1, or ``steps`` is no whole number >= 0.

    >>> couple, x = Mixed(start=0.0, end=1.0, steps=10), torch.randn(4, 2)
    >>> couple(x, step=5).shape
    torch.Size([4, 2])
    """

    coupling: Coupling = field(default_factory=Assignment)
    start: float = 0.5
    end: float = 0.5
    steps: int = 0

    def __post_init__(self) -> None:
        _check(self.coupling, self.steps)
        for name in ("start", "end"):
            share = getattr(self, name)
            if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
                raise ValueError(f"{name} is {share!r}; a share of batches lies in 0..1")

    def __call__(
        self,
        x: Float[Tensor, "b *dims"],
        cond: Tensor | None = None,
        generator: torch.Generator | None = None,
        *,
        index: Tensor | None = None,
        step: int = 0,
    ) -> Float[Tensor, "b *dims"]:
        """Return the coupling's noise or independent noise, as the generator decides, (b, *dims).

        A share of 0 or 1 draws nothing to decide: the noise is then that of either alone, draw for draw.

        Raises:
            ValueError: no floating batch, NaN or infinity on the CPU, or what the coupling raises.
        """
        batch_rows(x)
        share = linear(step, start=self.start, end=self.end, steps=self.steps)
        source = x.device if generator is None else generator.device
        if share < 1 and (share == 0 or bool(torch.rand((), generator=generator, device=source) >= share)):
            return _independent(x, generator)
        return self.coupling(x, cond, generator, index=index, step=step)

    def prior(self, data: Iterable[Tensor]) -> Prior:
        """Return the Gaussian with the moments of the mixture at the end of the schedule.

        With share s, and mean m and covariance S of the coupling's own start, the mean is s m and the covariance
        s S + (1 - s) I + s (1 - s) m m^T.

        Raises:
            ValueError: the coupling's own start is neither a standard normal nor a ``Gaussian``.
        """
        own = self.coupling.prior(data)
        if isinstance(own, StandardNormal) or self.end == 0:
            return StandardNormal()
        if self.end == 1:
            return own
        if not isinstance(own, Gaussian):
            raise ValueError(
                f"the start of {type(own).__name__} and the normal have no mixture here; there is Gaussian's"
            )
        return _mixture(own, self.end)

    def memory(self) -> dict[str, Tensor]:
        """Return what the coupling remembers."""
        return self.coupling.memory() if isinstance(self.coupling, Remembering) else {}

    def remember(self, memory: dict[str, Tensor]) -> None:
        """Hand the coupling what it is to take over."""
        if isinstance(self.coupling, Remembering):
            self.coupling.remember(memory)


def _independent(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Return noise like x; data that the coupling would refuse later are refused at once, on the CPU."""
    batch_rows(x)
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


def _check(coupling: Coupling, steps: int) -> None:
    if not isinstance(coupling, Coupling):
        raise ValueError(f"coupling is {coupling!r}; it must be a coupling, such as Assignment()")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
        raise ValueError(f"steps is {steps!r}; it must be a whole number >= 0")
