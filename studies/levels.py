"""How far consistency training is at each noise level: its error of the picture, and its loss, by arm."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from immiscible_diffusion.experiments.config import Config
from immiscible_diffusion.methods import Consistency
from immiscible_diffusion.methods._preconditioning import denoised
from immiscible_diffusion.sample import Trained
from studies.denoising import paired

__all__ = ["SIGMAS", "ByLevel", "by_level"]

SIGMAS = 0.1, 0.5, 2.0, 10.0, 40.0, 80.0


@dataclass(frozen=True)
class ByLevel:
    """What one run's net makes of held-out data under noise of its own coupling.

    Attributes:
        sigmas: the noise levels, those of training at its end that are nearest to the levels asked for.
        error: mean square of f(x + sigma noise) - x in units of the data's variance: about 2 where the picture that f
            draws is another one than x, less where the noise tells of x.
        loss: the distance between f at this level and at the level below, without the weight of training.
    """

    sigmas: list[float]
    error: list[float]
    loss: list[float]


@torch.no_grad()
def by_level(trained: Trained, config: Config, *, sigmas: Sequence[float] = SIGMAS, rows: int = 1024) -> ByLevel:
    """Return error and loss at noise levels.

    Args:
        trained: the model.
        config: its run.
        sigmas: noise levels.
        rows: how many held-out rows they are means of.

    Raises:
        ValueError: the method is not ``consistency``, or data that do not vary.
    """
    method = trained.method
    if not isinstance(method, Consistency):
        raise ValueError(f"the method is {type(method).__name__}; it must be Consistency")
    held = config.source.held_out()
    x, cond = config.codec.encode(held.raw[:rows]), held.cond[:rows] if held.cond is not None else None
    variance = float(x.var(0, correction=0).mean())
    if variance == 0:
        raise ValueError("the data do not vary; an error in units of their variance needs different rows")
    noise, levels, plain = paired(config, x, cond), method.levels(1.0), replace(method, weight="none")
    places = [max(1, int((levels - sigma).abs().argmin())) for sigma in sigmas]
    errors, losses = [], []
    for place in places:
        sigma = float(levels[place])
        x_t, level = x + sigma * noise, x.new_full((len(x),), sigma)
        clean = denoised(trained.net, x_t, level, None, sigma_data=method.sigma_data, floor=method.sigma_min)
        errors.append(float((clean - x).square().mean()) / variance)
        below = torch.full((len(x),), place - 1)
        losses.append(float(plain.loss(trained.net, x, noise, times=below, progress=1.0).mean()))
    return ByLevel([float(levels[place]) for place in places], errors, losses)
