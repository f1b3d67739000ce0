"""The metrics again, by other people's libraries and by closed forms. Only the measurement of precision uses them."""

import math
import warnings
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = [
    "gaussian_mmd_of_gaussians",
    "kernel_of_gaussians",
    "pillow_bicubic",
    "scipy_cmmd",
    "scipy_frechet",
    "scipy_inception_score",
    "sklearn_neighbourhoods",
    "tensorflow_bilinear",
    "torchmetrics_values",
]


def scipy_frechet(real: Tensor, generated: Tensor) -> float:
    """Return the Fréchet distance as published code does: numpy's covariances and scipy's root of their product."""
    from scipy import linalg

    first, second = real.double().numpy(), generated.double().numpy()
    product = np.cov(first, rowvar=False) @ np.cov(second, rowvar=False)
    overlap = np.trace(linalg.sqrtm(product)).real
    shift = np.square(first.mean(0) - second.mean(0)).sum()
    return float(shift + np.var(first, 0, ddof=1).sum() + np.var(second, 0, ddof=1).sum() - 2 * overlap)


def scipy_cmmd(real: Tensor, generated: Tensor, sigma: float) -> float:
    """Return 1000 times the squared MMD from scipy's pairwise distances."""
    from scipy.spatial.distance import cdist

    def mean(x: Tensor, y: Tensor) -> float:
        return float(np.exp(-cdist(x.double(), y.double(), "sqeuclidean") / (2 * sigma**2)).mean())

    return 1000 * (mean(real, real) + mean(generated, generated) - 2 * mean(real, generated))


def scipy_inception_score(logits: Tensor, splits: int) -> float:
    """Return the Inception Score from scipy's softmax and relative entropy."""
    from scipy.special import rel_entr, softmax

    parts = np.array_split(softmax(logits.double().numpy(), axis=1), splits)
    return float(np.mean([np.exp(rel_entr(part, part.mean(0)).sum(1).mean()) for part in parts]))


def sklearn_neighbourhoods(real: Tensor, generated: Tensor, k: int) -> tuple[float, float, float, float]:
    """Return precision, recall, density and coverage from scikit-learn's nearest neighbours."""
    from sklearn.metrics import pairwise_distances
    from sklearn.neighbors import NearestNeighbors

    first, second = real.double().numpy(), generated.double().numpy()

    def reach(x: NDArray[np.float64]) -> NDArray[np.float64]:
        neighbours = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(x).kneighbors()[0]
        return np.asarray(neighbours[:, -1])

    distances = pairwise_distances(first, second)
    inside, recalled = distances <= reach(first)[:, None], distances <= reach(second)
    return (
        float(inside.any(0).mean()),
        float(recalled.any(1).mean()),
        float(inside.sum(0).mean() / k),
        float(inside.any(1).mean()),
    )


def torchmetrics_values(real: Tensor, generated: Tensor) -> dict[str, float] | None:
    """Return FID and KID by torchmetrics, given our features; None where it is not installed."""
    try:
        from torchmetrics.image.fid import FrechetInceptionDistance
        from torchmetrics.image.kid import KernelInceptionDistance
    except ImportError:
        return None

    class Identity(torch.nn.Module):
        """A network that returns its input, for data that are features already."""

        num_features = real.shape[1]

        def forward(self, x: Tensor) -> Tensor:
            return x

    rows = min(len(real), len(generated))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*will save all extracted features")
        measures: dict[str, Any] = {
            "frechet": FrechetInceptionDistance(feature=Identity()).set_dtype(torch.float64),
            "kernel": KernelInceptionDistance(feature=Identity(), subsets=1, subset_size=rows).set_dtype(torch.float64),
        }
    for measure in measures.values():
        measure.update(real.double(), real=True)
        measure.update(generated.double(), real=False)
    values = {name: measure.compute() for name, measure in measures.items()}
    return {name: float(value[0] if isinstance(value, tuple) else value) for name, value in values.items()}


def kernel_of_gaussians(f: int, shift: float) -> float:
    """Return the exact squared MMD under (x . y / f + 1)^3 of N(0, I) and N(m, I), |m|^2 = ``shift``, in f dimensions.

    With s = x . y / f each kernel's mean is 1 + 3 E[s] + 3 E[s^2] + E[s^3], by the moments of a product of normals.
    """
    m = shift
    real = 1 + 3 / f
    generated = 1 + 3 * m / f + 3 * (m**2 + 2 * m + f) / f**2 + (m**3 + 3 * m * (2 * m + f) + 6 * m) / f**3
    return real + generated - 2 * (1 + 3 * (f + m) / f**2)


def gaussian_mmd_of_gaussians(f: int, shift: float, sigma: float) -> float:
    """Return the exact squared MMD under the Gaussian kernel of N(0, I) and N(m, I), |m|^2 = ``shift``."""
    together = (sigma**2 / (sigma**2 + 2)) ** (f / 2)
    return float(2 * together * (1 - math.exp(-shift / (2 * (sigma**2 + 2)))))


def pillow_bicubic(raw: Tensor, size: int) -> Tensor:
    """Return images resized by Pillow, channel by channel in floating point, clipped, (n, c, size, size)."""
    from PIL import Image

    def channel(plane: Tensor) -> Tensor:
        picture = Image.fromarray(plane.numpy().astype(np.float32))
        return torch.from_numpy(np.array(picture.resize((size, size), Image.Resampling.BICUBIC)).clip(0, 255))

    return torch.stack([torch.stack([channel(plane) for plane in image]) for image in raw])


def tensorflow_bilinear(raw: Tensor, size: int) -> Tensor:
    """Return images resized as StyleGAN's network does it: a grid of samples at the corners, (n, c, size, size)."""
    n, _, height, width = raw.shape
    theta = torch.eye(2, 3)
    theta[0, 2] = 1 / width - 1 / size
    theta[1, 2] = 1 / height - 1 / size
    grid = torch.nn.functional.affine_grid(theta.expand(n, 2, 3), [n, 3, size, size], align_corners=False)
    return torch.nn.functional.grid_sample(raw.float(), grid, "bilinear", "border", align_corners=False)
