"""The net inside its scaling, for methods that count noise in sigma: x_t = x + sigma noise."""

import torch
from torch import Tensor

from immiscible_diffusion.checks import check_number
from immiscible_diffusion.schedules import SIGMAS, log_time
from immiscible_diffusion.tensors import expand
from immiscible_diffusion.types import Float, Net

__all__ = ["check_sigmas", "denoised", "scalings"]


def check_sigmas(sigma_min: float, sigma_max: float, rho: float, sigma_data: float) -> None:
    """Refuse a range of noise that does not lie between the ends of the time axis.

    Raises:
        ValueError: it does not, or rho or sigma_data is not positive.
    """
    low, high = SIGMAS
    if not low <= sigma_min < sigma_max <= high:
        raise ValueError(
            f"sigma_min is {sigma_min} and sigma_max {sigma_max}; they must rise within [{low:g}, {high:g}], "
            f"where t is 0 and 1"
        )
    check_number(rho=rho, sigma_data=sigma_data, above=0)


def scalings(
    sigma: Float[Tensor, "*b"], *, sigma_data: float, floor: float = 0.0
) -> tuple[Float[Tensor, "*b"], Float[Tensor, "*b"], Float[Tensor, "*b"]]:
    """Return c_skip, c_out and c_in of these noise levels, each (*b).

    With floor = 0 the coefficients of Karras et al. (arXiv:2206.00364, Tab. 1). With floor > 0, of a consistency
    model, which returns its input at sigma = floor (Song et al., arXiv:2303.01469, App. C).

    >>> [float(each) for each in scalings(torch.tensor(0.5), sigma_data=0.5)]
    [0.5, 0.3535533845424652, 1.4142135381698608]
    """
    above, whole = sigma - floor, sigma**2 + sigma_data**2
    return sigma_data**2 / (above**2 + sigma_data**2), above * sigma_data * whole.rsqrt(), whole.rsqrt()


def denoised(
    net: Net,
    x_t: Float[Tensor, "b *dims"],
    sigma: Float[Tensor, " b"],
    cond: Tensor | None,
    *,
    sigma_data: float,
    floor: float = 0.0,
) -> Float[Tensor, "b *dims"]:
    """Return c_skip x_t + c_out net(c_in x_t, t), (b, *dims), with t = log_time(sigma).

    A sigma of a wider dtype than x_t keeps it in the factors, and the net sees x_t's.
    """
    skip, out, scale = (expand(each, x_t) for each in scalings(sigma, sigma_data=sigma_data, floor=floor))
    raw = net((scale * x_t).to(x_t.dtype), log_time(sigma).to(torch.float32), cond)
    return (skip * x_t + out * raw.to(x_t.dtype)).to(x_t.dtype)
