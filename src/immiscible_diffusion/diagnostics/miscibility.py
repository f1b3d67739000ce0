"""How well the noise of different images is mixed: a measure, and the papers' picture of it."""

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from immiscible_diffusion.schedules import Straight
from immiscible_diffusion.streams import stream
from immiscible_diffusion.types import Coupling, Float, Schedule

__all__ = ["Miscibility", "flower", "leading_plane", "miscibility", "paths"]


@dataclass(frozen=True)
class Miscibility:
    """The distance between the noise clusters of different images.

    Attributes:
        distance: mean L2 distance between the means of two images' noise, over all pairs of images.
        deviation: its standard deviation over the pairs.
        floor: what it is for standard normal noise that knows nothing of its image, sqrt(2 d / points): the error of
            means over so many points.
        debiased: the root of the mean squared distance less what the error of the means adds to it, 0 where that is
            negative; it does not depend on ``points``.
        points: noises an image.
        images: how many images.
    """

    distance: float
    deviation: float
    floor: float
    debiased: float
    points: int
    images: int


def miscibility(
    coupling: Coupling,
    images: Float[Tensor, "n *dims"],
    others: Iterable[Float[Tensor, "b *dims"]],
    *,
    points: int,
    seed: int = 0,
) -> Miscibility:
    """Return how far apart a coupling puts the noise of different images (arXiv:2505.18521, Sec. 4.2).

    The images are paired ``points`` times, each time in a batch with others, which they compete with for noise.

    Departs: the paper speaks of the mean pairwise L2 distance between the noise clusters assigned to different images,
    over 10,000 points; here a cluster's place is its mean. The published .92 of independent noise is then within what
    the error of means leaves, sqrt(2 d / 10,000) = .78 to .91 for d = 3,072 to 4,096.

    Args:
        coupling: what pairs.
        images: in model space; at least two.
        others: batches in model space that the images join; they run from the first again when they end.
        points: how many noises each image is given, at least two.
        seed: names the random streams; equal for all couplings.

    Raises:
        ValueError: fewer than two images or points, or no other batches.

    >>> from immiscible_diffusion import Independent, Nearest
    >>> x, others = 4 * torch.eye(2), [torch.randn(14, 2)]
    >>> near, plain = (miscibility(each, x, others, points=200) for each in (Nearest(16), Independent()))
    >>> near.debiased > 1 > plain.debiased
    True
    """
    batches = list(others)
    if len(images) < 2 or points < 2 or not batches:
        raise ValueError(
            f"miscibility needs 2 images, 2 points and another batch at least; "
            f"there came {len(images)}, {points} and {len(batches)}"
        )
    n = len(images)
    first = torch.zeros(n, images[0].numel(), dtype=torch.float64)
    second = torch.zeros(n, dtype=torch.float64)
    for i, batch in zip(range(points), itertools.cycle(batches), strict=False):
        noise = coupling(torch.cat([images, batch]), generator=stream(seed, i, "noise", images.device), step=i)
        rows = noise[:n].flatten(1).double().cpu()
        first += rows
        second += rows.square().sum(1)
    means = first / points
    errors = (second / points - means.square().sum(1)) / (points - 1)
    one, other = torch.triu_indices(n, n, 1)
    distances = torch.linalg.vector_norm(means[one] - means[other], dim=1)
    excess = float((distances.square() - errors[one] - errors[other]).mean())
    return Miscibility(
        distance=float(distances.mean()),
        deviation=float(distances.std()) if len(distances) > 1 else 0.0,
        floor=math.sqrt(2 * images[0].numel() / points),
        debiased=math.sqrt(max(excess, 0.0)),
        points=points,
        images=n,
    )


def paths(
    x: Float[Tensor, "b *dims"],
    noise: Float[Tensor, "b *dims"],
    *,
    count: int = 21,
    schedule: Schedule | None = None,
) -> Float[Tensor, "count b *dims"]:
    """Return the way of each datum to its noise, x_t at evenly spaced t from 0 to 1, (count, b, *dims).

    Args:
        x: data in model space.
        noise: the noise paired with it.
        count: how many times, at least two.
        schedule: how much data and noise x_t holds; the straight path by default.

    Raises:
        ValueError: shapes that differ, or fewer than two times.

    >>> paths(torch.zeros(1, 1), torch.ones(1, 1), count=3).flatten().tolist()
    [0.0, 0.5, 1.0]
    """
    if x.shape != noise.shape or count < 2:
        raise ValueError(f"paths need equal shapes and count >= 2; there came {x.shape}, {noise.shape} and {count}")
    times = torch.linspace(0, 1, count)
    if schedule is None:
        schedule = Straight()
    else:  # a schedule's last level may stand before t = 1
        times = times.clamp(max=float(schedule.times(1)[0]))
    alpha, sigma = (coefficient.reshape(-1, *[1] * x.ndim).to(x) for coefficient in schedule.coefficients(times))
    return alpha * x + sigma * noise


def leading_plane(x: Float[Tensor, "b *dims"]) -> tuple[Float[Tensor, " d"], Float[Tensor, "2 d"]]:
    """Return the mean of data and the two directions in which they vary most, orthonormal, (d,) and (2, d).

    Raises:
        ValueError: fewer than three rows or two coordinates.

    >>> leading_plane(torch.tensor([[9.0, 0.0], [-9.0, 0.0], [0.0, 1.0]]))[1].abs().round().tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    rows = x.flatten(1).double().cpu()
    if len(rows) < 3 or rows.shape[1] < 2:
        raise ValueError(f"x has shape {tuple(x.shape)}; a plane needs three rows of two coordinates")
    mean = rows.mean(0)
    directions = torch.linalg.svd(rows - mean, full_matrices=False).Vh[:2]
    return mean.float(), directions.float()


def flower(b: int, generator: torch.Generator, *, leaves: int = 6) -> tuple[Float[Tensor, "b 2"], Tensor]:
    """Return points in clusters on a circle of radius 2 and their cluster, (b, 2) and (b,): a set that can be drawn.

    Args:
        b: how many points.
        generator: draws them.
        leaves: how many clusters.

    >>> x, leaf = flower(600, torch.Generator().manual_seed(0))
    >>> round(float(x.norm(dim=1).mean()), 1), sorted(set(leaf.tolist()))
    (2.0, [0, 1, 2, 3, 4, 5])
    """
    leaf = torch.arange(b) % leaves
    angle = 2 * math.pi * leaf / leaves
    centre = 2 * torch.stack([angle.cos(), angle.sin()], 1)
    return centre + 0.15 * torch.randn(b, 2, generator=generator), leaf
