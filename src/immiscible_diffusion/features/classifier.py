"""Features of a small classifier that this library trains on the data themselves: for images of few pixels."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from immiscible_diffusion.cache import alone_in_cache, cache_folder, keep_in_cache
from immiscible_diffusion.checks import check_choice, check_whole
from immiscible_diffusion.extras import needs
from immiscible_diffusion.features import _classifier_net as recipe
from immiscible_diffusion.features._resize import reduced
from immiscible_diffusion.features._weights import digest_of_state
from immiscible_diffusion.features.training_images import stored, training_images
from immiscible_diffusion.files import digest_of
from immiscible_diffusion.registry import describe, register
from immiscible_diffusion.types import Codec, Float, HasFlip, HasListing, HasMoments, Source, UInt8

__all__ = ["Classifier", "FittedClassifier"]

Task = Literal["labels", "rotation"]
_SIDES = 4, 64
_BYTES = 2**28
"""Of the images that are kept in memory to learn from: all of CIFAR-10, a fifth of ImageNet's at 64 pixels."""


@register("features")
@dataclass(frozen=True)
class Classifier:
    """The 128 penultimate features of a small convolutional net, trained by this library on the source's own images.

    Published networks see images of 4 to 64 pixels only enlarged to 224 or 299, which blurs what differs between them
    and is slow. This one learns at the source's own resolution: seconds for digits, minutes for CIFAR-10 on one core,
    once; it is kept under ``$XDG_CACHE_HOME/immiscible-diffusion`` (``~/.cache`` where unset). Held-out rows are never
    trained on; the accuracy on them is kept. Distances in these features are not FID, and compare models of the same
    data alone.

    Args:
        task: what is learned. ``labels``: the source's classes. ``rotation``: by which of four quarter turns an image
            was rotated (Gidaris et al., arXiv:1803.07728), for images without labels. It sees what tells up from down:
            the shape and place of parts, and the direction of light. It is nearly blind to what does not hide that:
            noise, blur, textures without a direction, the colour of a whole image, and who a person is. On 1,500 faces
            of 64 pixels, noise of 16 grey levels or a 3 x 3 blur raise the Fréchet distance to 1.2 times its noise
            floor. ``auto``: labels where there are any.
        seed: of the first weights and the order of the images.
        size: to which side in pixels, 4 to 64, square images are first reduced; 0 leaves them as they are. For images
            of more than 64 pixels, and for those that were enlarged: detail that it takes away is not measured.

    Raises:
        ValueError: an unknown task, a negative seed, or a size out of its range; where fitted: no images, or of other
            sizes or channels.
    """

    task: Literal["auto", "labels", "rotation"] = "auto"
    seed: int = 0
    size: int = 0

    def __post_init__(self) -> None:
        check_choice("task", self.task, Literal["auto", "labels", "rotation"])
        check_whole(seed=self.seed, at_least=0)
        least, most = _SIDES
        if self.size and not least <= self.size <= most:
            raise ValueError(f"size is {self.size}; it must be 0, or {least} to {most} pixels")

    def __call__(self, raw: Tensor) -> Tensor:
        """Refuse: there is no network before ``fitted``.

        Raises:
            ValueError: always.
        """
        raise ValueError("the features `classifier` must be fitted to the data before use: Classifier().fitted(source)")

    def fitted(self, source: Source, codec: Codec) -> "FittedClassifier":
        """Return the features fitted to the source's training images, from the cache where the same were fitted before.

        Two processes that fit the same do so one after the other, and the second reads what the first has kept.

        Args:
            source: of images, or of data that the codec decodes to images.
            codec: decodes what is not stored as images.

        Raises:
            ValueError: see the class.

        >>> from immiscible_diffusion import Digits, Pixels
        >>> features = Classifier().fitted(Digits(), Pixels())
        >>> features(Digits().held_out().raw[:2]).shape, features.accuracy > 0.95
        (torch.Size([2, 128]), True)
        """
        raw = next(source.batches(1, 0)).raw
        image = stored(raw, codec)
        task = self._task(source, image)
        decoded = image is not raw
        about = {
            "recipe": recipe.RECIPE,
            "task": task,
            "seed": self.seed,
            "source": describe("source", source),
            "listing": source.listing_digest() if isinstance(source, HasListing) else None,
            "codec": describe("codec", codec) if decoded else None,
            "weights": codec.fingerprint() if decoded and isinstance(codec, HasMoments) else None,
        }
        if self.size:
            about["size"] = self.size
        digest = digest_of(json.dumps(about, sort_keys=True, default=str).encode())
        path = cache_folder() / "classifiers" / f"{digest[:32]}.safetensors"
        if (kept := _read(path, digest)) is not None:
            return kept
        with alone_in_cache(path):
            if (kept := _read(path, digest)) is not None:
                return kept
            made = _fit(source, codec, task, self.seed, self.size)
            _keep(made, path, digest)
            return made

    def fit_seconds(self, shape: tuple[int, int, int], rows: int) -> float:
        """Return about how many seconds fitting to this many images, (c, h, w) each, takes: a few steps are timed."""
        return recipe.fit_seconds(shape, rows)

    def _task(self, source: Source, image: Tensor) -> Task:
        name = type(source).__name__
        shape = tuple(image.shape[1:])
        if image.dtype != torch.uint8 or image.ndim != 4 or shape[0] not in (1, 3):
            raise ValueError(
                f"the features `classifier` learn from images, uint8 (c, h, w) with 1 or 3 channels; {name} yields "
                f"{shape}, {image.dtype}: set evaluate.features = 'values', or others that fit"
            )
        least, most = _SIDES
        if self.size and not self.size <= shape[1] == shape[2]:
            raise ValueError(
                f"size is {self.size}; it must be 0 unless images are square and no smaller: {name} yields "
                f"{shape[1]} x {shape[2]}"
            )
        if not self.size and not least <= min(shape[1:]) <= max(shape[1:]) <= most:
            smaller = f"evaluate.features.size = {most}, or " if most < shape[1] == shape[2] else ""
            raise ValueError(
                f"the features `classifier` are for images of {least} to {most} pixels; {name} yields "
                f"{shape[1]} x {shape[2]}: set {smaller}evaluate.features = 'pooled_pixels' or 'inception'"
            )
        if self.task == "labels" and source.classes is None:
            raise ValueError(
                f"task is 'labels', and {name} has none: set evaluate.features.task = 'rotation' or 'auto'"
            )
        task: Task = "rotation" if self.task == "rotation" or source.classes is None else "labels"
        if task == "rotation" and shape[1] != shape[2]:
            raise ValueError(
                f"rotations need square images; {name} yields {shape[1]} x {shape[2]}: set evaluate.features = "
                "'pooled_pixels'"
            )
        return task


@dataclass(frozen=True, eq=False)
class FittedClassifier:
    """The features of a trained classifier; ``Classifier().fitted`` makes it.

    Args:
        net: the classifier.
        shape: of an image, (c, h, w).
        task: what it was trained to tell.
        accuracy: the share of held-out images that it tells right.
        held_out_rows: how many these are.
        seconds: how long the training took.
        size: to which side images are reduced before the net sees them; 0 if they are not.
    """

    net: nn.Sequential
    shape: tuple[int, ...]
    task: Task
    accuracy: float
    held_out_rows: int
    seconds: float
    size: int = 0

    def __call__(self, raw: UInt8[Tensor, "n c h w"]) -> Float[Tensor, "n f"]:
        """Return the features of images, (n, 128), on their device; they are computed on the CPU.

        Raises:
            ValueError: images of another shape than those it was trained on.
        """
        if raw.dtype != torch.uint8 or tuple(raw.shape[1:]) != self.shape:
            raise ValueError(
                f"this classifier was trained on uint8 images {self.shape}; there came {tuple(raw.shape[1:])}, "
                f"{raw.dtype}"
            )
        return recipe.penultimate(self.net, reduced(raw.cpu(), self.size)).to(raw.device)

    @property
    def fingerprint(self) -> str:
        """A text that is equal where the features are: the SHA-256 of the trained weights."""
        return f"classifier/{digest_of_state(self.net.state_dict())}"


@torch.inference_mode(mode=False)
def _fit(source: Source, codec: Codec, task: Task, seed: int, size: int) -> FittedClassifier:
    begun = time.perf_counter()
    held_out = source.held_out()
    shape = tuple(stored(held_out.raw[:1], codec).shape[1:])
    unseen = stored(held_out.raw, codec, size)
    images, labels = training_images(source, codec, max(1, _BYTES // unseen[0].numel()), size)
    known = labels if task == "labels" else None
    classes = 4 if task == "rotation" else source.classes or 1
    net = recipe.untrained(_seen(shape, size), classes, seed)
    recipe.train(net, images, known, flip=isinstance(source, HasFlip) and source.flip, seed=seed)
    right = recipe.accuracy(net, unseen, held_out.cond if task == "labels" else None)
    return FittedClassifier(net, shape, task, right, len(unseen), round(time.perf_counter() - begun, 3), size)


def _seen(shape: tuple[int, ...], size: int) -> tuple[int, int, int]:
    """Return the shape of the images that the net sees, (c, h, w)."""
    return (shape[0], size, size) if size else (shape[0], shape[1], shape[2])


def _keep(made: FittedClassifier, path: Path, digest: str) -> None:
    with needs("nets", "the classifier's weights need safetensors"):
        from safetensors.torch import save
    classes = made.net[-1].out_features
    record = {
        "shape": list(made.shape),
        "classes": classes,
        "task": made.task,
        "accuracy": made.accuracy,
        "held_out_rows": made.held_out_rows,
        "seconds": made.seconds,
        "size": made.size,
        "weights": digest_of_state(made.net.state_dict()),
    }
    text = json.dumps(record)
    checked = digest_of((digest + text).encode())
    keep_in_cache(path, save(made.net.state_dict(), {"record": text, "checked": checked}))


def _read(path: Path, digest: str) -> FittedClassifier | None:
    """Return the stored network; None if there is none or its file is damaged, so that it is fitted again."""
    with needs("nets", "the classifier's weights need safetensors"):
        from safetensors import SafetensorError, safe_open
    try:
        with safe_open(path, "pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
            state = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError):
        return None
    text = metadata.get("record", "")
    if metadata.get("checked") != digest_of((digest + text).encode()):
        return None
    record: dict[str, Any] = json.loads(text)
    if record["weights"] != digest_of_state(state):
        return None
    shape, size = tuple(record["shape"]), record.get("size", 0)
    net = recipe.untrained(_seen(shape, size), record["classes"], 0)
    try:
        net.load_state_dict(state)
    except RuntimeError:  # of another net
        return None
    rest = {key: record[key] for key in ("task", "accuracy", "held_out_rows", "seconds")}
    return FittedClassifier(net, shape, size=size, **rest)
