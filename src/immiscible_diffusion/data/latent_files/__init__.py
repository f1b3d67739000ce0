"""Encode a data set once and keep the latents, for the source ``latents``."""

from immiscible_diffusion.data.latent_files.folder import Progress, encode
from immiscible_diffusion.data.latent_files.shards import Captioned, Encoder, Takeable

__all__ = ["Captioned", "Encoder", "Progress", "Takeable", "encode"]
