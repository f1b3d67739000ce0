"""A share of any source's batches."""

from collections.abc import Iterator

from immiscible_diffusion.share import Share
from immiscible_diffusion.types import Batch, HasShares, Source

__all__ = ["shared"]


def shared(source: Source, size: int, seed: int, start: int, share: Share) -> Iterator[Batch]:
    """Yield one share of each of the source's batches; a source without that ability reads them whole."""
    if share.world == 1:
        yield from source.batches(size, seed, start=start)
    elif isinstance(source, HasShares):
        yield from source.share_batches(size, seed, start, share)
    else:
        for batch in source.batches(size, seed, start=start):
            yield Batch(*(None if value is None else share.of(value) for value in batch))  # type: ignore[arg-type]
