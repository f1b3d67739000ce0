"""Every stage of the metrics against implementations that share no code with it."""

from collections.abc import Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.precision import _independent as other
from benchmarks.precision._extract import LAYERS, features_in, images_of
from immiscible_diffusion.features._inception_net import InceptionNet, folded
from immiscible_diffusion.features._resize import resized
from immiscible_diffusion.features._weights import read_weights
from immiscible_diffusion.metrics import (
    Moments,
    frechet_distance,
    frechet_from_moments,
    gaussian_distance,
    inception_score,
    kernel_distance,
    neighbourhoods,
)
from immiscible_diffusion.runs.folder import environment

__all__ = ["PUBLISHED", "measure_precision"]

Row = dict[str, Any]
PUBLISHED: dict[str, tuple[float, float]] = {
    "train": (0.153, 3.18),
    "test": (0.153, 3.16),
    "jpeg75": (0.245, 4.26),
    "noise8": (0.483, 6.60),
    "noise25": (1.03, 14.0),
}
"""FID at 768 and 1,280 features of CIFAR-10's first 1,000 training images and 1,000 others, as recorded with other code
for the weights up to Mixed_7a; ``train`` are other training images."""
_SIZES = (500, 1000, 2000, 5000, 10_000)
_ROWS = 1000
_MODULES = {"torchmetrics": "torchmetrics", "scikit-learn": "sklearn", "pillow": "PIL"}


def measure_precision(chunks: Path, *, cifar10: Path, weights: Path, count: int = 10_000) -> dict[str, Any]:
    """Return what every stage differs by from independent implementations, ready for JSON.

    Args:
        chunks: the folder that ``extract`` filled.
        cifar10: the folder of CIFAR-10's parquet files.
        weights: the Inception network's, up to Mixed_7a or complete.
        count: the most images a side that FID's bias is measured with.

    Raises:
        ValueError: there are no features of 1,000 training and 1,000 test images.
    """
    features = features_in(chunks)
    rows = [len(features[name][64]) if name in features else 0 for name in ("train", "test")]
    if min(rows) < _ROWS:
        raise ValueError(f"{chunks} holds features of {rows} training and test images; {_ROWS} each are needed")
    agreement = [
        *_closed_forms(),
        *_on_features(features),
        *_on_all(features, count),
        *_resizes(cifar10),
        *_network(cifar10, weights),
    ]
    others = {name: version(name) for name in ("torchmetrics", "scikit-learn", "pillow") if find_spec(_MODULES[name])}
    about = {**environment(), "compared_with": others, "images": dict(zip(("train", "test"), rows, strict=True))}
    reference, bias = list(_published(features)), list(_bias(features, count))
    return {"about": about, "agreement": agreement, "published": reference, "bias": bias}


def _row(stage: str, against: str, ours: float, theirs: float, agreed: float) -> Row:
    relative = abs(ours - theirs) / max(abs(theirs), 1e-300)
    return {"stage": stage, "against": against, "ours": ours, "theirs": theirs, "error": relative, "agreed": agreed}


def _error(stage: str, against: str, error: float, agreed: float) -> Row:
    return {"stage": stage, "against": against, "ours": None, "theirs": None, "error": error, "agreed": agreed}


def _closed_forms() -> Iterator[Row]:
    """Yield distances of known Gaussians: the Fréchet distance exactly, kernels by the mean over many draws."""
    f, generator = 512, torch.Generator().manual_seed(0)
    turn, _ = torch.linalg.qr(torch.randn(f, f, dtype=torch.float64, generator=generator))
    first, second = (torch.rand(f, dtype=torch.float64, generator=generator).square() for _ in range(2))
    shift = torch.randn(f, dtype=torch.float64, generator=generator)
    exact = float(shift.square().sum() + (first.sqrt() - second.sqrt()).square().sum())
    pair = [
        Moments(mean, (turn * variances) @ turn.T, None) for mean, variances in ((0 * shift, first), (shift, second))
    ]
    yield _row("Fréchet distance, 512 features", "closed form", frechet_from_moments(*pair), exact, 1e-6)
    f, far, draws, rows = 8, 2.0, 800, 500
    kernels, gaussians = [], []
    for _ in range(draws):
        x, y = (torch.randn(rows, f, dtype=torch.float64, generator=generator) for _ in range(2))
        y[:, 0] += far**0.5
        kernels.append(kernel_distance(x, y))
        gaussians.append(gaussian_distance(x, y, sigma=3.0) / 1000)
    exact = other.kernel_of_gaussians(f, far)
    yield _row("kernel distance, mean of 800 draws of 500", "closed form", float(np.mean(kernels)), exact, 0.02)
    diagonal = 2 * (1 - (9 / 11) ** (f / 2)) / rows  # of the pairs of a row with itself, which the published code keeps
    exact = other.gaussian_mmd_of_gaussians(f, far, 3.0) + diagonal
    yield _row("Gaussian-kernel distance, likewise", "closed form", float(np.mean(gaussians)), exact, 0.02)
    logits = torch.randn(2000, 1008, generator=generator) * 3
    ours, reference = inception_score(logits, splits=10).mean, other.scipy_inception_score(logits, 10)
    yield _row("Inception Score, 1,008 classes", "scipy softmax, rel_entr", ours, reference, 1e-10)


def _on_features(features: dict[str, dict[int, Tensor]]) -> Iterator[Row]:
    for layer in (768, 1280):
        real, generated = (features[name][layer][:_ROWS] for name in ("train", "test"))
        name = f"{layer} Inception features"
        ours = frechet_distance(real, generated)
        yield _row(f"Fréchet distance, {name}", "scipy sqrtm", ours, other.scipy_frechet(real, generated), 1e-4)
        kernel = kernel_distance(real, generated)
        peers = other.torchmetrics_values(real, generated)
        if peers is not None:
            yield _row(f"Fréchet distance, {name}", "torchmetrics", ours, peers["frechet"], 1e-4)
            yield _row(f"kernel distance, {name}", "torchmetrics", kernel, peers["kernel"], 1e-8)
    real, generated = (features[name][768][:_ROWS] for name in ("train", "test"))
    ours, reference = gaussian_distance(real, generated), other.scipy_cmmd(real, generated, 10.0)
    yield _row("Gaussian-kernel distance, 768 Inception features", "scipy cdist", ours, reference, 1e-8)
    near = neighbourhoods(real, generated, k=5)
    for part, mine, value in zip(near._fields, near, other.sklearn_neighbourhoods(real, generated, 5), strict=True):
        yield _row(f"{part}, k = 5, 768 Inception features", "scikit-learn", mine, value, 1e-12)
    whole = np.cov(real.double().numpy(), rowvar=False)
    for size in (1, 7, 1000):
        gathered = Moments.of(real[:0])
        for rows in torch.split(real, size):
            gathered = gathered.add(rows)
        error = float(np.abs(gathered.covariance.numpy() - whole).max() / np.abs(whole).max())
        yield _error(f"covariance in batches of {size}", "numpy cov", error, 1e-12)


def _on_all(features: dict[str, dict[int, Tensor]], count: int) -> Iterator[Row]:
    """Yield the metrics of the most images there are, up to ``count`` a side, in 768 features."""
    rows = min(count, *(len(features[name][768]) for name in ("train", "test")))
    real, generated = (features[name][768][:rows] for name in ("train", "test"))
    name = f"768 Inception features, {rows:,} images"
    ours = frechet_distance(real, generated)
    yield _row(f"Fréchet distance, {name}", "scipy sqrtm", ours, other.scipy_frechet(real, generated), 1e-4)
    peers = other.torchmetrics_values(real, generated)
    if peers is not None:
        yield _row(f"Fréchet distance, {name}", "torchmetrics", ours, peers["frechet"], 1e-4)
        kernel = kernel_distance(real, generated)
        yield _row(f"kernel distance, {name}", "torchmetrics", kernel, peers["kernel"], 1e-6)
    near = neighbourhoods(real, generated, k=5)
    for part, mine, value in zip(near._fields, near, other.sklearn_neighbourhoods(real, generated, 5), strict=True):
        yield _row(f"{part}, k = 5, {name}", "scikit-learn", mine, value, 1e-4)


def _resizes(cifar10: Path) -> Iterator[Row]:
    """Yield the largest differences of resized images, relative to 255 grey levels."""
    raw = images_of(cifar10, "test", 0, 8)
    pixels = raw.double().numpy()
    big = np.arange(299)
    centres = np.clip((big + 0.5) * 32 / 299 - 0.5, 0, 31)
    lower = np.floor(centres).astype(int)
    part, upper = centres - lower, np.minimum(lower + 1, 31)
    rows = pixels[:, :, lower] * (1 - part)[:, None] + pixels[:, :, upper] * part[:, None]
    exact = torch.from_numpy(rows[..., lower] * (1 - part) + rows[..., upper] * part)
    for how, against, expected in (
        ("pytorch_fid", "the formula in float64", exact),
        ("clean_fid", "Pillow, bicubic", other.pillow_bicubic(raw, 299)),
        ("tensorflow", "torch grid_sample at corners", other.tensorflow_bilinear(raw, 299)),
    ):
        ours = resized(raw, 299, how)  # type: ignore[arg-type]
        yield _error(f"resize {how}, 32 to 299", against, float((ours - expected).abs().max()) / 255, 1e-5)
    down, expected = resized(raw, 17, "clean_fid"), other.pillow_bicubic(raw, 17)
    yield _error("resize clean_fid, 32 to 17", "Pillow, bicubic", float((down - expected).abs().max()) / 255, 1e-5)


def _network(cifar10: Path, weights: Path) -> Iterator[Row]:
    """Yield relative differences of the features of 8 images, in the Frobenius norm."""
    loaded, _ = read_weights(weights)
    if not isinstance(loaded, dict):
        raise ValueError(f"{weights} is TorchScript; the precision of the network is measured with a state dict")
    net = InceptionNet([768, 1280])
    needed = net.state_dict()
    state = folded(loaded)
    net.load_state_dict({name: state[name] for name in needed})
    net.eval().requires_grad_(False)
    x = resized(images_of(cifar10, "test", 0, 8), 299, "pytorch_fid") / 127.5 - 1
    with torch.inference_mode():
        single = net(x)
        last = net(x.contiguous(memory_format=torch.channels_last))
        with torch.autocast("cpu", torch.bfloat16):
            half = net(x)
        exact = net.double()(x.double())
    for layer in (768, 1280):
        for name, ours, agreed in (("float32", single, 1e-5), ("channels_last", last, 1e-5), ("bfloat16", half, 0.05)):
            error = float((ours[layer].double() - exact[layer]).norm() / exact[layer].norm())
            yield _error(f"network in {name}, {layer} features", "the same in float64", error, agreed)


def _published(features: dict[str, dict[int, Tensor]]) -> Iterator[Row]:
    """Yield FID beside what other code gave, where the features are there; 10 % are agreed upon.

    The others of the training images, and the noise, are draws that are not the same: at this size they move FID by
    some %.
    """
    for name, expected in PUBLISHED.items():
        shown = features["train"] if name == "train" else features.get(name)
        start = _ROWS if name == "train" else 0
        if shown is None or len(shown[768]) < start + _ROWS:
            continue
        ours = [frechet_distance(features["train"][n][:_ROWS], shown[n][start : start + _ROWS]) for n in (768, 1280)]
        yield {"set": name, "ours": ours, "published": list(expected), "agreed": 0.1}


def _bias(features: dict[str, dict[int, Tensor]], count: int) -> Iterator[Row]:
    """Yield FID of n training against n test images. Its true value is nearly 0, so the result is the bias."""
    most = min(count, *(len(features[name][768]) for name in ("train", "test")))
    for n in (n for n in _SIZES if n <= most):
        parts = max(1, min(4, most // n))
        by_layer = {}
        for layer in LAYERS:
            pairs = [[features[name][layer][n * i : n * (i + 1)] for name in ("train", "test")] for i in range(parts)]
            values = [frechet_distance(*pair) for pair in pairs]
            by_layer[str(layer)] = {
                "mean": float(np.mean(values)),
                "sd": float(np.std(values, ddof=1)) if parts > 1 else None,
            }
        yield {"images": n, "parts": parts, "layers": by_layer}
