"""Features of real CIFAR-10 images and damaged ones, kept in chunks so that a cut extraction goes on where it was."""

import io
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from immiscible_diffusion.features import Inception
from immiscible_diffusion.files import write_bytes
from immiscible_diffusion.streams import stream

__all__ = ["LAYERS", "SETS", "extract", "features_in", "images_of"]

LAYERS: tuple[Literal[64, 192, 768, 1280], ...] = (64, 192, 768, 1280)
"""The layers measured: those that the weights up to Mixed_7a give."""
SETS = ("train", "test", "jpeg75", "noise8", "noise25")
"""Training and test images, and test images after JPEG at quality 75 or with Gaussian noise of 8 or 25 grey levels."""
_CHUNK = 250


def extract(cifar10: Path, inception: Inception, into: Path, counts: Mapping[str, int]) -> Iterator[Path]:
    """Compute the features of the first images of each set, and yield each chunk's file as it is done.

    Chunks that are there already are not computed again: the same call goes on after an interruption. About 10 images a
    second on one thread.

    Args:
        cifar10: the folder of CIFAR-10's parquet files.
        inception: weights and resize; its layer is not used.
        into: the folder of the chunks, one safetensors file for 250 images.
        counts: how many images of each of ``SETS``, in multiples of 250.

    Raises:
        ValueError: an unknown set, a count that is no multiple of 250, or images that are not there.
    """
    from safetensors.torch import save

    for name, count in counts.items():
        if name not in SETS or count % _CHUNK:
            raise ValueError(f"{count} of {name!r}: the sets are {SETS}, counts are multiples of {_CHUNK}")
    for first in range(0, max(counts.values(), default=0), _CHUNK):
        for name in (name for name, count in counts.items() if first < count):
            path = into / f"{name}-{first:05d}.safetensors"
            if path.exists():
                continue
            features = inception.several(images_of(cifar10, name, first, first + _CHUNK), LAYERS)
            write_bytes(path, save({str(layer): value.contiguous() for layer, value in features.items()}))
            yield path


def features_in(chunks: Path) -> dict[str, dict[int, Tensor]]:
    """Return the features in a folder of chunks, by set and layer, (n, f) each, up to the first gap.

    Raises:
        ValueError: a chunk cannot be read.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    result = dict[str, dict[int, Tensor]]()
    for name in SETS:
        parts = list[dict[str, Tensor]]()
        while (path := chunks / f"{name}-{_CHUNK * len(parts):05d}.safetensors").exists():
            try:
                parts.append(load(path.read_bytes()))
            except SafetensorError as error:
                raise ValueError(f"cannot read {path}: {error}; delete it, and it is computed again") from error
        if parts:
            result[name] = {int(layer): torch.cat([part[str(layer)] for part in parts]) for layer in LAYERS}
    return result


def images_of(cifar10: Path, name: str, start: int, stop: int) -> Tensor:
    """Return images of one set in their stored order, (stop - start, 3, 32, 32), uint8.

    Raises:
        ImportError: pyarrow or Pillow is not installed.
        ValueError: there are fewer images.
    """
    try:
        from PIL import Image

        parquet = import_module("pyarrow.parquet")
    except ImportError as error:
        raise ImportError("CIFAR-10's files need datasets: pip install 'immiscible-diffusion[data]'") from error
    prefix = "train" if name == "train" else "test"
    cells: list[bytes] = []
    for path in sorted(cifar10.glob(f"{prefix}-*.parquet")):
        if len(cells) < stop:
            cells += [cell["bytes"] for cell in parquet.read_table(path, columns=["img"])["img"].to_pylist()]
    if len(cells) < stop:
        raise ValueError(f"{cifar10} holds {len(cells)} {prefix} images; asked for were {stop}")
    images = []
    for row in range(start, stop):
        with Image.open(io.BytesIO(cells[row])) as opened:
            picture = opened.convert("RGB")
        if name == "jpeg75":
            buffer = io.BytesIO()
            picture.save(buffer, "JPEG", quality=75)
            picture = Image.open(buffer).convert("RGB")
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
        if name.startswith("noise"):
            noise = torch.randn(pixels.shape, generator=stream(0, row, "noise")) * float(name.removeprefix("noise"))
            pixels = (pixels + noise).round().clamp(0, 255).to(torch.uint8)
        images.append(pixels)
    return torch.stack(images)
