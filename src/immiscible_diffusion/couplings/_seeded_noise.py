"""Normal rows as a function of a seed: the counter-based generator Philox, in tensor operations.

Philox4x32-10 (Salmon et al., SC 2011, section 3.3) turns a 64-bit key and a 128-bit counter into four 32-bit words, the
same on every device. A row needs no generator object, and rows need no order: any of them can be drawn alone.
"""

import math

import torch
from torch import Tensor

from immiscible_diffusion.types import Float, Int

__all__ = ["normal_rows", "philox"]

_MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
_WEYL = 0x9E3779B9, 0xBB67AE85
_WORD = 0xFFFFFFFF
_CHUNK = {"cpu": 1 << 15}
"""Blocks of four values drawn at once: on a CPU as many as its cache holds, which doubles the speed."""


def philox(key: Tensor, counter: tuple[Tensor, Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return four words in 0..2^32 - 1, int64, of Philox4x32-10 in the broadcast shape of key and counter.

    Args:
        key: int64, any bits.
        counter: four words, int64 in 0..2^32 - 1.

    >>> zero = torch.zeros(1, dtype=torch.long)
    >>> hex(int(philox(zero, (zero, zero, zero, zero))[0]))
    '0x6627e8d5'
    """
    c0, c1, c2, c3 = counter
    low, high = key & _WORD, (key >> 32) & _WORD
    for _ in range(10):
        # int64 products wrap to the same 64 bits as unsigned ones. Only c0 and c2 are multiplied, so that the low
        # words may keep what stands above their 32 bits until the end.
        first, second = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0 = ((second >> 32) ^ c1 ^ low) & _WORD
        c2 = ((first >> 32) ^ c3 ^ high) & _WORD
        c1, c3 = second, first
        low, high = (low + _WEYL[0]) & _WORD, (high + _WEYL[1]) & _WORD
    return c0, c1 & _WORD, c2, c3 & _WORD


@torch.no_grad()
def normal_rows(
    seeds: Int[Tensor, " b"], d: int, device: torch.device | None = None, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "b d"]:
    """Return the standard normal row of each seed, (b, d).

    A value is a function of its seed and its column alone: of no other row, not of d, and, up to the rounding of
    logarithm, sine and cosine, not of the device.

    Marginal: standard normal, by Box-Muller; no value is beyond 6.8, as 32 bits a uniform allow.
    Cost: b d draws, about three times as long as ``torch.randn`` on a CPU; memory b d and, on a GPU, 100 MB.

    Args:
        seeds: one number for each row, int64, any bits.
        d: values in a row.
        device: where the rows are drawn; by default where the seeds are.
        dtype: float32 or float64; the same words, rounded to either.

    >>> rows = normal_rows(torch.tensor([5, 7]), 4)
    >>> torch.equal(normal_rows(torch.tensor([7]), 3), rows[1:, :3])
    True
    """
    seeds = seeds.to(device or seeds.device)
    blocks = -(-d // 4)
    rows = torch.empty(len(seeds), blocks, 4, dtype=dtype, device=seeds.device)
    zero = torch.zeros(1, 1, dtype=torch.long, device=seeds.device)
    chunk = _CHUNK.get(seeds.device.type, 1 << 20)
    many = max(1, chunk // blocks)
    for i in range(0, len(seeds), many):
        for j in range(0, blocks, chunk):
            part = rows[i : i + many, j : j + chunk]
            block = torch.arange(j, j + part.shape[1], device=seeds.device).unsqueeze(0)
            words = philox(seeds[i : i + many].unsqueeze(1), (block, zero, zero, zero))
            for pair in (0, 2):
                radius = ((words[pair].to(dtype) + 0.5) * 2**-32).log_().mul_(-2).sqrt_()
                angle = words[pair + 1].to(dtype) * (2 * math.pi * 2**-32)
                torch.mul(radius, angle.cos(), out=part[..., pair])
                torch.mul(radius, angle.sin_(), out=part[..., pair + 1])
    return rows.flatten(1)[:, :d].contiguous()
