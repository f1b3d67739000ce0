"""How many images a classifier of features needs: whether it tells sharp images from blurred ones, by their number."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from immiscible_diffusion.data import Images
from immiscible_diffusion.features import PooledPixels
from immiscible_diffusion.features import _classifier_net as recipe
from immiscible_diffusion.metrics import Frechet, noise_floor
from immiscible_diffusion.types import Features

__all__ = ["bench_small_features", "blurred", "small_features_line"]

_SAMPLES = 100, 250
"""The fewest and the most images of a draw, as `immiscible demo --images` takes them."""


def bench_small_features(
    images: str, size: int, counts: Sequence[int], *, label: str = "", seed: int = 0
) -> Iterator[dict[str, Any]]:
    """Yield Fréchet distances to held-out images, a row for each number of training images and kind of features.

    ``seen`` are the images on which the features were trained, ``fresh`` others of the same data, and ``blurred`` the
    fresh ones averaged over 3 x 3 pixels. A measure must score ``blurred`` worse than ``fresh``.

    Args:
        images: folder, table or hub name of the images.
        size: height and width in pixels.
        counts: numbers of training images; a quarter as many are held out.
        label: the column of labels; ``none`` leaves them aside.
        seed: of the data's order and of the classifiers.
    """
    source = Images(images, size=size, label=label, limit=4 * max(counts), held_out_rows=max(counts) // 4)
    batch = next(source.batches(source.rows, seed))
    for n in counts:
        held, fresh = batch.raw[n : n + n // 4], batch.raw[n + n // 4 :][:n]
        draw = min(max(n // 4, _SAMPLES[0]), _SAMPLES[1], n)
        labels = None if batch.cond is None else batch.cond[:n]
        kinds: dict[str, Features] = {"pooled_pixels": PooledPixels()}
        kinds["rotation"] = _ClassifierFeatures(batch.raw[:n], None, 4, seed)
        if labels is not None:
            kinds["labels"] = _ClassifierFeatures(batch.raw[:n], labels, source.classes or 1, seed)
        for name, features in kinds.items():
            real = features(held)
            row: dict[str, Any] = {"training": n, "drawn": draw, "features": name}
            for about, shown in {"seen": batch.raw[:n], "fresh": fresh, "blurred": blurred(fresh)}.items():
                score = noise_floor(features(shown), real, Frechet(), draw)
                row |= {about: score.mean, f"{about}_sd": score.sd}
            yield row


class _ClassifierFeatures:
    """The features of a classifier trained on these images, as the features ``classifier`` are."""

    def __init__(self, images: Tensor, labels: Tensor | None, classes: int, seed: int) -> None:
        self.net = recipe.untrained((images.shape[1], images.shape[2], images.shape[3]), classes, seed)
        recipe.train(self.net, images, labels, flip=False, seed=seed)

    def __call__(self, raw: Tensor) -> Tensor:
        return recipe.penultimate(self.net, raw)


def blurred(images: Tensor) -> Tensor:
    """Return images averaged over 3 x 3 pixels, (n, c, h, w), uint8.

    >>> import torch
    >>> blurred(torch.tensor([[[[0, 0, 0], [0, 90, 0], [0, 0, 0]]]], dtype=torch.uint8))[0, 0, 1, 1].item()
    10
    """
    padded = F.pad(images.float(), (1, 1, 1, 1), mode="reflect")
    return F.avg_pool2d(padded, 3, stride=1).round().to(images.dtype)


def small_features_line(row: dict[str, Any]) -> str:
    """Return a row as a line of text."""
    scores = ", ".join(f"{name} {row[name]:.3g} ± {row[f'{name}_sd']:.1g}" for name in ("seen", "fresh", "blurred"))
    return f"{row['features']:13} {row['training']:5} training images: {scores}"
