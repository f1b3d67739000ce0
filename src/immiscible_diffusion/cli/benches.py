"""The command that times things, and records what it saw after every row, so that an interrupt keeps it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from immiscible_diffusion.bench import bench as bench_couplings
from immiscible_diffusion.bench import bench_data, bench_line, bench_page, bench_sizes
from immiscible_diffusion.bench_images import bench_images
from immiscible_diffusion.bench_papers import bench_papers, papers_line
from immiscible_diffusion.bench_step import bench_step, step_line
from immiscible_diffusion.cli.options import choice, out
from immiscible_diffusion.data import Images
from immiscible_diffusion.files import write_bytes, write_json
from immiscible_diffusion.runs import environment

__all__ = ["bench"]

_WHAT = ["couplings", "papers", "step", "images"]


def bench(
    what: Annotated[
        str,
        typer.Argument(
            help="couplings: against public code; papers: the papers' tables of pairing; "
            "step: a training step with and without pairing; images: reading a data set."
        ),
    ] = "couplings",
    sizes: Annotated[
        list[str] | None, typer.Option("--size", help="couplings: b x d, as 256x3072; repeatable.")
    ] = None,
    k: Annotated[int, typer.Option(min=1, help="couplings: candidates of nearest.")] = 64,
    times: Annotated[int, typer.Option(min=1, help="couplings: candidates of oversampling, times b.")] = 16,
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch.")] = 1,
    images: Annotated[str, typer.Option(help="Images: folder, parquet or hub name.")] = "",
    size: Annotated[int, typer.Option("--pixels", min=1, help="images: height and width.")] = 32,
    repeats: Annotated[int, typer.Option(min=2, help="papers: batches a row; step: rounds.")] = 40,
    record: Annotated[Path | None, typer.Option("--out", help="Write the figures to this JSON file.")] = None,
    page: Annotated[
        Path | None, typer.Option("--readme", help="couplings: put the table between this page's markers.")
    ] = None,
) -> None:
    """Time the couplings, a training step or the reading of images, and record what was seen."""
    if what not in _WHAT:
        raise ValueError(f"no benchmark named {what!r}; there are {_WHAT}")
    if what in ("papers", "images") and not images:
        raise ValueError(f"bench {what} needs --images: a folder, a parquet file or a hub data set's name")
    torch.set_num_threads(threads)
    about: dict[str, Any] = {"images": Path(images).name}
    if what == "couplings":
        about |= {"k": k, "times": times}
        found = bench_couplings(bench_sizes(sizes), bench_data(images), k=k, times=times)
        rows = _recorded(found, bench_line, record, about)
        if page is not None:
            write_bytes(page, bench_page(page.read_text(encoding="utf-8"), rows).encode())
    elif what == "papers":
        _recorded(bench_papers(_batches(images), repeats=repeats), papers_line, record, about)
    elif what == "step":
        net = choice("net", '{use="unet", channels=[16, 32], layers=1}')  # that of the experiment digits-unet
        parts = choice("source", "digits"), choice("codec", "pixels"), choice("method", "denoising"), net
        _recorded(bench_step(*parts, batch=128, steps=5, rounds=repeats), step_line, record, {"net": "digits-unet"})
    else:
        measured = bench_images(images, size)
        out.print_json(data=measured)
        if record is not None:
            write_json(record, {**about, "environment": environment(), **measured})


def _recorded(
    found: Iterator[dict[str, Any]],
    line: Callable[[dict[str, Any]], str],
    record: Path | None,
    about: dict[str, Any],
) -> list[dict[str, Any]]:
    """Return the rows; each is printed and written before the next is measured."""
    rows = []
    about = {**about, "environment": environment()}
    for row in found:
        rows.append(row)
        out.print(line(row), highlight=False, soft_wrap=True)
        if record is not None:
            write_json(record, {**about, "rows": rows})
    return rows


def _batches(images: str) -> Callable[[int, int], Tensor]:
    source = Images(images, size=32, held_out_rows=1)
    return lambda b, i: next(source.batches(b, 0, start=i)).raw.flatten(1)
