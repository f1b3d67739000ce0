"""A whole data set in model space, for couplings over all of it, and how such a coupling is made ready."""

import hashlib

import torch
from torch import Tensor

from immiscible_diffusion.checks import check_finite
from immiscible_diffusion.tensors import batch_rows
from immiscible_diffusion.types import Codec, Coupling, Float, HasPreparation, HasTrainingRows, Source

__all__ = ["data_points", "digest_of_rows", "prepared"]

_READ = 500
"""Rows read and encoded at a time."""


def data_points(source: Source, codec: Codec, device: torch.device) -> Float[Tensor, "n *dims"]:
    """Return all training rows of a source in model space, float32, on the device: as they are, without randomness.

    Raises:
        ValueError: a source that cannot give its rows one by one, padded data, NaN or infinity.
    """
    if not isinstance(source, HasTrainingRows):
        raise ValueError(
            f"a coupling over the whole data set chooses rows by number, and source {type(source).__name__} cannot "
            "give them so (types.HasTrainingRows): take coupling = 'assignment', alone or in windows ('windowed')"
        )
    parts = list[Tensor]()
    for places in torch.split(torch.arange(source.rows), _READ):
        batch = source.training_rows(places, torch.zeros(len(places), dtype=torch.bool))
        if batch.mask is not None:
            raise ValueError("a coupling over the whole data set pairs whole rows; these data are padded")
        parts.append(codec.encode(batch.raw.to(device)).float())
    data = torch.cat(parts)
    check_finite(data=batch_rows(data, "data"))
    return data


def digest_of_rows(data: Float[Tensor, "n *dims"]) -> str:
    """Return the SHA-256 of the data, equal where files, decoder, codec and scale are."""
    digest = hashlib.sha256(str(tuple(data.shape)).encode())
    for part in torch.split(data, _READ):
        digest.update(part.contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()


def prepared(coupling: Coupling, source: Source, codec: Codec, device: torch.device | None = None) -> Coupling:
    """Return the coupling ready for its data set: fitted to it, or read from the cache; most need nothing.

    Args:
        coupling: any.
        source: whose training rows it will pair.
        codec: takes them to model space.
        device: where training is; the CPU if None.

    Raises:
        ValueError: as the coupling's ``prepare``.

    >>> from immiscible_diffusion import Assignment, Digits, Pixels
    >>> prepared(Assignment(), Digits(), Pixels())
    Assignment(cost='l2', precision='fp32', per_class=False)
    """
    if not isinstance(coupling, HasPreparation):
        return coupling
    preparing = coupling.prepare(source, codec, device)
    while True:
        try:
            next(preparing)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
