"""The folder of stored latents: ``manifest.json``, ``held-out.safetensors`` and ``shard-00000.safetensors``, ...

``encode`` writes it, ``Latents`` reads it. The manifest is there from the first moment and lists a
file once that is whole, so an encoding that was cut short is a manifest that lists too few.
"""

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from immiscible_diffusion.files import digest_of_file, read_json

__all__ = ["FORMAT", "HELD_OUT", "MANIFEST", "Manifest", "Shard", "check_file", "layout", "read_manifest", "shard_name"]

FORMAT = 1
MANIFEST = "manifest.json"
HELD_OUT = "held-out.safetensors"
_DTYPES = {"fp16": "F16", "fp32": "F32"}


@dataclass(frozen=True)
class Shard:
    """One file of latents: its rows, captions and bytes, its SHA-256, and the SHA-256 of its images and labels."""

    file: str
    rows: int
    captions: int
    bytes: int
    sha256: str
    content_sha256: str

    def __post_init__(self) -> None:
        if not re.fullmatch(r"held-out\.safetensors|shard-\d{5,}\.safetensors", self.file):
            raise ValueError(f"{self.file!r} is no name of a shard")  # a manifest cannot point out of its folder
        if min(self.rows, self.captions, self.bytes) < 0:
            raise ValueError(f"{self.file} has a negative count")

    @property
    def number(self) -> int:
        """The shard's number; -1 for the held-out images."""
        return -1 if self.file == HELD_OUT else int(self.file[6:-12])


@dataclass(frozen=True)
class Manifest:
    """What a folder of stored latents holds.

    Args:
        shape: of one latent, (z, y, x).
        image_shape: of one image, (c, h, w).
        rows: training rows of the source; shards lack those that it could not read.
        held_out_rows: rows whose images are stored for metrics.
        shard_rows: rows of every shard but the last.
        classes: number of classes, or None without labels.
        captions: whether every row has captions.
        posterior: whether standard deviations are stored; else the latent is the mean alone.
        flip: whether the mirror images' latents are stored too.
        dtype: of means and standard deviations.
        batch: images encoded at a time; with another, latents differ in the last bits.
        device: the kind of device that encoded.
        source: a description of the images' source, for people.
        encoder: the encoder's fingerprint.
        probe_rows: numbers of rows spread over the data ...
        probe_sha256: ... and the hash of their images and labels, by which the source is known again.
        held_out: the file of held-out images, once it is whole.
        shards: the shards that are whole, by number.
        class_names: the classes' names in the order of their labels, where the source has them.
        format: version of this layout.
    """

    shape: list[int]
    image_shape: list[int]
    rows: int
    held_out_rows: int
    shard_rows: int
    classes: int | None
    captions: bool
    posterior: bool
    flip: bool
    dtype: str
    batch: int
    device: str
    source: dict[str, Any]
    encoder: dict[str, Any]
    probe_rows: list[int]
    probe_sha256: str
    held_out: Shard | None = None
    shards: tuple[Shard, ...] = ()
    class_names: list[str] | None = None
    format: int = FORMAT

    def __post_init__(self) -> None:
        if len(self.shape) != 3 or len(self.image_shape) != 3 or self.dtype not in _DTYPES:
            raise ValueError(f"shapes {self.shape}, {self.image_shape} or dtype {self.dtype!r} are none")
        if min(*self.shape, *self.image_shape, self.rows, self.held_out_rows, self.shard_rows) < 1:
            raise ValueError("a shape or a count is below 1")
        for shard in self.shards:
            if shard.file != shard_name(shard.number) or not 1 <= shard.rows <= len(self.span(shard.number)):
                raise ValueError(f"{shard.file} with {shard.rows} rows is none of its shards")
        if len({shard.file for shard in self.shards}) != len(self.shards):
            raise ValueError("a shard is listed twice")

    @property
    def count(self) -> int:
        """How many shards there are when all are there."""
        return -(-self.rows // self.shard_rows)

    @property
    def finished(self) -> bool:
        """Whether every file is listed."""
        return len(self.shards) == self.count and self.held_out is not None

    def span(self, number: int) -> range:
        """Return the positions among the training rows that a shard is for."""
        return range(self.rows)[number * self.shard_rows : (number + 1) * self.shard_rows] if number >= 0 else range(0)

    def plain(self) -> dict[str, Any]:
        """Return the manifest as JSON values."""
        return dataclasses.asdict(self)


def shard_name(number: int) -> str:
    """Return the name of a shard's file."""
    return f"shard-{number:05d}.safetensors"


def layout(manifest: Manifest, shard: Shard) -> dict[str, tuple[str, list[int]]]:
    """Return dtype and shape of every tensor that a file must hold, as safetensors' header says them.

    ``captions`` (UTF-8, end to end) has any length, which is written as -1.
    """
    n, kind = shard.rows, _DTYPES[manifest.dtype]
    tensors = {"rows": ("I64", [n])}
    if manifest.classes is not None:
        tensors["labels"] = ("I64", [n])
    if manifest.captions:
        tensors |= {"captions": ("U8", [-1]), "caption_ends": ("I64", [shard.captions]), "row_ends": ("I64", [n])}
    if shard.file == HELD_OUT:
        return tensors | {"images": ("U8", [n, *manifest.image_shape])}
    for moment in ("mean", "std")[: 1 + manifest.posterior]:
        for side in ("", "_flipped")[: 1 + manifest.flip]:
            tensors[moment + side] = (kind, [n, *manifest.shape])
    return tensors


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of a folder.

    Raises:
        ValueError: it is missing, damaged, of another version, or contradicts itself.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise ValueError(
            f"{folder} holds no stored latents: it has no {MANIFEST}; set source.path to what encode wrote"
        )
    values = read_json(path)
    version = values.get("format") if isinstance(values, dict) else None
    if version != FORMAT:
        raise ValueError(f"{path} has format {version!r}; this version reads format {FORMAT}: encode the images again")
    try:
        shards = tuple(_typed(Shard, entry) for entry in values["shards"])
        held_out = None if values["held_out"] is None else _typed(Shard, values["held_out"])
        manifest: Manifest = _typed(Manifest, values | {"shards": shards, "held_out": held_out})
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {error!r}") from error
    return manifest


def check_file(folder: Path, manifest: Manifest, shard: Shard, *, content: bool = False) -> None:
    """Refuse a file that differs from its entry in the manifest: by size and header, or by every byte.

    Raises:
        ValueError: names the file and what is wrong with it.
    """
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise ImportError("stored latents need safetensors: pip install 'immiscible-diffusion[nets]'") from error
    path = folder / shard.file
    if not path.is_file():
        raise ValueError(f"{path} is missing; encode again into this folder to restore it")
    if path.stat().st_size != shard.bytes:
        raise ValueError(f"{path} has {path.stat().st_size} bytes, not {shard.bytes}; encode again to restore it")
    try:
        with safe_open(path, "pt") as file:
            held = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            header = {name: (tensor.get_dtype(), tensor.get_shape()) for name, tensor in held.items()}
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} is damaged: {error}; encode again to restore it") from error
    if "captions" in header:
        header["captions"] = (header["captions"][0], [-1])
    if header != layout(manifest, shard):
        raise ValueError(f"{path} holds {header}, not {layout(manifest, shard)}; encode again to restore it")
    if content and digest_of_file(path) != shard.sha256:
        raise ValueError(f"{path} is damaged: its SHA-256 is not the manifest's; encode again to restore it")


def _typed(cls: type[Any], values: dict[str, Any]) -> Any:
    """Return a dataclass of JSON values, each of the type that its field names."""
    hints = get_type_hints(cls)
    for name, value in values.items():
        if name not in hints or not _fits(value, hints[name]):
            raise ValueError(f"{name} is {value!r}")
    return cls(**values)


def _fits(value: Any, hint: Any) -> bool:
    origin, inner = get_origin(hint), get_args(hint)
    if origin is UnionType:
        return any(_fits(value, member) for member in inner)
    if origin in (list, tuple):
        return isinstance(value, origin) and all(_fits(item, inner[0]) for item in value)
    return type(value) is (origin or hint)  # a bool is no int here
