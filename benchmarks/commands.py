"""The benchmarks as commands; each row is recorded as soon as it is measured, so that an interrupt keeps it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from benchmarks.couplings import bench, bench_data, bench_line, bench_page, bench_sizes
from benchmarks.images import bench_images
from benchmarks.papers import bench_papers, papers_line
from benchmarks.step import bench_step, step_line
from immiscible_diffusion.cli.options import choice, out
from immiscible_diffusion.data import Images
from immiscible_diffusion.files import write_bytes, write_json
from immiscible_diffusion.runs.folder import environment

__all__ = ["couplings", "images", "papers", "step"]

Threads = Annotated[int, typer.Option(min=1, help="Threads of torch.")]
Record = Annotated[Path | None, typer.Option("--out", help="Write the figures to this JSON file.")]


def couplings(
    data: Annotated[str, typer.Option("--images", help="Folder, parquet file or hub name; without it, noise.")] = "",
    sizes: Annotated[list[str] | None, typer.Option("--size", help="b x d, as 256x3072; may be repeated.")] = None,
    k: Annotated[int, typer.Option(min=1, help="Candidates of nearest.")] = 64,
    times: Annotated[int, typer.Option(min=1, help="Candidates of oversampling, times b.")] = 16,
    threads: Threads = 1,
    record: Record = None,
    page: Annotated[
        Path | None, typer.Option("--readme", help="Put the table between the markers of this page.")
    ] = None,
) -> None:
    """Time the couplings against the strongest public ways to do the same."""
    torch.set_num_threads(threads)
    rows = _recorded(
        bench(bench_sizes(sizes), bench_data(data), k=k, times=times),
        bench_line,
        record,
        {"images": Path(data).name, "k": k, "times": times},
    )
    if page is not None:
        write_bytes(page, bench_page(page.read_text(encoding="utf-8"), rows).encode())


def papers(
    data: Annotated[str, typer.Option("--images", help="Folder, parquet file or hub name.")],
    repeats: Annotated[int, typer.Option(min=2, help="Batches a row.")] = 40,
    threads: Threads = 1,
    record: Record = None,
) -> None:
    """Measure the papers' tables that need no training: distance reduction and pairing time by batch size."""
    torch.set_num_threads(threads)
    found = bench_papers(_batches(data), repeats=repeats)
    _recorded(found, papers_line, record, {"images": Path(data).name})


def step(
    rounds: Annotated[int, typer.Option(min=2, help="How often each arm is timed.")] = 40,
    threads: Threads = 1,
    record: Record = None,
) -> None:
    """Time a training step with and without pairing."""
    torch.set_num_threads(threads)
    net = choice("net", '{use="unet", channels=[16, 32], layers=1}')  # the net of the experiment digits-unet
    parts = choice("source", "digits"), choice("codec", "pixels"), choice("method", "denoising"), net
    _recorded(bench_step(*parts, batch=128, steps=5, rounds=rounds), step_line, record, {"net": "digits-unet"})


def images(
    data: Annotated[str, typer.Option("--images", help="Folder, parquet file or hub name.")],
    size: Annotated[int, typer.Option("--pixels", min=1, help="Height and width.")] = 32,
    threads: Threads = 1,
    record: Record = None,
) -> None:
    """Time the reading of images against torch's own loader and a plain loop."""
    torch.set_num_threads(threads)
    measured = bench_images(data, size)
    out.print_json(data=measured)
    if record is not None:
        write_json(record, {"images": Path(data).name, "environment": environment(), **measured})


def _recorded(
    measured: Iterator[dict[str, Any]],
    line: Callable[[dict[str, Any]], str],
    record: Path | None,
    about: dict[str, Any],
) -> list[dict[str, Any]]:
    """Return the rows; each is printed and written before the next is measured."""
    rows = []
    about = {**about, "environment": environment()}
    for row in measured:
        rows.append(row)
        out.print(line(row), highlight=False, soft_wrap=True)
        if record is not None:
            write_json(record, {**about, "rows": rows})
    return rows


def _batches(data: str) -> Callable[[int, int], Tensor]:
    source = Images(data, size=32, held_out_rows=1)
    return lambda b, i: next(source.batches(b, 0, start=i)).raw.flatten(1)
