"""Noise schedules: x_t = alpha(t) x + sigma(t) noise, with t in [0, 1], 0 data and 1 noise.

Methods whose noise level is sigma alone (x_t = x + sigma noise) place it at t = ``log_time(sigma)``, so that t has the
same meaning for every net.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from immiscible_diffusion.checks import check_choice, check_number, check_whole
from immiscible_diffusion.registry import register
from immiscible_diffusion.tensors import normal
from immiscible_diffusion.types import Float

__all__ = ["SIGMAS", "Betas", "Straight", "karras", "log_sigma", "log_time", "uniform"]

SIGMAS = 0.002, 80.0
"""The sigmas that stand at t = 0 and t = 1, the ends of sampling of Karras et al. (arXiv:2206.00364, Table 1)."""

Growth = Literal["linear", "scaled_linear"]


@register("schedule")
@dataclass(frozen=True)
class Straight:
    """The straight path of flow matching: alpha = 1 - t, sigma = t (Lipman et al., arXiv:2210.02747).

    Args:
        logit_mean: mean of ln(t / (1 - t)) where training draws times logit-normally, as Stable Diffusion 3 does at 0
            and 1 (Esser et al., arXiv:2403.03206, section 3.1); above 0 there is more noise.
        logit_std: its standard deviation; 0 draws times uniformly.

    Raises:
        ValueError: values that are not finite, a negative deviation, or a mean without one.
    """

    logit_mean: float = 0.0
    logit_std: float = 0.0

    def __post_init__(self) -> None:
        check_number(logit_mean=self.logit_mean)
        check_number(logit_std=self.logit_std, at_least=0)
        if self.logit_mean and not self.logit_std:
            raise ValueError(
                f"logit_mean is {self.logit_mean} and logit_std 0, which draws times uniformly; set it, too"
            )

    def draw(self, b: int, generator: torch.Generator | None, device: torch.device) -> Float[Tensor, " b"]:
        """Return times in [0, 1), (b,): uniform, or logit-normal."""
        if not self.logit_std:
            return uniform(b, generator, device)
        t = (self.logit_mean + self.logit_std * normal((b,), generator, device)).sigmoid()
        return t.clamp(max=1 - 2**-24)  # the largest float32 below 1

    def times(self, steps: int) -> Float[Tensor, " steps"]:
        """Return 1, 1 - 1/steps, ..., 1/steps, (steps,).

        >>> Straight().times(4).tolist()
        [1.0, 0.75, 0.5, 0.25]
        """
        check_whole(steps=steps)
        return 1 - torch.arange(steps) / steps

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

    kind: Growth = "linear"
    levels: int = 1000
    first: float = 1e-4
    last: float = 0.02

    def __post_init__(self) -> None:
        check_choice("beta schedule", self.kind, Growth)
        check_whole(levels=self.levels)
        if not 0 < self.first <= self.last < 1:
            raise ValueError(f"first is {self.first} and last {self.last}; they must be 0 < first <= last < 1")

    def betas(self) -> Float[Tensor, " levels"]:
        """Return beta of every level, (levels,), in float64."""
        power = 0.5 if self.kind == "scaled_linear" else 1.0
        grid = torch.linspace(self.first**power, self.last**power, self.levels, dtype=torch.float64)
        return grid ** (1 / power)

    def draw(self, b: int, generator: torch.Generator | None, device: torch.device) -> Float[Tensor, " b"]:
        """Return times of uniformly drawn levels, (b,)."""
        level = (uniform(b, generator, device) * self.levels).floor().clamp(max=self.levels - 1)
        return level / self.levels

    def times(self, steps: int) -> Float[Tensor, " n"]:
        """Return evenly spaced times from the noisiest level down, (n,), with n = steps but for the counts below.

        The spacing is "trailing" (Lin et al., arXiv:2305.08891, Table 2): sampling starts at the level that is
        almost pure noise. A "leading" grid starts a few-step sampler far below it.

        Every time equals diffusers', so that exports draw the same images. Their arithmetic, in float64,
        gives one more time for 62 of the counts up to 1,000 (61, 103, 121, ...): the last, -1 / levels, whose level is
        that of 0.

        >>> Betas().times(4).tolist()
        [0.9990000128746033, 0.7490000128746033, 0.49900001287460327, 0.24899999797344208]

        Raises:
            ValueError: fewer than one step or more steps than levels.
        """
        check_whole(steps=steps)
        if steps > self.levels:
            raise ValueError(f"{steps} sampling steps; this schedule has {self.levels} levels")
        level = torch.from_numpy(
            np.arange(self.levels, 0, -self.levels / steps).round() - 1
        )  # as diffusers, to the bit
        return (level / self.levels).float()

    def coefficients(self, t: Float[Tensor, " b"]) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
        """Return sqrt(abar) and sqrt(1 - abar) of the levels at these times, each (b,)."""
        abar = torch.cumprod(1 - self.betas(), 0).to(t.device)
        kept = abar[(t * self.levels).round().long().clamp(min=0)]
        return kept.sqrt().to(t.dtype), (1 - kept).sqrt().to(t.dtype)


def log_time(sigma: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """Return the times at which noise of these sigmas stands, in [0, 1], (*b).

    They are even in ln(sigma) between the ends of ``SIGMAS``; a sigma beyond an end stands at that end.

    >>> log_time(torch.tensor([0.002, 0.4, 80.0])).tolist()
    [0.0, 0.5, 1.0]
    """
    low, high = map(math.log, SIGMAS)
    return ((sigma.log() - low) / (high - low)).clamp(0, 1)


def log_sigma(t: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """Return ln(sigma) at these times, (*b): the inverse of ``log_time``.

    >>> log_sigma(torch.tensor([0.5])).exp()
    tensor([0.4000])
    """
    low, high = map(math.log, SIGMAS)
    return low + (high - low) * t


def karras(levels: int, *, low: float, high: float, rho: float = 7.0) -> Float[Tensor, " levels"]:
    """Return noise levels from ``high`` down to ``low``, even in sigma^(1 / rho), (levels,), float64.

    Karras et al., arXiv:2206.00364, eq. 5, without the zero at its end. A single level is ``high``.

    Raises:
        ValueError: fewer than one level.

    >>> karras(3, low=0.002, high=80.0).tolist()
    [80.0, 2.515218976147159, 0.002]
    """
    check_whole(levels=levels)
    share = torch.linspace(0, 1, levels, dtype=torch.float64)
    first, last = high ** (1 / rho), low ** (1 / rho)
    sigmas: Tensor = (first + share * (last - first)) ** rho
    sigmas[0] = high  # the roots round
    if levels > 1:
        sigmas[-1] = low
    return sigmas


def uniform(b: int, generator: torch.Generator | None, device: torch.device) -> Float[Tensor, " b"]:
    """Return values uniform on [0, 1), (b,), float32, drawn on the generator's device."""
    source: Any = device if generator is None else generator.device
    return torch.rand(b, generator=generator, device=source, dtype=torch.float32).to(device)
