"""Consistency training: one net that maps every point of a path of noise to the path's beginning."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from immiscible_diffusion.checks import check_alike, check_choice, check_number, check_whole
from immiscible_diffusion.methods._consistency_levels import Draw, Growth, chances, level_count
from immiscible_diffusion.methods._distances import Distance, distance
from immiscible_diffusion.methods._preconditioning import check_sigmas, denoised
from immiscible_diffusion.methods.samplers import fresh_like
from immiscible_diffusion.registry import register
from immiscible_diffusion.schedules import karras, uniform
from immiscible_diffusion.tensors import expand
from immiscible_diffusion.types import Float, Generators, Int, Net, StockSampling

__all__ = ["Consistency", "improved"]

_LEVELS = 40
"""The levels that sampling picks from, as diffusers' ``CMStochasticIterativeScheduler`` does by default."""


@register("method")
@dataclass(frozen=True)
class Consistency:
    """Train f(x + sigma noise, sigma) to be the same at two adjacent noise levels of one pair, by either recipe.

    The defaults are consistency training on CIFAR-10 (Song et al., arXiv:2303.01469, Alg. 3 and Table 3), with l2 for
    LPIPS. That table takes ``teacher = 0.95`` for larger images, and ``last = 200`` for ImageNet. Improved
    consistency training (Song and Dhariwal, arXiv:2310.14189, Table 1) is ``improved()``, or in a file::

        method = { use = "consistency", growth = "doubling", first = 10, last = 1280, draw = "lognormal",
                   weight = "inverse_gap", teacher = 0.0, distance = "pseudo_huber" }

    f = c_skip x_t + c_out net(c_in x_t, t) with t = (ln sigma - ln 0.002) / (ln 80 - ln 0.002), which is 0 at data and
    1 at noise. Both levels hold the same noise, and both nets drop the same units.

    Departs: the released code puts N - 1 for N into the teacher's decay; here it is the paper's.

    Args:
        growth: how the number N of levels grows with training.
        first: s0, the steps between levels at the start; at least 2 where they grow as a ``root``, as published.
        last: s1, the steps between levels at the end.
        teacher: mu0 of the averaged teacher, whose decay is mu0^(s0 / N); 0 makes the net its own teacher.
        draw: how the trained pair of levels is drawn.
        weight: ``none``, or ``inverse_gap``: 1 / (sigma_after - sigma_before)^gap_power.
        distance: between the two predictions; ``lpips`` needs RGB images in [-1, 1].
        lpips_weights: the safetensors file of ``lpips``.
        sigma_min: the noise where f is the identity.
        sigma_max: the noise where sampling starts.
        rho: how far the levels crowd towards little noise.
        sigma_data: standard deviation of the data; 0.5 suits images in [-1, 1].
        p_mean: mean of ln(sigma) where the draw is ``lognormal``.
        p_std: its standard deviation, positive.
        gap_power: how fast the weight ``inverse_gap`` falls with the gap: 1 as published; below 0 it rises, which
            trains high noise harder.

    Raises:
        ValueError: an unknown choice, a value outside its range, or ``lpips`` without weights or weights without it.
    """

    growth: Growth = "root"
    first: int = 2
    last: int = 150
    teacher: float = 0.9
    draw: Draw = "uniform"
    weight: Literal["none", "inverse_gap"] = "none"
    distance: Distance = "l2"
    lpips_weights: str = ""
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    sigma_data: float = 0.5
    p_mean: float = -1.1
    p_std: float = 2.0
    gap_power: float = 1.0

    def __post_init__(self) -> None:
        choices = {"growth": Growth, "draw": Draw, "weight": Literal["none", "inverse_gap"], "distance": Distance}
        for name, known in choices.items():
            check_choice(name, getattr(self, name), known)
        if not 1 <= self.first <= self.last:
            raise ValueError(f"first is {self.first} and last {self.last}; they must be 1 <= first <= last")
        check_number(teacher=self.teacher, at_least=0, below=1)
        check_number(p_mean=self.p_mean, gap_power=self.gap_power)
        check_number(p_std=self.p_std, above=0)
        if (self.distance == "lpips") != bool(self.lpips_weights):
            raise ValueError(
                f"distance is {self.distance!r} and lpips_weights {self.lpips_weights!r}; 'lpips' needs a file of "
                f"weights, and nothing else does"
            )
        check_sigmas(self.sigma_min, self.sigma_max, self.rho, self.sigma_data)
        if not bool(chances(self.levels(0.0), self.draw, self.p_mean, self.p_std).isfinite().all()):
            raise ValueError(
                f"p_mean is {self.p_mean} and p_std {self.p_std}: no level between {self.sigma_min} and "
                f"{self.sigma_max} would be drawn; p_mean is a logarithm, -1.1 as published"
            )

    def levels(self, progress: float) -> Float[Tensor, " n"]:
        """Return the noise levels at this share of training, rising, (n,), float64."""
        count = level_count(progress, growth=self.growth, first=self.first, last=self.last)
        return karras(count, low=self.sigma_min, high=self.sigma_max, rho=self.rho).flip(0)

    def teacher_decay(self, progress: float) -> float:
        """Return the decay of the teacher's average at this share of training; 0 means the net itself.

        >>> [round(Consistency().teacher_decay(p), 4) for p in (0.0, 0.5, 1.0)]
        [0.9, 0.998, 0.9986]
        """
        if self.teacher == 0:
            return 0.0
        count = level_count(progress, growth=self.growth, first=self.first, last=self.last)
        return math.exp(self.first * math.log(self.teacher) / count)

    def draw_times(
        self,
        b: int,
        *,
        progress: float = 0.0,
        generator: torch.Generator | None = None,
        device: torch.device | str = "cpu",
    ) -> Int[Tensor, " b"]:
        """Return the number of the lower level of each trained pair, (b,), among ``levels(progress)``."""
        sigmas = self.levels(progress)
        reached = chances(sigmas, self.draw, self.p_mean, self.p_std).cumsum(0).to(device)
        drawn = torch.searchsorted(reached, uniform(b, generator, torch.device(device)).double(), right=True)
        return drawn.clamp(max=len(sigmas) - 2)  # the sum may round to less than 1

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
        """Return each row's distance of f at one level to the teacher's f at the level before, (b,).

        Args:
            net: maps (c_in x_t, t, cond) to its part of f.
            x: data in model space.
            noise: the noise paired with x; both levels are made of it.
            cond: handed to both nets.
            teacher: what f is compared with, without a gradient; the net itself if None.
            progress: the share of training that is done, in [0, 1).
            generator: draws the levels.
            mask: True where x is real, in a shape that broadcasts over it: a row's loss is the mean over these places,
                0 where it has none. None: everywhere.
            times: what ``draw_times`` drew for these rows, (b,); drawn here by default.

        Raises:
            ValueError: x and noise differ in shape.

        >>> x, noise = torch.randn(2, 4, 3)
        >>> Consistency().loss(lambda x_t, t, cond: torch.zeros_like(x_t), x, noise).shape
        torch.Size([4])
        """
        check_alike(x, noise)
        sigmas = self.levels(progress)
        if times is None:
            times = self.draw_times(len(x), progress=progress, generator=generator, device=x.device)
        precise = torch.promote_types(x.dtype, torch.float32)  # adjacent levels may be one number in bf16
        before, after = (sigmas.to(x.device)[index].to(precise) for index in (times, times + 1))
        before_net = _dropout_state(x.device)
        ours = self._f(net, x + (expand(after, x) * noise).to(x.dtype), after, cond)
        after_net = _dropout_state(x.device)
        _set_dropout_state(before_net, x.device)
        with torch.no_grad():
            x_t = x + (expand(before, x) * noise).to(x.dtype)
            target = self._f(net if teacher is None else teacher, x_t, before, cond)
        _set_dropout_state(after_net, x.device)
        apart = distance(self.distance, ours, target, self.lpips_weights, mask)
        return apart if self.weight == "none" else apart / (after - before) ** self.gap_power

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
        """Return data generated from the noise in this many steps, (n, *dims) (arXiv:2303.01469, Alg. 1).

        Every step but the first adds fresh noise. The levels are evenly spaced among 40, as diffusers'
        ``CMStochasticIterativeScheduler`` spaces them.

        Departs: the paper searches the levels for the least FID, and its code clips each estimate to [-1, 1].

        Args:
            net: maps (c_in x_t, t, cond) to its part of f.
            noise: drawn from the coupling's prior; scaled by sigma_max here.
            cond: handed to the net.
            steps: how many times the net is asked, 1 to 40.
            generator: draws the fresh noise; one, or one an image.

        Raises:
            ValueError: fewer than one step, or more than 40.
        """
        check_whole(steps=steps)
        if steps > _LEVELS:
            raise ValueError(f"{steps} sampling steps; consistency sampling has {_LEVELS} levels")
        levels = karras(_LEVELS, low=self.sigma_min, high=self.sigma_max, rho=self.rho)
        sigmas = levels[:: _LEVELS // steps][:steps].tolist()
        x = self._f(net, sigmas[0] * noise, noise.new_full((len(noise),), sigmas[0]), cond)
        for sigma in sigmas[1:]:
            x_t = x + math.sqrt(sigma**2 - self.sigma_min**2) * fresh_like(x, generator)
            x = self._f(net, x_t, noise.new_full((len(noise),), sigma), cond)
        return x

    def stochastic(self, steps: int) -> bool:
        """Return whether sampling in this many steps adds noise of its own."""
        return steps > 1

    def stock_sampling(self) -> StockSampling:
        """Return diffusers' scheduler of consistency models."""
        options = {key: getattr(self, key) for key in ("sigma_min", "sigma_max", "sigma_data", "rho")}
        return StockSampling(
            "CMStochasticIterativeScheduler",
            {"num_train_timesteps": _LEVELS, **options, "clip_denoised": False},
            agrees=f"1 to {_LEVELS} steps",
            time="log_sigma",
            steps=1,
            begin="noise * scheduler.init_noise_sigma",
            net_x="scheduler.scale_model_input(x, t)",
        )

    def _f(self, net: Net, x_t: Tensor, sigma: Tensor, cond: Tensor | None) -> Tensor:
        return denoised(net, x_t, sigma, cond, sigma_data=self.sigma_data, floor=self.sigma_min)


def improved(*, last: int = 1280) -> Consistency:
    """Return improved consistency training (Song and Dhariwal, arXiv:2310.14189, Table 1).

    Args:
        last: s1, the steps between levels at the end of training.

    >>> improved().teacher_decay(0.5), improved().distance
    (0.0, 'pseudo_huber')
    """
    return Consistency("doubling", 10, last, 0.0, "lognormal", "inverse_gap", "pseudo_huber")


def _dropout_state(device: torch.device) -> list[Tensor]:
    """Return the state of the global generators that dropout draws from."""
    cuda = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    return [torch.get_rng_state(), *cuda]


def _set_dropout_state(state: list[Tensor], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[1], device)
