"""DDPM, DDIM, flow matching and Stable Diffusion: one class; schedule and prediction make the difference."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from immiscible_diffusion.checks import check_alike, check_choice
from immiscible_diffusion.methods._distances import distance
from immiscible_diffusion.methods.samplers import Node, Sampler, check_sampler, solve
from immiscible_diffusion.registry import register
from immiscible_diffusion.schedules import Betas, Straight
from immiscible_diffusion.tensors import expand
from immiscible_diffusion.types import Float, Generators, Net, Schedule, StockSampling

__all__ = ["Denoising", "Prediction"]

Prediction = Literal["eps", "x0", "v", "velocity"]


@register("method")
@dataclass(frozen=True)
class Denoising:
    """Train a net to undo x_t = alpha(t) x + sigma(t) noise, and sample by the DDIM step or a better solver's.

    Every prediction is a combination p x + q noise, and x_t is another; solving the two for x and noise gives
    one loss and one set of samplers for all. With ``Betas`` the default step is DDIM's with eta = 0 (Song et al.,
    arXiv:2010.02502, eq. 12), which is Euler's in sigma / alpha; with ``Straight`` it is the Euler step of flow
    matching. Deterministic sampling stays valid under a coupling of data and noise; eta > 0 is derived for
    independent pairs.

    Args:
        schedule: how much data and noise x_t holds.
        predict: what the net returns: ``eps`` the noise, ``x0`` the data, ``v`` = alpha noise - sigma x
            (Salimans and Ho, arXiv:2202.00512), ``velocity`` = noise - x, the straight path's d x_t / dt.
        sampler: ``ddim``, ``heun`` (asks the net twice a step) or ``dpmpp`` (DPM-Solver++(2M)). Training does not
            depend on it.
        eta: the share of DDPM's fresh noise in each step of ``ddim``, in [0, 1]; 0 is deterministic.
        clip: the largest absolute value of data in model space, 1 for pixels in [-1, 1]: each step of ``ddim`` clips
            its estimate of the data to it and takes the noise to be what is left of x_t, as DDPM's code and that of the
            paper's DDIM models do (diffusers: ``clip_sample`` with ``use_clipped_model_output``). Where eps is
            predicted, its errors near pure noise are divided by the small share of data in x_t. 0 for none, as for
            latents.

    Raises:
        ValueError: an unknown prediction or sampler, ``eps`` on a schedule that ends in pure noise, which then says
            nothing of the data, an eta outside [0, 1], a clip that is negative or not finite, or either with another
            sampler than ``ddim``.
    """

    schedule: Schedule = field(default_factory=Straight)
    predict: Prediction = "velocity"
    sampler: Sampler = "ddim"
    eta: float = 0.0
    clip: float = 0.0

    def __post_init__(self) -> None:
        check_choice("prediction", self.predict, Prediction)
        alpha, _ = self.schedule.coefficients(self.schedule.times(1))
        if self.predict == "eps" and not bool(alpha.all()):
            raise ValueError(f"{self.schedule} ends in pure noise, where eps leaves x open; predict velocity, v or x0")
        check_sampler(self.sampler, get_args(Sampler))
        if not 0 <= self.eta <= 1 or (self.eta and self.sampler != "ddim"):
            raise ValueError(
                f"eta is {self.eta} with sampler {self.sampler!r}; it must be in [0, 1], and 0 but for ddim"
            )
        if not 0 <= self.clip < math.inf or (self.clip and self.sampler != "ddim"):
            raise ValueError(
                f"clip is {self.clip} with sampler {self.sampler!r}; it must be finite, at least 0, and 0 but for ddim"
            )

    def draw_times(
        self,
        b: int,
        *,
        progress: float = 0.0,
        generator: torch.Generator | None = None,
        device: torch.device | str = "cpu",
    ) -> Float[Tensor, " b"]:
        """Return the times at which ``loss`` would train a batch of b rows, (b,), as the schedule draws them."""
        return self.schedule.draw(b, generator, torch.device(device))

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
        """Return each row's mean squared error of the prediction, (b,), in float32 at least.

        Args:
            net: maps (x_t, t, cond) to the prediction.
            x: data in model space.
            noise: the noise paired with x; x_t and the target are both made of it.
            cond: handed to the net.
            teacher: not used by this method.
            progress: not used by this method.
            generator: draws the times.
            mask: True where x is real, in a shape that broadcasts over it: a row's loss is the mean over these places,
                0 where it has none. None: everywhere.
            times: what ``draw_times`` drew for these rows, (b,); drawn here by default.

        Raises:
            ValueError: x and noise differ in shape.

        >>> x, noise = torch.randn(2, 4, 3)
        >>> Denoising().loss(lambda x_t, t, cond: noise - x, x, noise).tolist()
        [0.0, 0.0, 0.0, 0.0]
        """
        check_alike(x, noise)
        t = self.draw_times(len(x), generator=generator, device=x.device) if times is None else times
        alpha, sigma = (expand(each, x) for each in self.schedule.coefficients(t))
        p, q = self._parts(alpha, sigma)
        return distance("l2", net(alpha * x + sigma * noise, t, cond), p * x + q * noise, mask=mask)

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
        """Return data generated from the noise in this many steps, (n, *dims).

        Args:
            net: maps (x_t, t, cond) to the prediction.
            noise: drawn from the coupling's prior.
            cond: handed to the net.
            steps: evenly spaced times; ``ddim`` and ``dpmpp`` ask the net as often, ``heun`` 2 steps - 1 times.
            generator: draws the fresh noise where eta > 0; one, or one an image.

        Raises:
            ValueError: fewer than one step, or more than the schedule has levels.
        """
        times = self.schedule.times(steps)
        alpha, sigma = self.schedule.coefficients(times.double())
        nodes = [*map(Node, times.tolist(), alpha.tolist(), sigma.tolist()), Node(0.0, 1.0, 0.0)]

        def estimate(x_t: Tensor, t: float) -> tuple[Tensor, Tensor]:
            row_times = torch.full((len(x_t),), t, device=x_t.device, dtype=torch.float32)
            x, eps = self.split(x_t, row_times, net(x_t, row_times, cond).to(x_t.dtype))
            if self.clip:
                x = x.clamp(-self.clip, self.clip)
                alpha, sigma = (expand(share, x_t) for share in self.schedule.coefficients(row_times))
                eps = (x_t - alpha * x) / sigma
            return x, eps

        return solve(estimate, noise, nodes, sampler=self.sampler, eta=self.eta, generator=generator)

    def stochastic(self, steps: int) -> bool:
        """Return whether sampling in this many steps adds noise of its own."""
        return self.eta > 0 and steps > 1

    def stock_sampling(self) -> StockSampling:
        """Return diffusers' scheduler for this schedule, prediction and sampler, or why there is none."""
        return _flow(self) if isinstance(self.schedule, Straight) else _ddpm(self)

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


def _flow(method: Denoising) -> StockSampling:
    if method.clip:
        return StockSampling(why_none="diffusers' scheduler of flow matching does not clip")
    if method.predict != "velocity":
        return StockSampling(
            why_none=f"diffusers has no scheduler that predicts {method.predict!r} on {method.schedule}"
        )
    stock = method.sampler == "ddim" and not method.eta
    return StockSampling(
        "FlowMatchEulerDiscreteScheduler",
        differs="" if stock else f"{method.sampler!r} with eta {method.eta}",
        agrees="any number N of steps, with `sigmas=[1 - i / N for i in range(N)]`",
        set_timesteps="sigmas=[1 - i / 10 for i in range(10)]",
    )


def _ddpm(method: Denoising) -> StockSampling:
    schedule, predictions = method.schedule, {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}
    if not isinstance(schedule, Betas) or method.predict not in predictions:
        return StockSampling(why_none=f"diffusers has no scheduler that predicts {method.predict!r} on {schedule}")
    if schedule.levels != 1000:
        return StockSampling(
            why_none=f"the net counts 1000 levels as diffusers does, and the schedule has {schedule.levels}"
        )
    levels = {
        "num_train_timesteps": schedule.levels,
        "beta_start": schedule.first,
        "beta_end": schedule.last,
        "beta_schedule": schedule.kind,
        "prediction_type": predictions[method.predict],
        "timestep_spacing": "trailing",
    }
    clip = {"clip_sample": method.clip > 0, "clip_sample_range": method.clip or 1.0}  # which DDIMScheduler reads
    if not method.eta and method.clip in (0, 1):
        return _solver(method, levels | clip)
    step: dict[str, Any] = {"eta": method.eta} if method.eta else {}
    if method.clip:
        step["use_clipped_model_output"] = True
    agrees = "numbers of steps that divide 1,000: at others each of its steps ends at another level than the next takes"
    return StockSampling("DDIMScheduler", levels | clip, agrees=agrees, step=step)


def _solver(method: Denoising, options: dict[str, Any]) -> StockSampling:
    """Return DPM-Solver++, of first order for DDIM: the same step, but from each time to the next at every count.

    ``DDIMScheduler`` steps by 1000 // N levels and tells the net of others. Thresholds of 1 are clipping.
    """
    options |= {"algorithm_type": "dpmsolver++", "final_sigmas_type": "zero", "lower_order_final": False}
    options |= {"solver_order": 2 if method.sampler == "dpmpp" else 1, "solver_type": "midpoint"}
    options |= {"thresholding": method.clip > 0, "sample_max_value": 1.0}
    agrees = "any number of steps from 1 to 1,000"
    if method.sampler == "ddim":
        option = " with `use_clipped_model_output=True`" if method.clip else ""
        agrees += f" (`DDIMScheduler`{option} draws the same at numbers that divide 1,000)"
    differs = "'heun'" if method.sampler == "heun" else ""
    return StockSampling("DPMSolverMultistepScheduler", options, differs=differs, agrees=agrees)
