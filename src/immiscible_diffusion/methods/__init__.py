"""Methods: each owns its loss and its sampling."""

from immiscible_diffusion.methods.consistency import Consistency, improved
from immiscible_diffusion.methods.denoising import Denoising, Prediction
from immiscible_diffusion.methods.edm import Edm

__all__ = ["Consistency", "Denoising", "Edm", "Prediction", "improved"]
