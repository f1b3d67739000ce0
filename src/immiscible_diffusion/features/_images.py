"""From stored images to the input of a network, and through it in batches that fit."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

__all__ = ["in_batches", "rgb"]

_CPU_BATCH, _GPU_BATCH = 16, 128


def rgb(raw: Tensor, name: str) -> Tensor:
    """Return images as RGB, (n, 3, h, w), uint8; grey ones get three equal channels.

    Raises:
        ValueError: not uint8 images of one or three channels.
    """
    if raw.dtype != torch.uint8 or raw.ndim != 4 or raw.shape[1] not in (1, 3):
        came = f"{tuple(raw.shape)}, {raw.dtype}"
        raise ValueError(f"{name} takes uint8 images (n, 3, h, w) or (n, 1, h, w); there came {came}")
    return raw.expand(-1, 3, -1, -1)


def in_batches(raw: Tensor, forward: Callable[[Tensor], Tensor]) -> Tensor:
    """Return forward(images) of all images, (n, f), a batch at a time, in full float32 precision on their device.

    On one CPU thread 16 images at a time are fastest: larger batches fall out of the cache.
    """
    size = _CPU_BATCH if raw.device.type == "cpu" else _GPU_BATCH
    with torch.inference_mode(), _full_precision():
        parts = [forward(part) for part in torch.split(raw, size)]
    return torch.cat(parts).clone()


@contextmanager
def _full_precision() -> Iterator[None]:
    """Forbid TF32, which convolutions take by default: it moves features by about 1e-3."""
    matmul = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = matmul
