"""Codecs: the way between data as stored and model space."""

from immiscible_diffusion.codecs.bounds import Bounds
from immiscible_diffusion.codecs.pixels import Pixels
from immiscible_diffusion.codecs.vae import VAE

__all__ = ["VAE", "Bounds", "Pixels"]
