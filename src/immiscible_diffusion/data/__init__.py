"""Sources: batches of data as stored."""

from immiscible_diffusion.data.digits import Digits
from immiscible_diffusion.data.images import Images
from immiscible_diffusion.data.latents import Latents

__all__ = ["Digits", "Images", "Latents"]
