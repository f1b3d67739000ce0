"""A source of images and an encoder that need no files, for tests of stored latents in this process and others."""

import hashlib
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from immiscible_diffusion.types import Batch


@dataclass(frozen=True)
class Pictures:
    """Images of random pixels, a function of the row number alone; every fourth is held out."""

    count: int = 40
    side: int = 8
    salt: int = 0
    labels: bool = True
    pause: float = 0.0
    bad: tuple[int, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        return (3, self.side, self.side)

    @property
    def rows(self) -> int:
        return self.count - len(range(0, self.count, 4))

    @property
    def classes(self) -> int | None:
        return 5 if self.labels else None

    def batches(self, size: int, seed: int, start: int = 0) -> Iterator[Batch]:
        raise NotImplementedError

    def held_out(self) -> Batch:
        return self.take(torch.arange(0, self.count, 4))

    def take(self, rows: Tensor) -> Batch:
        time.sleep(self.pause)
        if not all(0 <= row < self.count for row in rows.tolist()):
            raise ValueError(f"there are {self.count} rows")
        rows = torch.tensor([row for row in rows.tolist() if row not in self.bad], dtype=torch.long)
        images = [torch.empty(0, *self.shape, dtype=torch.uint8), *(self.image(row)[None] for row in rows.tolist())]
        return Batch(torch.cat(images), rows % 5 if self.labels else None, rows)

    def image(self, row: int) -> Tensor:
        generator = torch.Generator().manual_seed(1000 * self.salt + row)
        return torch.randint(0, 256, self.shape, dtype=torch.uint8, generator=generator)


@dataclass(frozen=True)
class CaptionedPictures(Pictures):
    """The same with one to three captions a row."""

    def captions(self, rows: Tensor) -> list[list[str]]:
        return [[f"picture {row}, caption {i} \N{SNOWMAN}" for i in range(1 + row % 3)] for row in rows.tolist()]


@dataclass(frozen=True)
class Blur:
    """An encoder by a fixed convolution: mean (b, 4, h / 4, w / 4) and, with a posterior, a standard deviation."""

    posterior: bool = True
    gain: float = 1.0

    def moments(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        kernel = torch.linspace(-1, 1, 8 * 3 * 16).reshape(8, 3, 4, 4) * self.gain
        mean, spread = functional.conv2d(images.float() / 127.5 - 1, kernel, stride=4).chunk(2, dim=1)
        return mean, spread.abs() + 0.1 if self.posterior else None

    def fingerprint(self) -> dict[str, Any]:
        digest = hashlib.sha256(f"{self.posterior} {self.gain}".encode()).hexdigest()
        return {"class": "Blur", "weights_sha256": digest}


def fail_at_three_die_at_five(number: int) -> int:
    """Return a number, but for those that the name says."""
    if number == 3:
        raise ValueError("three")
    if number == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return number
