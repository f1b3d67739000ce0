"""Encode a data set once and keep the latents, for the source ``latents``."""

from immiscible_diffusion.encode.folder import Progress, encode
from immiscible_diffusion.encode.shards import Captioned, Encoder, Takeable

__all__ = ["Captioned", "Encoder", "Progress", "Takeable", "encode"]
