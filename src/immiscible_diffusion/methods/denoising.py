"""DDPM, DDIM, flow matching and Stable Diffusion: one class, told apart by schedule and prediction."""

from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

from immiscible_diffusion.registry import register
from immiscible_diffusion.schedules import Schedule, Straight
from immiscible_diffusion.tensors import expand
from immiscible_diffusion.types import Float, Net

__all__ = ["Denoising", "Prediction"]

Prediction = Literal["eps", "x0", "v", "velocity"]


@register("method")
@dataclass(frozen=True)
class Denoising:
    """Train a net to undo x_t = alpha(t) x + sigma(t) noise, and sample by the deterministic DDIM step.

    Every prediction is a combination p x + q noise, and x_t is another; solving the two for x and noise gives
    one loss and one sampler for all. With ``Betas`` the step is DDIM's with eta = 0 (Song et al.,
    arXiv:2010.02502, eq. 12); with ``Straight`` it is the Euler step of flow matching. Deterministic sampling
    stays valid under a coupling of data and noise; ancestral sampling is derived for independent pairs.

    Args:
        schedule: how much data and noise x_t holds.
        predict: what the net returns: ``eps`` the noise, ``x0`` the data, ``v`` = alpha noise - sigma x
            (Salimans and Ho, arXiv:2202.00512), ``velocity`` = noise - x, the straight path's d x_t / dt.

    Raises:
        ValueError: an unknown prediction, or ``eps`` on a schedule that ends in pure noise, which then says
            nothing of the data.
    """

    schedule: Schedule = field(default_factory=Straight)
    predict: Prediction = "velocity"

    def __post_init__(self) -> None:
        if self.predict not in get_args(Prediction):
            raise ValueError(f"no prediction named {self.predict!r}; there are {list(get_args(Prediction))}")
        alpha, _ = self.schedule.coefficients(self.schedule.times(1))
        if self.predict == "eps" and not bool(alpha.all()):
            raise ValueError(f"{self.schedule} ends in pure noise, where eps leaves x open; predict velocity, v or x0")

    def loss(
        self,
        net: Net,
        x: Float[Tensor, "b *dims"],
        noise: Float[Tensor, "b *dims"],
        cond: Tensor | None = None,
        *,
        teacher: Net | None = None,
        progress: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, " b"]:
        """Return each row's mean squared error of the prediction, (b,), in float32.

        Args:
            net: maps (x_t, t, cond) to the prediction.
            x: data in model space.
            noise: the noise paired with x; x_t and the target are both made of it.
            cond: handed to the net.
            teacher: not used by this method.
            progress: not used by this method.
            generator: draws the times.

        Raises:
            ValueError: x and noise differ in shape.

        >>> x, noise = torch.randn(2, 4, 3)
        >>> Denoising().loss(lambda x_t, t, cond: noise - x, x, noise).tolist()
        [0.0, 0.0, 0.0, 0.0]
        """
        if x.shape != noise.shape:
            raise ValueError(f"x has shape {tuple(x.shape)} and noise {tuple(noise.shape)}; they must be equal")
        t = self.schedule.draw(len(x), generator, x.device)
        alpha, sigma = (expand(each, x) for each in self.schedule.coefficients(t))
        p, q = self._parts(alpha, sigma)
        error = net(alpha * x + sigma * noise, t, cond).float() - (p * x + q * noise).float()
        return error.square().flatten(1).mean(1) if error.ndim > 1 else error.square()

    @torch.no_grad()
    def sample(
        self,
        net: Net,
        noise: Float[Tensor, "n *dims"],
        cond: Tensor | None = None,
        *,
        steps: int,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "n *dims"]:
        """Return data generated from the noise in this many net evaluations, (n, *dims).

        Args:
            net: maps (x_t, t, cond) to the prediction.
            noise: drawn from the coupling's prior.
            cond: handed to the net.
            steps: how many times the net is asked; evenly spaced times.
            generator: not used: the sampler is deterministic.

        Raises:
            ValueError: fewer than one step, or more than the schedule has levels.
        """
        x_t, times = noise, self.schedule.times(steps).to(noise.device)
        for i in range(steps):
            t = times[i].expand(len(noise))
            x, eps = self.split(x_t, t, net(x_t, t, cond).to(x_t.dtype))
            if i == steps - 1:
                return x
            alpha, sigma = self.schedule.coefficients(times[i + 1 : i + 2])
            x_t = alpha * x + sigma * eps
        return x_t

    def split(
        self, x_t: Float[Tensor, "b *dims"], t: Float[Tensor, " b"], prediction: Float[Tensor, "b *dims"]
    ) -> tuple[Float[Tensor, "b *dims"], Float[Tensor, "b *dims"]]:
        """Return the data and the noise that a prediction at x_t implies, each (b, *dims).

        Where x_t is pure data the noise is not determined, and comes out as NaN or infinity.
        """
        alpha, sigma = (expand(each, x_t) for each in self.schedule.coefficients(t))
        p, q = self._parts(alpha, sigma)
        determinant = alpha * q - sigma * p
        return (q * x_t - sigma * prediction) / determinant, (alpha * prediction - p * x_t) / determinant

    def _parts(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Return p and q of the predicted combination p x + q noise."""
        zero, one = torch.zeros_like(alpha), torch.ones_like(alpha)
        parts = {"x0": (one, zero), "eps": (zero, one), "v": (-sigma, alpha), "velocity": (-one, one)}
        return parts[self.predict]
