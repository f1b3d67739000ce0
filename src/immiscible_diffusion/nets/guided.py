"""Classifier-free guidance by wrapping (Ho and Salimans, arXiv:2207.12598)."""

from typing import Any, cast

import torch
from torch import Tensor, nn

from immiscible_diffusion.checks import check_number
from immiscible_diffusion.types import HasNullCondition

__all__ = ["Guided", "guided"]


def guided(net: nn.Module, scale: float) -> nn.Module:
    """Return the net with its condition's effect scaled; scale 1 is the net itself.

    The prediction is f(null) + scale (f(cond) - f(null)): 1 is no guidance, 0 no condition. Stable Diffusion's and
    DiT's pipelines count alike from 1 up, and below it leave guidance out; Ho and Salimans' w is scale - 1. eps, x0, v
    and velocity are affine in each other at one x_t, so that guidance is the same whichever the net predicts.

    Args:
        net: a net with ``null(cond)``, the null condition in the form of a condition: ``unet_condition`` or ``dit``.
        scale: finite, at least 0.

    Raises:
        ValueError: a scale out of range, or a net without condition or null condition.
    """
    check_number(guidance=scale, at_least=0)
    if scale == 1:
        return net
    if not isinstance(net, HasNullCondition) or not net.conditional:
        raise ValueError(
            f"guidance is {scale}; this net ({type(net).__name__}) was not trained with a condition that is dropped: "
            "use unet_condition or dit with conditional = true"
        )
    return Guided(net, scale)


class Guided(nn.Module):
    """A net under guidance; null condition and condition go through it in one batch."""

    def __init__(self, net: nn.Module, scale: float) -> None:
        super().__init__()
        self.net, self.scale = net, scale

    def forward(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """Return the guided prediction, (b, *dims); without a condition, that for the null condition."""
        if cond is None:
            return cast(Tensor, self.net(x_t, t, None))
        null = cast(Any, self.net).null(cond)
        both = self.net(torch.cat([x_t, x_t]), torch.cat([t, t]), torch.cat([null, cond]))
        without, within = both.chunk(2)
        return cast(Tensor, without + self.scale * (within - without))
