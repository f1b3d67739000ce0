"""Features: the networks whose outputs the metrics compare."""

from immiscible_diffusion.features.classifier import Classifier, FittedClassifier
from immiscible_diffusion.features.efficientnet import EfficientnetLite
from immiscible_diffusion.features.inception import Inception
from immiscible_diffusion.features.pooled_pixels import PooledPixels, Values
from immiscible_diffusion.features.transformer import Clip, Dinov2

__all__ = [
    "Classifier",
    "Clip",
    "Dinov2",
    "EfficientnetLite",
    "FittedClassifier",
    "Inception",
    "PooledPixels",
    "Values",
]
