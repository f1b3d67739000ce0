"""Nets: modules that map (x_t, t, cond) to a prediction, described by frozen dataclasses."""

from immiscible_diffusion.nets.mlp import MLP
from immiscible_diffusion.nets.unet import UNet

__all__ = ["MLP", "UNet"]
