"""Warnings about calls that run and yet pair nothing, or pair the wrong things. Each is given once for a line of code.

The checks cost nothing in a training step: they use numbers that the pairing computes anyway, and whatever waits for a
device is looked at in the first call from a line alone.
"""

import math
import sys
import warnings
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from immiscible_diffusion.couplings._cost import real_part, total_norm
from immiscible_diffusion.couplings._shared_noise import several_processes, shared_noise

__all__ = ["MisuseWarning", "warn_of", "warn_once", "watch_call", "watch_noise", "watch_partners", "watch_processes"]

_BAND = 0.1
"""How far from 1 the noise's root mean square may be: noise offset 0.1 makes it 1.005, swapped CIFAR-10 data 0.53."""
_SIGMAS = 5
"""Standard errors of a small batch's root mean square that are added to the band."""
_LEAST, _BRIGHT, _MOST = -16.0, 64.0, 272.0
"""Data still 0 to 255 lie between the first and the last, as resizing overshoots; their largest is above the second."""
_SKIPPED = {"immiscible_diffusion", "torch", "jaxtyping", "beartype"}
"""Packages whose frames lie between the user's line and a warning."""

_given: set[tuple[str, str, int]] = set()


class MisuseWarning(UserWarning):
    """A call that runs although it pairs nothing, or pairs wrongly; the message names the remedy.

    To silence all of them: ``warnings.filterwarnings("ignore", category=immiscible_diffusion.MisuseWarning)``.
    """


def watch_call(x: Tensor, noise: Tensor | None = None, mask: Tensor | None = None) -> None:
    """Look at the first call from a line: warn of data that are still bytes, and of noise that processes share."""
    if not _first("data"):
        return
    real = x.detach() if mask is None else torch.where(mask, x.detach(), 0)
    low, high = (float(value) for value in real.aminmax())
    if low >= _LEAST and _BRIGHT < high <= _MOST:
        _warn(
            f"x reaches from {low:g} to {high:g}, as bytes 0 to 255 do; noise of variance 1 pairs with data in model "
            f"space: scale x first, such as x / 127.5 - 1"
        )
    if noise is not None:
        watch_processes(noise)


def watch_processes(noise: Tensor) -> bool:
    """Warn where another process has drawn this noise; return whether there are several processes."""
    several = several_processes()
    if several and (message := shared_noise(noise)):
        warn_of(message)
    return several


def watch_partners(x: Tensor, labels: Tensor | None) -> None:
    """Warn, in the first call from a line, where no row has another to exchange noise with."""
    if not _first("partners"):
        return
    if len(x) == 1:
        _warn(
            "a batch of one row has nothing to pair with, so its noise stays independent: use nearest(x, k) or "
            "Nearest(k), which need no partners, or pair an accumulation window at once (assign_window([x1, x2, ...]))"
        )
    elif labels is not None and len(torch.unique(labels)) == len(x):
        _warn(
            f"no two of the {len(x)} rows share a label, so each has nothing to pair with: use larger batches, batches "
            f"of fewer classes, or nearest(x, k), which needs no partners"
        )


def watch_noise(noise: Tensor, norm: float, mask: Tensor | None) -> None:
    """Warn once for a line where noise, of this norm, is not of unit variance, up to the sampling error.

    Of masked noise, which may be zero at padding, real places count, and it is looked at in the first call alone.
    """
    numel = noise.numel()
    if mask is not None:
        if not _first("masked noise"):
            return
        noise = noise[: len(mask)]
        norm, numel = total_norm(real_part(noise, mask)), max(int(mask.expand_as(noise).sum()), 1)
    rms = norm / math.sqrt(numel)
    if abs(rms - 1) <= _BAND + _SIGMAS / math.sqrt(2 * numel) or not math.isfinite(rms) or not _first("noise"):
        return
    _warn(
        f"noise has root mean square {rms:.2g} and must be standard normal, of 1. Data come first, assign(x, noise), "
        f"where some libraries have (noise, data); and noise is paired before it is multiplied by sigma. "
        f"noise = couple(x) in place of the draw is right in both cases"
    )


def warn_once(kind: str, message: str) -> None:
    """Warn of a misuse, once for the user's line and this kind of it."""
    if _first(kind):
        _warn(message)


def warn_of(message: str) -> None:
    """Warn of a misuse at the user's line, as often as the filters of warnings say."""
    registry = _caller().f_globals.setdefault("__warningregistry__", {})
    _warn(message, registry)


def _warn(message: str, registry: dict[Any, Any] | None = None) -> None:
    """Warn at the user's line; without a registry each call counts, since this module has counted already."""
    frame = _caller()
    module = frame.f_globals.get("__name__", "__main__")
    registry = {} if registry is None else registry
    warnings.warn_explicit(message, MisuseWarning, frame.f_code.co_filename, frame.f_lineno, module, registry)


def _first(kind: str) -> bool:
    """Return whether the user's line that is running comes here for the first time with this kind of check."""
    frame = _caller()
    key = kind, frame.f_code.co_filename, frame.f_lineno
    if key in _given:
        return False
    _given.add(key)
    return True


def _caller() -> FrameType:
    """Return the frame of the line that called this library, past wrappers of torch and of type checkers."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _SKIPPED:
        frame = frame.f_back
    return frame
