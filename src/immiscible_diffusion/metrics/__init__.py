"""Metrics: distances between real and generated data in the features of a network."""

from immiscible_diffusion.metrics._features import DigitsClassifier, PooledPixels
from immiscible_diffusion.metrics.frechet import Frechet, frechet_distance
from immiscible_diffusion.metrics.kernel import Kernel, kernel_distance

__all__ = ["DigitsClassifier", "Frechet", "Kernel", "PooledPixels", "frechet_distance", "kernel_distance"]
