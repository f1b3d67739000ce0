"""Methods: each owns its loss and its sampling."""

from immiscible_diffusion.methods.denoising import Denoising, Prediction

__all__ = ["Denoising", "Prediction"]
