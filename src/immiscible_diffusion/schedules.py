"""Noise schedules: x_t = alpha(t) x + sigma(t) noise, with t in [0, 1], 0 data and 1 noise."""

from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from immiscible_diffusion.registry import register
from immiscible_diffusion.types import Float

__all__ = ["Betas", "Schedule", "Straight"]


@runtime_checkable
class Schedule(Protocol):
    """Which times are trained and sampled, and how much data and noise x_t holds there."""

    def draw(self, b: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
        """Return random training times, (b,), float32."""
        ...

    def times(self, steps: int) -> Tensor:
        """Return the times at which sampling asks the net, falling, (steps,), float32."""
        ...

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return alpha and sigma at these times, each (b,)."""
        ...


@register("schedule")
@dataclass(frozen=True)
class Straight:
    """The straight path of flow matching: alpha = 1 - t, sigma = t (Lipman et al., arXiv:2210.02747)."""

    def draw(self, b: int, generator: torch.Generator | None, device: torch.device) -> Float[Tensor, " b"]:
        """Return times uniform on [0, 1), (b,)."""
        return _uniform(b, generator, device)

    def times(self, steps: int) -> Float[Tensor, " steps"]:
        """Return 1, 1 - 1/steps, ..., 1/steps, (steps,).

        >>> Straight().times(4).tolist()
        [1.0, 0.75, 0.5, 0.25]
        """
        return 1 - torch.arange(_positive(steps)) / steps

    def coefficients(self, t: Float[Tensor, " b"]) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
        """Return 1 - t and t, each (b,)."""
        return 1 - t, t


@register("schedule")
@dataclass(frozen=True)
class Betas:
    """The discrete schedule of DDPM (Ho et al., arXiv:2006.11239, section 4).

    Level i of ``levels`` stands at t = i / levels. It holds sqrt(abar_i) of data and sqrt(1 - abar_i) of noise.

    Args:
        kind: how beta grows: ``linear`` (DDPM) or ``scaled_linear`` (its square root does; Stable Diffusion).
        levels: how many noise levels are trained.
        first: beta of the first level.
        last: beta of the last level.

    Raises:
        ValueError: an unknown kind, no levels, or betas outside 0 < first <= last < 1.
    """

    kind: Literal["linear", "scaled_linear"] = "linear"
    levels: int = 1000
    first: float = 1e-4
    last: float = 0.02

    def __post_init__(self) -> None:
        if self.kind not in ("linear", "scaled_linear"):
            raise ValueError(f"no beta schedule named {self.kind!r}; there are ['linear', 'scaled_linear']")
        if self.levels < 1 or not 0 < self.first <= self.last < 1:
            raise ValueError(f"{self} needs levels >= 1 and 0 < first <= last < 1")

    def betas(self) -> Float[Tensor, " levels"]:
        """Return beta of every level, (levels,), in float64."""
        power = 0.5 if self.kind == "scaled_linear" else 1.0
        grid = torch.linspace(self.first**power, self.last**power, self.levels, dtype=torch.float64)
        return grid ** (1 / power)

    def draw(self, b: int, generator: torch.Generator | None, device: torch.device) -> Float[Tensor, " b"]:
        """Return times of uniformly drawn levels, (b,)."""
        level = (_uniform(b, generator, device) * self.levels).floor().clamp(max=self.levels - 1)
        return level / self.levels

    def times(self, steps: int) -> Float[Tensor, " steps"]:
        """Return evenly spaced times from the noisiest level down, (steps,).

        The spacing is "trailing" (Lin et al., arXiv:2305.08891, Table 2): sampling starts at the level that is
        almost pure noise. A "leading" grid starts a few-step sampler far below it.

        >>> Betas().times(4).tolist()
        [0.9990000128746033, 0.7490000128746033, 0.49900001287460327, 0.24899999797344208]

        Raises:
            ValueError: fewer than one step or more steps than levels.
        """
        if _positive(steps) > self.levels:
            raise ValueError(f"{steps} sampling steps; this schedule has {self.levels} levels")
        level = self.levels * (1 - torch.arange(steps, dtype=torch.float64) / steps)
        return ((level.round() - 1) / self.levels).float()

    def coefficients(self, t: Float[Tensor, " b"]) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
        """Return sqrt(abar) and sqrt(1 - abar) of the levels at these times, each (b,)."""
        abar = torch.cumprod(1 - self.betas(), 0).to(t.device)
        kept = abar[(t * self.levels).round().long()]
        return kept.sqrt().to(t.dtype), (1 - kept).sqrt().to(t.dtype)


def _uniform(b: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
    source: Any = device if generator is None else generator.device
    return torch.rand(b, generator=generator, device=source).to(device)


def _positive(steps: int) -> int:
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps is {steps!r}; sampling needs a whole number of steps, at least 1")
    return steps
