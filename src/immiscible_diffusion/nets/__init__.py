"""Nets: modules that map (x_t, t, cond) to a prediction, described by frozen dataclasses."""

from immiscible_diffusion.nets.dit import Dit
from immiscible_diffusion.nets.guided import guided
from immiscible_diffusion.nets.mlp import MLP
from immiscible_diffusion.nets.unet import UNet
from immiscible_diffusion.nets.unet_condition import UNetCondition

__all__ = ["MLP", "Dit", "UNet", "UNetCondition", "guided"]
