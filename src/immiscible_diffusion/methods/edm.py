"""The method of "Elucidating the design space of diffusion-based generative models" (Karras et al., 2022)."""

from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor

from immiscible_diffusion.checks import check_alike, check_number
from immiscible_diffusion.methods._distances import distance
from immiscible_diffusion.methods._preconditioning import check_sigmas, denoised, scalings
from immiscible_diffusion.methods.samplers import Node, Sampler, check_sampler, solve
from immiscible_diffusion.registry import register
from immiscible_diffusion.schedules import karras, log_time
from immiscible_diffusion.tensors import expand, normal
from immiscible_diffusion.types import Float, Generators, Net, StockSampling

__all__ = ["Edm"]


@register("method")
@dataclass(frozen=True)
class Edm:
    """Train a preconditioned denoiser of x + sigma noise, and sample by Heun's method (arXiv:2206.00364).

    The net sees c_in x_t and t = (ln sigma - ln 0.002) / (ln 80 - ln 0.002), which is 0 at data and 1 at noise; an
    affine map of the paper's c_noise = ln(sigma) / 4.

    Departs: a sigma drawn outside [0.002, 80] (1.7 in 100,000) reaches the net as the nearer end.

    Args:
        p_mean: mean of ln(sigma) in training.
        p_std: its standard deviation, positive.
        sigma_data: standard deviation of the data; 0.5 suits images in [-1, 1].
        sigma_min: the last noise level of sampling but zero.
        sigma_max: the first.
        rho: how far the levels of sampling crowd towards little noise.
        sampler: ``heun`` (asks the net 2 steps - 1 times), ``ddim`` (Euler's step) or ``dpmpp``. Training does not
            depend on it.
        churn: S_churn, the fresh noise that ``heun`` and ``ddim`` add over the whole range of sigma; 0 is
            deterministic, and the only choice that is derived for coupled noise.

    Raises:
        ValueError: a range of sigma outside [0.002, 80], a parameter that is not positive, an unknown sampler, or churn
            below 0 or with ``dpmpp``.
    """

    p_mean: float = -1.2
    p_std: float = 1.2
    sigma_data: float = 0.5
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    sampler: Sampler = "heun"
    churn: float = 0.0

    def __post_init__(self) -> None:
        check_sigmas(self.sigma_min, self.sigma_max, self.rho, self.sigma_data)
        check_sampler(self.sampler, get_args(Sampler))
        check_number(p_std=self.p_std, above=0)
        if not 0 <= self.churn < float("inf") or (self.churn and self.sampler == "dpmpp"):
            raise ValueError(f"churn is {self.churn} with sampler {self.sampler!r}; it must be >= 0, and 0 for dpmpp")

    def draw_times(
        self,
        b: int,
        *,
        progress: float = 0.0,
        generator: torch.Generator | None = None,
        device: torch.device | str = "cpu",
    ) -> Float[Tensor, " b"]:
        """Return the noise levels sigma at which ``loss`` would train a batch of b rows, (b,)."""
        return (self.p_mean + self.p_std * normal((b,), generator, torch.device(device))).exp()

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
        mask: Tensor | None = None,
        times: Tensor | None = None,
    ) -> Float[Tensor, " b"]:
        """Return each row's weighted mean squared error of the denoised data, (b,), in float32 at least.

        The weight (sigma^2 + sigma_data^2) / (sigma sigma_data)^2 is 1 / c_out^2 and makes the error that of the net
        against (x - c_skip x_t) / c_out (eq. 8), in which form it is computed.

        Args:
            net: maps (c_in x_t, t, cond) to its part of the denoised data.
            x: data in model space.
            noise: the noise paired with x.
            cond: handed to the net.
            teacher: not used by this method.
            progress: not used by this method.
            generator: draws the noise levels.
            mask: True where x is real, in a shape that broadcasts over it: a row's loss is the mean over these places,
                0 where it has none. None: everywhere.
            times: what ``draw_times`` drew for these rows, (b,); drawn here by default.

        Raises:
            ValueError: x and noise differ in shape.

        >>> x, noise = torch.randn(2, 4, 3)
        >>> Edm().loss(lambda x_t, t, cond: torch.zeros_like(x_t), x, noise).shape
        torch.Size([4])
        """
        check_alike(x, noise)
        sigma = self.draw_times(len(x), generator=generator, device=x.device) if times is None else times
        sigma = sigma.to(x.dtype)
        wide, (_, _, scale) = expand(sigma, x), scalings(expand(sigma, x), sigma_data=self.sigma_data)
        target = scale * (wide / self.sigma_data * x - self.sigma_data * noise)  # (x - c_skip x_t) / c_out, cancelled
        predicted = net(scale * (x + wide * noise), log_time(sigma).float(), cond)
        return distance("l2", predicted, target, mask=mask)

    @torch.no_grad()
    def sample(
        self,
        net: Net,
        noise: Float[Tensor, "n *dims"],
        cond: Tensor | None = None,
        *,
        steps: int,
        generator: Generators = None,
    ) -> Float[Tensor, "n *dims"]:
        """Return data generated from the noise in this many steps, (n, *dims) (Algs. 1 and 2).

        Args:
            net: maps (c_in x_t, t, cond) to its part of the denoised data.
            noise: drawn from the coupling's prior; scaled by sigma_max here.
            cond: handed to the net.
            steps: noise levels above zero.
            generator: draws the fresh noise of churn; one, or one an image.

        Raises:
            ValueError: fewer than one step.
        """
        sigmas = karras(steps, low=self.sigma_min, high=self.sigma_max, rho=self.rho).tolist()
        nodes = [*(Node(sigma, 1.0, sigma) for sigma in sigmas), Node(0.0, 1.0, 0.0)]

        def estimate(x_t: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
            row_sigmas = torch.full((len(x_t),), sigma, device=x_t.device, dtype=x_t.dtype)
            x = denoised(net, x_t, row_sigmas, cond, sigma_data=self.sigma_data)
            return x, (x_t - x) / sigma

        return solve(estimate, sigmas[0] * noise, nodes, sampler=self.sampler, churn=self.churn, generator=generator)

    def stochastic(self, steps: int) -> bool:
        """Return whether sampling in this many steps adds noise of its own."""
        return self.churn > 0

    def stock_sampling(self) -> StockSampling:
        """Return diffusers' scheduler for this sampler."""
        options: dict[str, Any] = {key: getattr(self, key) for key in ("sigma_min", "sigma_max", "sigma_data", "rho")}
        stock, name = self.sampler == "ddim" and not self.churn, "EDMEulerScheduler"
        if self.sampler == "dpmpp":
            stock, name, options["lower_order_final"] = True, "EDMDPMSolverMultistepScheduler", False
        return StockSampling(
            name,
            options,
            differs="" if stock else f"{self.sampler!r} with churn {self.churn}",
            time="log_sigma",
            steps=18,
            begin="noise * scheduler.sigmas[0]",
            net_x="scheduler.scale_model_input(x, t)",
            net_t="1000 * t",
        )
