"""The command that turns images into stored latents."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal, get_args

import typer
from rich.markup import escape

from immiscible_diffusion.cli.options import Device, checked_device, choice, out, progress
from immiscible_diffusion.data import Images, Latents
from immiscible_diffusion.data.latent_files import encode as encode_source

__all__ = ["encode"]

Stored = Literal["fp16", "fp32"]


def encode(
    source: Annotated[str, typer.Option(help='What to encode: \'{use="images", path="folder", size=256}\'.')],
    codec: Annotated[str, typer.Option(help='The autoencoder: \'{use="vae", path="folder or hub name"}\'.')],
    folder: Annotated[Path, typer.Option("--out", help="Where latents go; the same command again goes on there.")],
    flip: Annotated[bool, typer.Option("--flip", help="Also encode every image mirrored.")] = False,
    shard_rows: Annotated[int, typer.Option(min=1, help="Images in a file.")] = 4096,
    batch: Annotated[int, typer.Option(min=1, help="Images encoded at a time.")] = 16,
    workers: Annotated[int, typer.Option(min=0, help="Processes; 0 encodes in this one.")] = 0,
    precision: Annotated[str, typer.Option(help="fp16 or fp32: how latents are stored.")] = "fp16",
    verify: Annotated[bool, typer.Option("--verify", help="Then check every file against its checksum.")] = False,
    device: Device = None,
) -> None:
    """Encode a data set once, so that training reads latents; an interrupted run goes on where it was."""
    dtypes: dict[str, Stored] = {name: name for name in get_args(Stored)}
    if precision not in dtypes:
        raise ValueError(f"no precision named {precision!r}; there are {list(dtypes)}")
    images = choice("source", source)
    if isinstance(images, Images):  # every worker opens the source: none should decode all of it first
        images = dataclasses.replace(images, memory=False, flip=False)
    with progress("encoding") as move:
        for done in encode_source(
            images,
            choice("codec", codec),
            folder,
            flip=flip,
            shard_rows=shard_rows,
            batch=batch,
            workers=workers,
            device=checked_device(device),
            dtype=dtypes[precision],
        ):
            move(completed=done.rows, total=done.of)
    out.print(f"Latents are in {escape(str(folder))}; train on them with source = {{use = 'latents', path = ...}}")
    if verify:
        out.print(f"{Latents(str(folder)).verify()} files hold what their checksums say")
