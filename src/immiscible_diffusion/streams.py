"""Named random streams: every draw of a run is a function of (seed, step, name) alone."""

import hashlib
from typing import Literal

import torch

__all__ = ["Stream", "stream", "stream_seed"]

Stream = Literal["data", "noise", "time", "net", "sample", "hole"]


def stream_seed(seed: int, step: int, name: Stream) -> int:
    """Return the 63-bit seed of one stream at one step."""
    digest = hashlib.blake2b(f"{seed}/{step}/{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def stream(seed: int, step: int, name: Stream, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a fresh generator for one stream at one step, on the device.

    Resuming needs no saved generator state, and two runs that differ in the coupling alone see the same
    batches, noise and times.

    >>> a = torch.randn(2, generator=stream(0, 7, "noise"))
    >>> bool((a == torch.randn(2, generator=stream(0, 7, "noise"))).all())
    True
    """
    return torch.Generator(device).manual_seed(stream_seed(seed, step, name))
