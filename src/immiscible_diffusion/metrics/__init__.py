"""Metrics: how far generated data are from real data, in the features of a network."""

from immiscible_diffusion.metrics._rows import Estimate
from immiscible_diffusion.metrics.cmmd import Cmmd, gaussian_distance
from immiscible_diffusion.metrics.frechet import Frechet, frechet_distance, frechet_from_moments
from immiscible_diffusion.metrics.inception_score import InceptionScore, inception_score
from immiscible_diffusion.metrics.kernel import Kernel, kernel_distance, kernel_subsets
from immiscible_diffusion.metrics.moments import Moments, features_of, moments_of
from immiscible_diffusion.metrics.neighbours import (
    Coverage,
    Density,
    Neighbourhoods,
    Precision,
    Recall,
    neighbourhoods,
)
from immiscible_diffusion.metrics.noise_floor import noise_floor
from immiscible_diffusion.metrics.reference import cached_features, read_npz, write_npz

__all__ = [
    "Cmmd",
    "Coverage",
    "Density",
    "Estimate",
    "Frechet",
    "InceptionScore",
    "Kernel",
    "Moments",
    "Neighbourhoods",
    "Precision",
    "Recall",
    "cached_features",
    "features_of",
    "frechet_distance",
    "frechet_from_moments",
    "gaussian_distance",
    "inception_score",
    "kernel_distance",
    "kernel_subsets",
    "moments_of",
    "neighbourhoods",
    "noise_floor",
    "read_npz",
    "write_npz",
]
