"""Encode a data set once and keep the latents, for the source ``latents``."""

from immiscible_diffusion.data.latent_files.folder import Progress, encode

__all__ = ["Progress", "encode"]
