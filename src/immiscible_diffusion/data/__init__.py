"""Sources: batches of data as stored."""

from immiscible_diffusion.data.digits import Digits
from immiscible_diffusion.data.images import Images

__all__ = ["Digits", "Images"]
