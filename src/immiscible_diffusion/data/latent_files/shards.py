"""From rows of a source to the bytes of one file."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from immiscible_diffusion.data.latent_files.stored import HELD_OUT, Manifest, Shard, shard_name
from immiscible_diffusion.files import write_bytes
from immiscible_diffusion.processes import one_thread
from immiscible_diffusion.types import Batch, HasCaptions, HasMoments, HasRandomAccess, HasRowNames, Int

__all__ = ["Job", "content_hash", "has_captions", "row_name", "split", "store_held_out", "take"]

_FP16_MAX = 65504


@dataclass(frozen=True)
class Job:
    """What a shard is made with, in this process or another."""

    source: HasRandomAccess
    codec: HasMoments
    folder: Path
    manifest: Manifest
    device: str

    def make(self, number: int, rows: Int[Tensor, " n"]) -> Shard:
        """Encode one shard's rows, write the file whole, and return its entry in the manifest.

        Raises:
            ValueError: a source that breaks ``HasRandomAccess``, or moments that fp16 cannot hold.
            OSError: the file cannot be written.
        """
        manifest, digest = self.manifest, hashlib.sha256()
        parts: dict[str, list[Tensor]] = defaultdict(list)
        with one_thread():
            for numbers in torch.split(rows, manifest.batch):
                batch, good_rows = take(self.source, numbers)
                if not len(good_rows):
                    continue
                _update(digest, self.source, batch)
                parts["rows"].append(good_rows)
                for side in ("", "_flipped")[: 1 + manifest.flip]:
                    images = batch.raw.flip(-1) if side else batch.raw
                    for name, moment in self._moments(images, good_rows.tolist()).items():
                        parts[name + side].append(moment)
                if batch.cond is not None:
                    parts["labels"].append(batch.cond)
        if not parts:
            raise ValueError(f"none of the {len(rows)} images of rows {int(rows[0])} to {int(rows[-1])} can be read")
        tensors = {name: torch.cat(values) for name, values in parts.items()}
        return _write(self, shard_name(number), tensors, digest.hexdigest())

    def _moments(self, images: Tensor, rows: Sequence[int]) -> dict[str, Tensor]:
        """Return the moments as they are stored; an error names the first image that alone has it too."""
        try:
            return self._stored_moments(images)
        except ValueError as error:
            for i, row in enumerate(rows if len(rows) > 1 else ()):
                self._moments(images[i : i + 1], [row])
            names = [row_name(self.source, row) for row in rows]
            raise ValueError(f"{' to '.join(dict.fromkeys((names[0], names[-1])))}: {error}") from error

    def _stored_moments(self, images: Tensor) -> dict[str, Tensor]:
        mean, std = self.codec.moments(images.to(self.device))
        moments = {"mean": mean} | ({} if std is None else {"std": std})
        return {name: _narrowed(moment, self.manifest.dtype) for name, moment in moments.items()}


def store_held_out(job: Job, held_out: Batch) -> Shard:
    """Write the held-out images and return the file's entry in the manifest.

    Raises:
        OSError: the file cannot be written.
    """
    digest = hashlib.sha256()
    held_out, rows = _checked(job.source, held_out)
    _update(digest, job.source, held_out)
    tensors = {"images": held_out.raw, "rows": rows} | ({} if held_out.cond is None else {"labels": held_out.cond})
    return _write(job, HELD_OUT, tensors, digest.hexdigest())


def split(source: HasRandomAccess) -> tuple[Batch, Tensor]:
    """Return the held-out images, and the numbers of the training rows, (n,), rising.

    Raises:
        ValueError: the source numbers its rows otherwise, or a held-out image cannot be read.
    """
    held_out, rows = _checked(source, source.held_out())
    count, known = source.rows + len(rows), set(rows.tolist())
    if len(known) != len(rows) or not known <= set(range(count)) or _has(source, count):
        raise ValueError(
            f"the source has {source.rows} training rows and gives {len(rows)} held-out images: all together must be "
            f"numbered 0 .. {count - 1}, and no held-out image may be unreadable"
        )
    kept = torch.ones(count, dtype=torch.bool)
    kept[rows] = False
    return held_out, kept.nonzero().flatten()


def take(source: HasRandomAccess, rows: Int[Tensor, " b"]) -> tuple[Batch, Tensor]:
    """Return rows of a source and the numbers of those that could be read, held to what ``HasRandomAccess`` promises.

    Raises:
        ValueError: they are not what was asked for.
    """
    batch, found = _checked(source, source.take(rows))
    left = iter(rows.tolist())
    if not all(row in left for row in found.tolist()):  # in this order: each is sought behind the one before
        raise ValueError(f"the source was asked for rows {rows.tolist()} and gave {found.tolist()}")
    return batch, found


def has_captions(source: HasRandomAccess, rows: Int[Tensor, " n"]) -> bool:
    """Return whether any of these rows has a caption."""
    return isinstance(source, HasCaptions) and any(source.captions(rows))


def content_hash(source: HasRandomAccess, rows: Int[Tensor, " n"]) -> str:
    """Return the SHA-256 of images, labels and captions of these rows."""
    digest = hashlib.sha256()
    for numbers in torch.split(rows, 16):
        _update(digest, source, take(source, numbers)[0])
    return digest.hexdigest()


def _has(source: HasRandomAccess, row: int) -> bool:
    try:
        source.take(torch.tensor([row]))
    except (IndexError, ValueError):
        return False
    return True


def _checked(source: HasRandomAccess, batch: Batch) -> tuple[Batch, Tensor]:
    rows = batch.rows
    if rows is None:
        raise ValueError("the source gave images without row numbers")
    if batch.raw.dtype != torch.uint8 or batch.raw.shape != (len(rows), *source.shape):
        raise ValueError(
            f"the source gave {batch.raw.dtype} {tuple(batch.raw.shape)}, not uint8 {(len(rows), *source.shape)}"
        )
    labelled = batch.cond is not None and batch.cond.dtype == torch.int64 and batch.cond.shape == (len(rows),)
    if len(rows) and labelled != (source.classes is not None):
        raise ValueError(f"the source has {source.classes} classes and gave labels {batch.cond}, not one for each row")
    return batch, rows


def _update(digest: Any, source: HasRandomAccess, batch: Batch) -> None:
    digest.update(batch.raw.contiguous().numpy().data)
    if batch.cond is not None:
        digest.update(batch.cond.contiguous().numpy().data)
    if isinstance(source, HasCaptions) and batch.rows is not None:
        digest.update(json.dumps([list(each) for each in source.captions(batch.rows)]).encode())


def row_name(source: HasRandomAccess, row: int) -> str:
    """Return the name of a row in messages."""
    return source.row_name(row) if isinstance(source, HasRowNames) else f"row {row}"


def _narrowed(moment: Tensor, dtype: str) -> Tensor:
    """Return a moment as it is stored."""
    moment = moment.cpu()
    if dtype == "fp32":
        return moment
    if float(moment.abs().max()) > _FP16_MAX:
        raise ValueError(f"a moment is {float(moment.abs().max()):g}, above fp16's {_FP16_MAX}: store dtype fp32")
    return moment.half()


def _write(job: Job, name: str, tensors: dict[str, Tensor], content: str) -> Shard:
    from safetensors.torch import save

    captions: Sequence[Sequence[str]] = []
    if job.manifest.captions and isinstance(job.source, HasCaptions):
        captions = job.source.captions(tensors["rows"])
        if not all(row and all(row) for row in captions):
            raise ValueError(f"a row of {name} has no caption, or an empty one, where others have captions")
        texts = [text.encode() for row in captions for text in row]
        tensors["captions"] = torch.frombuffer(bytearray(b"".join(texts)), dtype=torch.uint8)
        tensors["caption_ends"] = torch.tensor(list(accumulate(map(len, texts))))
        tensors["row_ends"] = torch.tensor(list(accumulate(map(len, captions))))
    written = save({key: value.contiguous() for key, value in tensors.items()})
    write_bytes(job.folder / name, written)
    count, rows = sum(map(len, captions)), len(tensors["rows"])
    return Shard(name, rows, count, len(written), hashlib.sha256(written).hexdigest(), content)
