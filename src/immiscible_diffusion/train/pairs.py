"""The pairs of data and noise that a run trains on, in one process or in the share of one of several."""

import hashlib
import time
from collections.abc import Generator
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from immiscible_diffusion.checks import check_mask
from immiscible_diffusion.couplings import Joint
from immiscible_diffusion.couplings._shared_noise import shared_on_purpose
from immiscible_diffusion.share import Share, among_zeros, gathered
from immiscible_diffusion.shared_batches import shared
from immiscible_diffusion.streams import stream
from immiscible_diffusion.train.options import Train
from immiscible_diffusion.types import (
    Batch,
    Codec,
    Coupling,
    HasChoice,
    HasMemory,
    HasRowByRow,
    HasTrainingRows,
    HasWindow,
    Source,
)

__all__ = ["Pair", "chosen_pairs", "copied", "masked", "pairs"]


class Pair(NamedTuple):
    """One step's rows in model space with their noise, the coupling's memory after the step, and the seconds taken.

    On several processes x, noise, cond and mask are the rows of this one; ``rows`` counts those of all.
    """

    x: Tensor
    noise: Tensor
    cond: Tensor | None
    mask: Tensor | None
    rows: int
    memory: dict[str, Tensor] | None
    seconds: dict[str, float]


def pairs(
    source: Source, codec: Codec, coupling: Coupling, config: Train, device: torch.device, start: int, share: Share
) -> Generator[Pair, None, None]:
    """Yield the pairs of the steps from ``start`` on; they depend on the step and the coupling's memory alone.

    The batch of all processes is what is paired, so that the pairs do not depend on their number: each reads and
    encodes its own rows, the encoded rows are exchanged, and every process computes the same noise and keeps its rows'.
    A coupling that looks at one row at a time needs no exchange.

    A coupling with a window pairs so many batches at once, with the noise of the first one's step. A run that was cut
    in mid-window pairs that window again: until its last batch, what the coupling remembers is what it did before it.

    Raises:
        ValueError: a coupling that pairs across processes itself; two processes with the same noise.
    """
    if share.world > 1 and _holds_joint(coupling):
        raise ValueError(
            "coupling is or holds a Joint, which pairs across processes in a loop of one's own; this loop does that "
            "itself: hand over the coupling that it should apply, such as Assignment()"
        )
    group = dist.new_group() if share.world > 1 else None  # of its own: the gradients' messages may be under way
    window = coupling.window if isinstance(coupling, HasWindow) else 1
    first = start - start % window
    batches = shared(source, config.batch, config.seed, first, share)
    for i in range(first, config.steps, window):
        begun = time.perf_counter()
        local_batches = [_encoded(next(batches), codec, device) for _ in range(window)]
        encoded = time.perf_counter()
        kept = copied(coupling.memory()) if isinstance(coupling, HasMemory) and window > 1 else None
        draws = stream(config.seed, i, "noise", device)
        all_noise = _noise(coupling, local_batches, draws, i, config.batch, share, group)
        if i == first and share.world > 1:
            _check_apart(all_noise[0], group)
        spent = {"data": encoded - begun, "coupling": time.perf_counter() - encoded}
        seconds = {part: value / window for part, value in spent.items()}
        for j, (batch, noise) in enumerate(zip(local_batches, all_noise, strict=True), i):
            # The coupling may pair the next batch, or training on this one may fail, before it becomes the state's.
            if isinstance(coupling, HasMemory) and j == i + window - 1:
                kept = copied(coupling.memory())
            rows = len(noise) if share.world == 1 else config.batch
            if start <= j < config.steps:
                yield Pair(batch.raw, noise, batch.cond, batch.mask, rows, kept, seconds)


def _holds_joint(coupling: object) -> bool:
    """Return whether a coupling is a ``Joint``, or one wrapped in others."""
    return isinstance(coupling, Joint) or (hasattr(coupling, "coupling") and _holds_joint(coupling.coupling))


def chosen_pairs(
    source: Source, codec: Codec, coupling: HasChoice, config: Train, device: torch.device, start: int, share: Share
) -> Generator[Pair, None, None]:
    """Yield the pairs of a coupling that chooses the rows; they depend on the step alone.

    Every process chooses for all, and reads all rows, so that what is random about a row is the same everywhere.

    Raises:
        ValueError: the source cannot give rows by number.
    """
    if not isinstance(source, HasTrainingRows):
        raise ValueError(f"the coupling chooses rows by number, and source {type(source).__name__} cannot give them so")
    for i in range(start, config.steps):
        begun = time.perf_counter()
        choice = coupling.choose(config.batch, stream(config.seed, i, "noise", device))
        chosen = time.perf_counter()
        rows = source.training_rows(choice.places.cpu(), choice.mirrored.cpu(), stream(config.seed, i, "data"))
        local_batch = Batch(*(None if part is None else share.of(part) for part in rows))  # type: ignore[arg-type]
        batch = _encoded(local_batch, codec, device)
        seconds = {"data": time.perf_counter() - chosen, "coupling": chosen - begun}
        memory = copied(coupling.memory()) if isinstance(coupling, HasMemory) else None
        noise = share.of(choice.noise)
        yield Pair(batch.raw, noise, batch.cond, batch.mask, len(choice.noise), memory, seconds)


def masked(mask: Tensor | None) -> dict[str, Tensor]:
    """Return the mask as a keyword; none without one, so that couplings and methods need not know of masks."""
    return {} if mask is None else {"mask": mask}


def copied(memory: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a memory whose tensors nobody else changes."""
    return {name: value.clone() for name, value in memory.items()}


def _encoded(batch: Batch, codec: Codec, device: torch.device) -> Batch:
    """Return the batch on the device, its data in model space."""
    batch = _moved(batch, device)
    x = codec.encode(batch.raw)
    check_mask(x, batch.mask)
    return batch._replace(raw=x)


def _noise(
    coupling: Coupling, batches: list[Batch], draws: torch.Generator, step: int, total: int, share: Share, group: Any
) -> list[Tensor]:
    """Return the noise of this process's rows of every batch of a window, paired among the rows of all processes."""
    sizes = share.sizes(total) if share.world > 1 else []
    first, count = sum(sizes[: share.rank]), len(batches[0].raw)
    if share.world == 1:
        whole = batches
    elif isinstance(coupling, HasRowByRow) and coupling.row_by_row and batches[0].mask is None:
        whole = [Batch(among_zeros(batch.raw, sizes, share.rank), None) for batch in batches]
    else:
        whole = [
            Batch(*(None if part is None else gathered(part, sizes, group) for part in batch))  # type: ignore[arg-type]
            for batch in batches
        ]
    x, cond, index, mask = whole[0] if len(whole) == 1 else Batch(*map(_joined, zip(*whole, strict=True)))  # type: ignore[arg-type]
    with shared_on_purpose() if share.world > 1 else nullcontext():
        noise: Tensor = coupling(x, cond=cond, generator=draws, index=index, step=step, **masked(mask))
    parts = torch.split(noise, [len(batch.raw) for batch in whole])
    return [part[first : first + count] for part in parts] if share.world > 1 else list(parts)


def _joined(parts: tuple[Tensor | None, ...]) -> Tensor | None:
    """Return one field of several batches, joined to one batch."""
    tensors = [part for part in parts if part is not None]
    return torch.cat(tensors) if len(tensors) == len(parts) else None


def _check_apart(noise: Tensor, group: Any) -> None:
    """Compare the noise of all processes' rows.

    Raises:
        ValueError: two processes have the same.
    """
    digest = hashlib.blake2b(noise.detach().float().cpu().numpy().tobytes(), digest_size=16).digest()
    mine = torch.frombuffer(bytearray(digest), dtype=torch.uint8)[None].to(noise.device)
    others = [bytes(row) for row in gathered(mine, [1] * dist.get_world_size(group), group).tolist()]
    for rank, other in enumerate(others):
        if (first := others.index(other)) != rank:
            raise ValueError(
                f"processes {first} and {rank} train on the same noise: start every process with the same train.seed "
                "and its own rank, as `accelerate launch` and `torchrun` do"
            )


def _moved(batch: Batch, device: torch.device) -> Batch:
    """Return the batch on the device.

    Raises:
        ValueError: the source yields something else than tensors.
    """
    for name, value in zip(Batch._fields, batch, strict=False):
        if value is not None and not isinstance(value, Tensor):
            raise ValueError(f"the source yields a {type(value).__name__} as {name}; it must be a tensor, or None")
    return Batch(
        *(None if value is None else value.to(device, non_blocking=value.is_pinned()) for value in batch)  # type: ignore[arg-type]
    )
