"""What a perfect generator would score: as many real training images in place of the samples."""

import torch
from torch import Tensor

from immiscible_diffusion.metrics._rows import Estimate
from immiscible_diffusion.streams import stream
from immiscible_diffusion.types import Float, Metric

__all__ = ["noise_floor"]


def noise_floor(
    training: Float[Tensor, "n f"],
    held_out: Float[Tensor, "m f"],
    metric: Metric,
    samples: int,
    draws: int = 8,
    seed: int = 0,
) -> Estimate:
    """Return mean and standard deviation of a metric between held-out images and random draws of training images.

    Generated images with a distance near it cannot be distinguished from real ones. Draws share rows where
    there are fewer than ``draws * samples``: the deviation is then too small, and 0 where a draw takes all rows.

    Args:
        training: features of training images.
        held_out: features of the images that samples are compared with.
        metric: the comparison.
        samples: images of a draw, as many as an evaluation generates.
        draws: how many draws, each without replacement.
        seed: names the draws.

    Raises:
        ValueError: a draw has more images than there are, or there are no draws.

    >>> from immiscible_diffusion.metrics import Frechet
    >>> rows = torch.randn(400, 2, generator=torch.Generator().manual_seed(0))
    >>> noise_floor(rows[:200], rows[200:], Frechet(), 100).mean < 0.1
    True
    """
    if draws < 1 or not 1 <= samples <= len(training):
        raise ValueError(f"{draws} draws of {samples} rows: there must be one or more, of 1 .. {len(training)} rows")
    values = []
    for i in range(draws):
        rows = torch.randperm(len(training), generator=stream(seed, i, "sample"))[:samples]
        values.append(metric(held_out, training[rows.to(training.device)]))
    distances = torch.tensor(values, dtype=torch.float64)
    return Estimate(float(distances.mean()), float(distances.std()) if draws > 1 else 0.0)
