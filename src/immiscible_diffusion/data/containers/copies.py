"""Held-out images that training sees as well."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from hashlib import blake2b

from torch import Tensor

from immiscible_diffusion.data._decode import Reader
from immiscible_diffusion.data.containers.listing import Labels, Listing
from immiscible_diffusion.types import Int, UInt8

__all__ = ["equal_files", "equal_rows"]

_MOST_BYTES, _LEAST_BYTES = 2**27, 2**15
"""What may be read to compare files, and what a file counts at least: 4,096 files at most."""


def equal_rows(
    pixels: UInt8[Tensor, "n c h w"], train: Int[Tensor, " t"], held: Int[Tensor, " m"]
) -> tuple[list[int], int]:
    """Return the held-out rows with the same pixels as a training row, and the number of rows compared: all.

    >>> import torch
    >>> pixels = torch.tensor([0, 1, 2, 1], dtype=torch.uint8).reshape(4, 1, 1, 1)
    >>> equal_rows(pixels, torch.tensor([0, 1]), torch.tensor([2, 3]))
    ([3], 2)
    """
    return _among(held.tolist(), train.tolist(), lambda row: _digest(pixels[row].numpy().tobytes())), len(held)


def equal_files(listing: Listing, train: Int[Tensor, " t"], held: Int[Tensor, " m"]) -> tuple[list[int], int]:
    """Return the held-out rows with the same encoded bytes as a training row, and the number of rows compared.

    Files of one size are read, up to 128 MiB and 4,096 files in all; a file whose size no other has is not read. Images
    of parquet files, whose sizes only reading them tells, are not compared.
    """
    if listing.grouped:
        return [], 0
    training = _by_size(listing.sizes, train)
    copies, compared, left = [], len(held), _MOST_BYTES
    for size, rows in _by_size(listing.sizes, held).items():
        others = training.get(size, [])
        if not others or not size:
            continue
        if (cost := max(size, _LEAST_BYTES) * (len(rows) + len(others))) > left:
            compared -= len(rows)
            continue
        left -= cost
        copies += _among(rows, others, lambda row: _file_digest(listing.read, row))
    return sorted(copies), compared


def _among(rows: Sequence[int], others: Sequence[int], digest: Callable[[int], bytes | None]) -> list[int]:
    """Return the rows whose digest another row has."""
    known = {digest(row) for row in others} - {None}
    return [row for row in rows if digest(row) in known]


def _by_size(sizes: Labels, rows: Int[Tensor, " n"]) -> dict[int, list[int]]:
    groups: dict[int, list[int]] = defaultdict(list)
    for row, size in zip(rows.tolist(), sizes[rows.numpy()].tolist(), strict=True):
        groups[size].append(row)
    return groups


def _file_digest(read: Reader, row: int) -> bytes | None:
    try:
        return _digest(read(row))
    except Exception:  # whatever is wrong with a file, it is told where its image is needed
        return None


def _digest(content: bytes) -> bytes:
    return blake2b(content, digest_size=16).digest()
