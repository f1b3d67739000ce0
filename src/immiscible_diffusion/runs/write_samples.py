"""Images generated into a folder: resumable, by several processes, the same whatever their number."""

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from immiscible_diffusion.experiments.config import read_config
from immiscible_diffusion.export.model import INDEX, load_export
from immiscible_diffusion.files import digest_of_file, locked, read_json, remove_parts, write_bytes, write_json
from immiscible_diffusion.processes import one_thread, results
from immiscible_diffusion.registry import make
from immiscible_diffusion.runs.conditions import conditions_for
from immiscible_diffusion.runs.pictures import save_grid
from immiscible_diffusion.sample import Start, Trained, generate, with_guidance, with_sampler
from immiscible_diffusion.streams import stream_seed

__all__ = ["SamplingOptions", "write_samples"]

_CHOICE = "samples.json"
_PART = 50
"""Images that a process generates at a time, and the most that an interrupt costs it. A part that was cut is generated
whole again, and what it lacked is written: a net's last digits depend on how many it sees at once."""


@dataclass(frozen=True)
class SamplingOptions:
    """What to generate; a folder holds images of one such choice, however many.

    Args:
        steps: sampling steps.
        seed: names the images' streams.
        start: ``matched`` or ``normal``.
        sampler: one of the method's, or its own if empty.
        options: of the sampler, such as ``eta``.
        labels: the classes that the images run through, for a conditional net; none if empty.
        guidance: the scale of classifier-free guidance; 1 is none.
        run: the run's configuration as plain values, where held-out rows' captions, or what enters beside the image,
            are the condition; empty otherwise.
    """

    steps: int
    seed: int = 0
    start: Start = "matched"
    sampler: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    labels: tuple[int, ...] = ()
    guidance: float = 1.0
    run: dict[str, Any] = field(default_factory=dict)

    def applied(self, trained: Trained) -> Trained:
        """Return the model with the sampler and the guidance that were asked for.

        Raises:
            ValueError: the method has no such sampler or option, or the net no guidance.
        """
        trained = with_guidance(trained, self.guidance)
        if not self.sampler and not self.options:
            return trained
        return with_sampler(trained, self.sampler, **self.options)


def write_samples(
    export: Path, folder: Path, n: int, options: SamplingOptions, *, workers: int, device: str
) -> Iterator[int]:
    """Write images 0 .. n - 1 as PNG files, a grid and ``samples.npz``, and yield how many are there after each part.

    Images that lie there already are kept, so the same call goes on where one was cut, and a larger n adds to it. They
    are generated 50 at a time. Image i is the same whatever n and workers are, but for the last digit of a pixel:
    several workers have a CPU thread each, one has torch's, and a last part smaller than 50 is computed as such.
    ``samples.npz`` holds them as ``arr_0``, (n, h, w, c), uint8, the form that evaluation programs read; ``seeds``,
    (n,), int64, are what a torch generator is seeded with to draw each image's noise, for use with a stock pipeline.

    Args:
        export: the folder of an exported model.
        folder: empty, not there yet, or of an earlier call.
        n: how many images.
        options: which ones.
        workers: processes; 1 generates in this one.
        device: where to compute.

    Raises:
        ValueError: the folder holds images of another choice or model or of anyone else's, a damaged image, or another
            process works in it; or the model draws none.
    """
    shape = read_json(export / "immiscible.json", INDEX)["shape"]
    if len(shape) != 3:
        raise ValueError(
            f"this model draws rows of shape {tuple(shape)}, no images; `immiscible rollout` tries a policy"
        )
    with locked(folder):
        remove_parts(folder)
        _claim(export, folder, options)
        parts = [_Part(i, min(_PART, n - i), _lacking(folder, range(i, min(i + _PART, n)))) for i in range(0, n, _PART)]
        parts = [part for part in parts if part.lacking]
        done = n - sum(len(part.lacking) for part in parts)
        yield done
        for count in _made(export, folder, options, parts, min(workers, len(parts)), device):
            done += count
            yield done
        images = _read_all(folder, n)
        save_grid(images[:256], folder / "grid.png", columns=16 if n > 64 else 8)
        buffer = BytesIO()
        seeds = np.array([stream_seed(options.seed, i, "sample") for i in range(n)], dtype=np.int64)
        np.savez_compressed(buffer, arr_0=images.permute(0, 2, 3, 1).numpy(), seeds=seeds)
        write_bytes(folder / "samples.npz", buffer.getvalue())


class _Part(NamedTuple):
    """Images that are generated in one batch: the number of the first, the count, and the images to write."""

    first: int
    size: int
    lacking: list[int]


def _lacking(folder: Path, numbers: range) -> list[int]:
    return [i for i in numbers if not _path(folder, i).is_file()]


def _made(
    export: Path, folder: Path, options: SamplingOptions, parts: list[_Part], workers: int, device: str
) -> Iterator[int]:
    if workers <= 1:
        trained = load_export(export)
        yield from (_write(trained, folder, part, options, device) for part in parts)
        return
    index = read_json(export / "immiscible.json", INDEX)
    pieces = [make(kind, index[kind], imports=False) for kind in ("net", "method", "codec")]
    tasks = [(export, folder, part, options, device, pieces) for part in parts]
    with closing(results(_work, tasks, workers)) as counts:
        yield from counts


_loaded = lru_cache(1)(load_export)
"""The model of a process that writes part after part of it."""


def _work(export: Path, folder: Path, part: _Part, options: SamplingOptions, device: str, pieces: list[Any]) -> int:
    """Write a part. Receiving the model's pieces imports the modules of their classes, which load_export does not."""
    with one_thread():
        return _write(_loaded(export), folder, part, options, device)


def _write(trained: Trained, folder: Path, part: _Part, options: SamplingOptions, device: str) -> int:
    first, n, lacking = part
    labels = None
    if options.labels:
        labels = torch.tensor([options.labels[i % len(options.labels)] for i in range(first, first + n)])
    if options.run:
        labels = conditions_for(read_config(options.run), n, first)
    trained.net.to(device)
    model = options.applied(trained)
    made = generate(model, n, steps=options.steps, seed=options.seed, start=options.start, cond=labels, first=first)
    images = torch.cat(list(made))
    for i in lacking:
        save_grid(images[i - first].unsqueeze(0), _path(folder, i), columns=1)
    return len(lacking)


def _claim(export: Path, folder: Path, options: SamplingOptions) -> None:
    model = {"model": read_json(export / "immiscible.json", INDEX), "weights_sha256": _digest(export)}
    plain = json.loads(json.dumps(model | {"asked": asdict(options)}))
    path = folder / _CHOICE
    has_images = any(re.fullmatch(r"\d{6,}\.png", file.name) for file in folder.iterdir())
    if has_images and not path.exists():
        raise ValueError(f"{folder} holds images that no call of this made; give another --out")
    if has_images and read_json(path) != plain:
        raise ValueError(f"{folder} holds images of another model or another choice; give another --out, or remove it")
    write_json(path, plain)


def _digest(export: Path) -> str:
    """Return a SHA-256 of the names and contents of a model's weights."""
    digest = hashlib.sha256()
    for path in sorted(export.rglob("*.safetensors")):
        digest.update(f"{path.relative_to(export).as_posix()} {digest_of_file(path)}\n".encode())
    return digest.hexdigest()


def _path(folder: Path, i: int) -> Path:
    return folder / f"{i:06d}.png"


def _read_all(folder: Path, n: int) -> Tensor:
    """Return images 0 .. n - 1, (n, c, h, w), uint8.

    Raises:
        ValueError: one is damaged, or of another size than the first.
    """
    from PIL import Image

    images = list[Tensor]()
    for i in range(n):
        path = _path(folder, i)
        try:
            with Image.open(path) as opened:
                pixels = torch.from_numpy(np.array(opened))
        except (OSError, SyntaxError, ValueError) as error:
            raise ValueError(f"{path} is damaged ({error}): remove it, and the same command makes it again") from error
        images.append(pixels.permute(2, 0, 1) if pixels.ndim == 3 else pixels.unsqueeze(0))
        if images[i].shape != images[0].shape:
            raise ValueError(
                f"{path} is {tuple(images[i].shape)} and the first image {tuple(images[0].shape)}: remove the one that "
                "is not of this model, and the same command makes it again"
            )
    return torch.stack(images)
