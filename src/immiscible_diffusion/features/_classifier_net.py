"""The net of the classifier features, and how it is trained: a fixed recipe, on one CPU thread, from one seed."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice

import torch
from torch import Tensor, nn

from immiscible_diffusion.features._shown import shown
from immiscible_diffusion.types import UInt8

__all__ = ["RECIPE", "accuracy", "fit_seconds", "penultimate", "rotations", "train", "untrained"]

RECIPE = 1
"""The version of net and training; kept weights of another are not used."""
_WIDTH = 128
_STEPS, _LEAST_STEPS, _EPOCHS, _BATCH = 4700, 200, 20, 128
"""Steps are as many as these epochs take, within these bounds; every step sees this many images, or rotations."""
_LR, _DECAY = 4e-3, 0.05
_TIMED = 2
_LABEL = "training the classifier of features, once"
_ROWS = 250
"""Images through the net at a time when nothing is trained."""


def untrained(shape: tuple[int, int, int], classes: int, seed: int) -> nn.Sequential:
    """Return the net for images of this shape, (c, h, w), with weights of the seed; the global generator is left alone.

    The first convolution brings images to 16 x 16 at most, further ones halve them down to 4 x 4; the last layer but
    one has 128 numbers.
    """
    channels, *sides = shape
    with torch.random.fork_rng(devices=[]):
        layers: list[nn.Module] = []
        for wide, stride in _convolutions(max(sides)):
            layers += _convolution(channels, wide, stride)
            channels, sides = wide, [-(-side // stride) for side in sides]
        layers += [nn.Flatten(), nn.Linear(channels * sides[0] * sides[1], _WIDTH, bias=False)]
        last = nn.Linear(_WIDTH, classes)
        net = nn.Sequential(*layers, nn.BatchNorm1d(_WIDTH), nn.ReLU(), last).float()
    generator = torch.Generator().manual_seed(seed)
    for layer in net:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, generator=generator)
    nn.init.zeros_(last.bias)
    return net.eval().requires_grad_(False)


def _convolutions(side: int) -> Iterator[tuple[int, int]]:
    """Yield output channels and stride of each convolution for images of this side."""
    wide, stride = 32, 1 if side <= 16 else 2 if side <= 32 else 4
    yield wide, stride
    side = -(-side // stride)
    while side > 4 or wide < 128:
        wide = min(2 * wide, 128)
        yield wide, 2
        side = -(-side // 2)


def _convolution(narrow: int, wide: int, stride: int) -> list[nn.Module]:
    size = max(3, 2 * stride - 1)
    return [nn.Conv2d(narrow, wide, size, stride, size // 2, bias=False), nn.BatchNorm2d(wide), nn.ReLU()]


def train(
    net: nn.Sequential, images: UInt8[Tensor, "n c h w"], labels: Tensor | None, *, flip: bool, seed: int
) -> None:
    """Train a net in place to tell the labels, (n,), or without labels by which quarter turns images were rotated.

    Images are shifted by up to an eighth of their side, and mirrored at random with ``flip``. AdamW, one cycle of
    learning rates. One CPU thread: the result does not depend on how many there are.

    Args:
        net: of ``untrained``.
        images: training images.
        labels: their classes, or None.
        flip: mirror half of the images.
        seed: names order, shifts and mirroring.
    """
    generator = torch.Generator().manual_seed(seed + 1)
    size = min(_BATCH if labels is not None else _BATCH // 4, len(images))
    steps = _steps(len(images))
    with torch.enable_grad(), _one_thread():
        net.train().requires_grad_(True)
        optimizer = torch.optim.AdamW(net.parameters(), lr=_LR, weight_decay=_DECAY)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LR, total_steps=steps, pct_start=0.2)
        for rows in shown(islice(_orders(len(images), size, generator), steps), steps, _LABEL):
            x = _moved(images[rows], flip, generator)
            x, target = rotations(x) if labels is None else (x, labels[rows])
            loss = nn.functional.cross_entropy(net(scaled(x)), target)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        net.eval().requires_grad_(False)


def fit_seconds(shape: tuple[int, int, int], rows: int) -> float:
    """Return about how many seconds training on this many images takes, from two timed steps on one thread."""
    net = untrained(shape, 4, 0)
    images = torch.zeros(_BATCH, *shape)
    with torch.enable_grad(), _one_thread():
        net.train().requires_grad_(True)
        net(images).sum().backward()  # the first step warms up
        begun = time.perf_counter()
        for _ in range(_TIMED):
            net(images).sum().backward()
    return (time.perf_counter() - begun) / _TIMED * _steps(rows)


def _steps(rows: int) -> int:
    return min(_STEPS, max(_LEAST_STEPS, _EPOCHS * rows // _BATCH))


def rotations(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return images in all four quarter turns, (4 n, c, h, h), and the number of turns of each, (4 n,).

    >>> turned, turns = rotations(torch.arange(4.0).reshape(1, 1, 2, 2))
    >>> turned[1].flatten().tolist(), turns.tolist()
    ([1.0, 3.0, 0.0, 2.0], [0, 1, 2, 3])
    """
    turned = torch.cat([images.rot90(turns, (2, 3)) for turns in range(4)])
    return turned, torch.arange(4).repeat_interleave(len(images))


def accuracy(net: nn.Sequential, images: UInt8[Tensor, "n c h w"], labels: Tensor | None) -> float:
    """Return the share of images whose class, or without labels whose rotation, the net tells."""
    right = total = 0
    with _one_thread():
        for rows in torch.split(torch.arange(len(images)), _ROWS):
            x, target = rotations(images[rows]) if labels is None else (images[rows], labels[rows])
            with torch.no_grad():
                right += int((net(scaled(x)).argmax(1) == target).sum())
            total += len(target)
    return right / total


def penultimate(net: nn.Sequential, images: UInt8[Tensor, "n c h w"]) -> Tensor:
    """Return the last numbers before the scores of the classes, (n, f), float32."""
    with torch.no_grad():
        return torch.cat([net[:-1](scaled(part)) for part in torch.split(images, _ROWS)])


def scaled(images: Tensor) -> Tensor:
    """Return images in [-1, 1], in the order of memory that convolutions on a CPU are fastest in."""
    return (images.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def _moved(images: Tensor, flip: bool, generator: torch.Generator) -> Tensor:
    """Return images shifted at random, edges repeated, and mirrored at random if that is asked for."""
    n, channels, height, width = images.shape
    reach = max(height, width) // 8
    if flip:
        mirrored = torch.rand(n, generator=generator, dtype=torch.float32) < 0.5
        images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
    down, right = torch.randint(-reach, reach + 1, (2, n, 1), generator=generator)
    rows = (torch.arange(height) + down).clamp(0, height - 1)
    columns = (torch.arange(width) + right).clamp(0, width - 1)
    return images[
        torch.arange(n)[:, None, None, None],
        torch.arange(channels)[None, :, None, None],
        rows[:, None, :, None],
        columns[:, None, None, :],
    ]


def _orders(count: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield row numbers, (size,), for ever, each epoch in another order."""
    while True:
        order = torch.randperm(count, generator=generator)
        yield from (part for part in torch.split(order, size) if len(part) == size)


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
