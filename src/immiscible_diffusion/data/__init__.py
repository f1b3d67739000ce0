"""Sources: batches of data as stored."""

from immiscible_diffusion.data.detour import Detour
from immiscible_diffusion.data.digits import Digits
from immiscible_diffusion.data.images import Images
from immiscible_diffusion.data.latents import Latents
from immiscible_diffusion.data.painting import Painting
from immiscible_diffusion.data.windows import Windows

__all__ = ["Detour", "Digits", "Images", "Latents", "Painting", "Windows"]
