"""Codecs: the way between data as stored and model space."""

from immiscible_diffusion.codecs.pixels import Pixels

__all__ = ["Pixels"]
