"""Create, resume and verify a folder of encoded latents."""

import dataclasses
import warnings
from collections.abc import Iterator
from itertools import starmap
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from immiscible_diffusion.data.latent_files.shards import (
    Job,
    content_hash,
    has_captions,
    row_name,
    split,
    store_held_out,
    take,
)
from immiscible_diffusion.data.latent_files.stored import (
    HELD_OUT,
    MANIFEST,
    Manifest,
    check_file,
    read_manifest,
    shard_name,
)
from immiscible_diffusion.files import locked, write_json
from immiscible_diffusion.processes import results
from immiscible_diffusion.registry import describe
from immiscible_diffusion.types import HasClassNames, HasMoments, HasRandomAccess

__all__ = ["Progress", "encode"]

_PROBE_ROWS = 64


class Progress(NamedTuple):
    """How many training rows are done, and of how many."""

    rows: int
    of: int


def encode(
    source: HasRandomAccess,
    codec: HasMoments,
    folder: Path,
    *,
    flip: bool = False,
    shard_rows: int = 4096,
    batch: int = 16,
    workers: int = 0,
    device: str = "cpu",
    dtype: Literal["fp16", "fp32"] = "fp16",
) -> Iterator[Progress]:
    """Store the posteriors of a source's training images, and yield progress at once and after every shard.

    The source ``latents`` reads them, and finds the held-out images beside them. The same call again goes on where the
    last was cut, whatever cut it, and ends with the same bytes as one that was not: a shard is made of the same
    batches, on one CPU thread, whatever ``workers``. (Another kind of device, or another version of torch, may differ
    in the last bits. On a GPU deterministic kernels are asked for, without TF32.) The manifest lists a file once that
    is whole; a file listed already is first compared with its SHA-256, and made again, with a warning, if it differs.
    A finished folder is left alone after a look at sizes and headers. The source is known again by 64 rows spread over
    it; each shard's entry in the manifest has the hash of all its images. Rows that the source leaves out as unreadable
    are left out here.

    fp16 rounds a moment by at most 2⁻¹¹ of its size (2⁻²⁵ below 6.1e-5); one above 65,504 is refused.

    Args:
        source: images and, if it has them, labels and captions.
        codec: the codec ``vae``.
        folder: empty, not there yet, or of an earlier call.
        flip: store the mirror images' posteriors too, for ``Latents(flip=True)``; twice the work and size.
        shard_rows: rows of a file. A cut costs at most the shards in work, one a worker.
        batch: images encoded at a time.
        workers: processes beside this one, one CPU thread each; 0 encodes in this one.
        device: where to encode.
        dtype: of the stored moments.

    Raises:
        ValueError: an option out of range; a folder that holds latents of another source, encoder or option, or other
            files, or that another process works in; a source that breaks ``HasRandomAccess``; moments that fp16
            cannot hold.
        OSError: a file cannot be written, as on a full disk; what was whole stays, and nothing else does.
    """
    if shard_rows < 1 or batch < 1 or workers < 0 or dtype not in ("fp16", "fp32"):
        raise ValueError(
            f"shard_rows {shard_rows}, batch {batch}, workers {workers}, dtype {dtype!r}: "
            "the first two must be 1 or more, workers 0 or more, dtype fp16 or fp32"
        )
    if not isinstance(source, HasRandomAccess):
        raise ValueError(f"{type(source).__name__} has no rows that can be read by number; encode the source images")
    if not isinstance(codec, HasMoments):
        raise ValueError(f"the codec is {type(codec).__name__}, which has no autoencoder; encode with the codec vae")
    options = {"flip": flip, "shard_rows": shard_rows, "batch": batch, "dtype": dtype}
    with locked(folder):
        manifest = _begun(source, codec, folder, options, device)
        yield _progress(manifest)
        if manifest.finished:
            return
        job = Job(source, codec, folder, manifest, device)
        held_out, training = split(source)
        if manifest.held_out is None:
            manifest = dataclasses.replace(manifest, held_out=store_held_out(job, held_out))
            write_json(folder / MANIFEST, manifest.plain())
        files = {shard.file for shard in manifest.shards}
        tasks = [(i, _of(manifest, i, training)) for i in range(manifest.count) if shard_name(i) not in files]
        for shard in results(job.make, tasks, workers) if workers else starmap(job.make, tasks):
            shards = sorted([*manifest.shards, shard], key=lambda entry: entry.number)
            manifest = dataclasses.replace(manifest, shards=tuple(shards))
            write_json(folder / MANIFEST, manifest.plain())
            yield _progress(manifest)


def _of(manifest: Manifest, number: int, training: Tensor) -> Tensor:
    span = manifest.span(number)
    return training[span.start : span.stop]


def _progress(manifest: Manifest) -> Progress:
    return Progress(sum(len(manifest.span(shard.number)) for shard in manifest.shards), manifest.rows)


def _begun(source: HasRandomAccess, codec: HasMoments, folder: Path, options: dict[str, Any], device: str) -> Manifest:
    """Return the manifest of a new or resumed encoding; it lists the files that are complete."""
    for part in folder.glob(".*.part"):  # of a process that was killed
        part.unlink(missing_ok=True)
    if not (folder / MANIFEST).exists():
        if others := [path.name for path in folder.iterdir() if not path.name.startswith(".")]:
            raise ValueError(f"{folder} holds other files, {others[0]!r} for one: choose an empty folder")
        manifest = _planned(source, codec, options, device)
        write_json(folder / MANIFEST, manifest.plain())
        return manifest
    manifest = read_manifest(folder)
    _refuse_others(manifest, source, codec, folder, options)
    kept = _intact(folder, manifest, content=not manifest.finished)
    if manifest.finished and not kept.finished:
        kept = _intact(folder, kept, content=True)
    if not kept.finished and kept.device != torch.device(device).type:
        raise ValueError(f"{folder} was begun on device {kept.device}, which must end it, not {device}")
    if kept != manifest:
        write_json(folder / MANIFEST, kept.plain())
    return kept


def _planned(source: HasRandomAccess, codec: HasMoments, options: dict[str, Any], device: str) -> Manifest:
    held_out, training = split(source)
    spread = torch.linspace(0, len(training) - 1, min(_PROBE_ROWS, len(training)), dtype=torch.float64)
    probe = training[spread.round().long()]
    batch, rows = take(source, probe)
    if not len(rows):
        raise ValueError(f"none of {len(probe)} images spread over the source can be read")
    try:
        mean, std = codec.moments(batch.raw[:1].to(device))
    except ValueError as error:
        raise ValueError(f"{row_name(source, int(rows[0]))}: {error}") from error
    named = source.class_names if isinstance(source, HasClassNames) else None
    try:
        description = describe("source", source)
    except ValueError:  # a class of one's own that no file names
        description = {"use": f"{type(source).__module__}:{type(source).__qualname__}"}
    return Manifest(
        shape=list(mean.shape[1:]),
        image_shape=list(source.shape),
        rows=len(training),
        held_out_rows=len(held_out.raw),
        classes=source.classes,
        captions=has_captions(source, probe),
        posterior=std is not None,
        device=torch.device(device).type,
        source=description,
        encoder=codec.fingerprint(),
        probe_rows=probe.tolist(),
        probe_sha256=content_hash(source, probe),
        class_names=None if named is None else list(named),
        **options,
    )


def _refuse_others(
    manifest: Manifest, source: HasRandomAccess, codec: HasMoments, folder: Path, options: dict[str, Any]
) -> None:
    """Raise ValueError where the folder was begun with another source, encoder or option."""
    if source.rows != manifest.rows:
        raise ValueError(f"{folder} was encoded with rows = {manifest.rows}, not {source.rows}: choose another folder")
    probe = torch.tensor(manifest.probe_rows)
    came = {
        "image_shape": list(source.shape),
        "classes": source.classes,
        "captions": has_captions(source, probe),
        "encoder": codec.fingerprint(),
        **options,
    }
    for name, value in came.items():
        if value != getattr(manifest, name):
            raise ValueError(
                f"{folder} was encoded with {name} = {getattr(manifest, name)}, not {value}: choose another folder"
            )
    if content_hash(source, probe) != manifest.probe_sha256:
        raise ValueError(f"{folder} was encoded from another source, whose images differ: choose another folder")


def _intact(folder: Path, manifest: Manifest, *, content: bool) -> Manifest:
    """Return the manifest without the files that differ from their entry; warn of each."""
    damaged = set()
    for shard in [*([manifest.held_out] if manifest.held_out else []), *manifest.shards]:
        try:
            check_file(folder, manifest, shard, content=content)
        except ValueError as error:
            warnings.warn(f"it is made again: {error}", stacklevel=4)
            damaged.add(shard.file)
    return dataclasses.replace(
        manifest,
        held_out=None if HELD_OUT in damaged else manifest.held_out,
        shards=tuple(shard for shard in manifest.shards if shard.file not in damaged),
    )
