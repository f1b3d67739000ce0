"""The benchmarks as commands; each row is recorded as soon as it is measured, so that an interrupt keeps it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from benchmarks.chaos import bench_chaos, chaos_line
from benchmarks.couplings import bench, bench_data, bench_line, bench_page, bench_sizes
from benchmarks.dimension import bench_dimension, dimension_line, dimension_page
from benchmarks.gpu.pack import build_pack
from benchmarks.gpu.rows import Rows
from benchmarks.gpu.run import in_turn, run_part
from benchmarks.gpu.scale import DRY, PARTS, REAL
from benchmarks.images import bench_images
from benchmarks.joint import bench_joint, joint_line
from benchmarks.loops import bench_loops, bench_processes, loops_line, trainer_version
from benchmarks.measuring import recorded
from benchmarks.papers import bench_papers, papers_line
from benchmarks.precision import SETS, extract, filled, measure_precision
from benchmarks.scripts import bench_scripts, decision_counts, scripts_line
from benchmarks.semidiscrete import bench_semidiscrete, semidiscrete_line
from benchmarks.small_features import bench_small_features, small_features_line
from benchmarks.step import bench_step, step_line
from immiscible_diffusion.cli.options import checked_device, choice, out
from immiscible_diffusion.couplings import data_points
from immiscible_diffusion.data import Images
from immiscible_diffusion.features import Inception
from immiscible_diffusion.files import read_json, write_bytes, write_json
from immiscible_diffusion.runs.folder import environment

__all__ = [
    "chaos",
    "couplings",
    "dimension",
    "gpu",
    "gpu_pack",
    "images",
    "joint",
    "loops",
    "papers",
    "precision",
    "scripts",
    "semidiscrete",
    "small_features",
    "step",
]

Threads = Annotated[int, typer.Option(min=1, help="Threads of torch.")]
Record = Annotated[Path | None, typer.Option("--out", help="Write the figures to this JSON file.")]


def couplings(
    data: Annotated[str, typer.Option("--images", help="Folder, parquet file or hub name; without it, noise.")] = "",
    sizes: Annotated[list[str] | None, typer.Option("--size", help="b x d, as 256x3072; may be repeated.")] = None,
    k: Annotated[int, typer.Option(min=1, help="Candidates of nearest.")] = 64,
    times: Annotated[int, typer.Option(min=1, help="Candidates of oversampling, times b.")] = 16,
    threads: Threads = 1,
    record: Record = None,
    page: Annotated[Path | None, typer.Option(help="Put the table between the markers of this page.")] = None,
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
    rows = bench_papers(_batches(data), repeats=repeats)
    _recorded(rows, papers_line, record, {"images": Path(data).name})


def chaos(
    kills: Annotated[int, typer.Option(min=1, help="How many kills.")] = 20,
    seed: Annotated[int, typer.Option(help="Names the moments.")] = 0,
    record: Record = None,
) -> None:
    """Kill small runs at random moments, in one and two processes; each must end as an uninterrupted one does."""
    with TemporaryDirectory() as folder:
        rows = _recorded(bench_chaos(kills, Path(folder), seed), chaos_line, record, {"kills": kills, "seed": seed})
    if unlike := [row for row in rows if not row["equal"]]:
        raise ArithmeticError(f"{len(unlike)} of {len(rows)} runs ended otherwise than an uninterrupted one")


def semidiscrete(
    data: Annotated[str, typer.Option("--images", help="Folder, parquet file or hub name.")],
    size: Annotated[int, typer.Option(min=1, help="Height and width in pixels.")] = 8,
    noises: Annotated[list[float] | None, typer.Option(help="Noises a datum of the fit; may be repeated.")] = None,
    threads: Threads = 1,
    record: Record = None,
) -> None:
    """Measure semidiscrete pairs over a data set: the fit by its length, and two ways to pair with its cells."""
    torch.set_num_threads(threads)
    source = Images(data, size=size, held_out_rows=1)
    x = data_points(source, choice("codec", "pixels"), torch.device("cpu"))
    rows = bench_semidiscrete(x, noises=sorted(noises or [1, 3, 10]))
    _recorded(rows, semidiscrete_line, record, {"images": Path(data).name, "rows_of_data": len(x), "size": size})


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


def joint(
    rows: Annotated[int, typer.Option(min=8, help="Rows of all processes together.")] = 2048,
    sizes: Annotated[list[int] | None, typer.Option("--d", help="Numbers in a row; may be repeated.")] = None,
    worlds: Annotated[list[int] | None, typer.Option("--processes", help="May be repeated.")] = None,
    repeats: Annotated[int, typer.Option(min=2, help="Timed batches.")] = 5,
    record: Record = None,
) -> None:
    """Time the pairing of the rows of several processes, and count the bytes that it moves."""
    measured = bench_joint(rows=rows, sizes=sizes or [192, 3072], worlds=worlds or [2, 4], repeats=repeats)
    _recorded(measured, joint_line, record, {})


def loops(
    data: Annotated[str, typer.Option("--images", help="Folder, parquet file or hub name.")],
    batch: Annotated[int, typer.Option(min=2, help="Images a step, of all processes together.")] = 64,
    rounds: Annotated[int, typer.Option(min=2, help="How often each loop is timed.")] = 20,
    worlds: Annotated[list[int] | None, typer.Option("--processes", help="May be repeated.")] = None,
    record: Record = None,
) -> None:
    """Time whole training loops: this library's, diffusers' example, denoising-diffusion-pytorch's and plain DDP."""
    torch.set_num_threads(1)
    images = next(Images(data, size=32, held_out_rows=1).batches(2048, 0)).raw
    net: Any = choice("net", '{use="unet", channels=[16, 32], layers=1}')
    options: dict[str, Any] = {"batch": batch, "steps": 2, "rounds": rounds}

    def measured() -> Iterator[dict[str, Any]]:
        for world in worlds or [1, 2]:
            if world == 1:
                yield from bench_loops(images, net, **options)
            else:
                yield from bench_processes(images, net, world=world, **options)

    about = {"images": Path(data).name, "net": "unet 16, 32", "denoising-diffusion-pytorch": trainer_version() or None}
    _recorded(measured(), loops_line, record, about)


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


def dimension(
    data: Annotated[str, typer.Option("--images", help="Folder, parquet file or hub name.")],
    codec: Annotated[str, typer.Option(help="Folder or hub name of an autoencoder in diffusers' layout.")],
    pixels: Annotated[list[int] | None, typer.Option(help="Height and width; may be repeated.")] = None,
    split: Annotated[str, typer.Option(help="Split of the images.")] = "train",
    rows: Annotated[int, typer.Option(min=1, help="Latents a size.")] = 64,
    repeats: Annotated[int, typer.Option(min=2, help="Draws of noise for every latent.")] = 20,
    threads: Threads = 1,
    record: Record = None,
    page: Annotated[Path | None, typer.Option(help="Put the table between the markers of this page.")] = None,
) -> None:
    """Measure what couplings gain on latents of real images, by their number of coordinates."""
    torch.set_num_threads(threads)
    measured = bench_dimension(
        data, codec, pixels or [256, 512, 1024], split=split, rows=rows, batches=[1, 4, 16, 64], repeats=repeats
    )
    about = {"images": Path(data).name, "codec": Path(codec).name, "latents": rows, "repeats": repeats}
    lines = _recorded(measured, dimension_line, record, about)
    if page is not None:
        write_bytes(page, dimension_page(page.read_text(encoding="utf-8"), lines).encode())


def small_features(
    data: Annotated[str, typer.Option("--images", help="Folder, parquet file or hub name.")],
    size: Annotated[int, typer.Option(help="Height and width in pixels.")] = 16,
    counts: Annotated[list[int] | None, typer.Option("--count", help="Training images; may be repeated.")] = None,
    label: Annotated[str, typer.Option(help="The column of labels; none leaves them aside.")] = "",
    threads: Threads = 1,
    record: Record = None,
) -> None:
    """Measure from how many images on a classifier of features tells sharp images from blurred ones."""
    torch.set_num_threads(threads)
    rows = bench_small_features(data, size, counts or [240, 480, 960], label=label)
    _recorded(rows, small_features_line, record, {"images": Path(data).name, "size": size})


def scripts(
    clones: Annotated[Path, typer.Argument(help="Folder of clones: diffusers/, minRF/, SiT/ and others.")],
    record: Record = None,
) -> None:
    """Record what `immiscible run` decides for the training scripts of other projects; it runs none of them."""
    rows = list(bench_scripts(clones))
    for row in rows:
        out.print(scripts_line(row), highlight=False, soft_wrap=True)
    counts = decision_counts(rows)
    out.print_json(data=counts)
    if record is not None:
        write_json(record, {"counts": counts, "scripts": rows, "environment": environment()})


def precision(
    cifar10: Annotated[Path, typer.Option(help="Folder of CIFAR-10's parquet files.")],
    weights: Annotated[Path, typer.Option(help="The Inception network's weights.")],
    chunks: Annotated[Path, typer.Option(help="Folder that keeps the features: the same command goes on there.")],
    record: Annotated[Path, typer.Option("--out", help="Write the figures to this JSON file.")],
    count: Annotated[int, typer.Option(help="Images a side, a multiple of 250.")] = 10_000,
    damaged: Annotated[int, typer.Option(help="Damaged images of each kind, a multiple of 250.")] = 1000,
    page: Annotated[Path | None, typer.Option(help="A Markdown page whose tables are filled.")] = None,
) -> None:
    """Measure how exact the metrics are, against implementations that share no code with them."""
    counts = {name: count if name in ("train", "test") else damaged for name in SETS}
    for path in extract(cifar10, Inception(str(weights), 768), chunks, counts):
        out.print(path.name)
    write_json(record, measure_precision(chunks, cifar10=cifar10, weights=weights, count=count))
    if page is not None:
        write_bytes(page, filled(page.read_text(encoding="utf-8"), read_json(record)).encode())


def gpu_pack(
    cifar10: Annotated[Path, typer.Option(help="Folder of CIFAR-10's parquet files.")],
    inception: Annotated[Path, typer.Option(help="The Inception network's weights, safetensors.")],
    into: Annotated[Path, typer.Option("--out", help="The folder of the pack.")] = Path("build/gpu-pack"),
    most: Annotated[int, typer.Option("--images", min=1, help="Training images at most.")] = 25_000,
    reference: Annotated[int, typer.Option(help="Test images of the reference, a multiple of 250.")] = 10_000,
    features: Annotated[Path, typer.Option(help="Folder that keeps their features.")] = Path("build/gpu-features"),
    earlier: Annotated[Path | None, typer.Option(help="Results of an earlier run that will travel too.")] = None,
) -> None:
    """Build the pack of files that a bare GPU machine needs beside the working tree: see docs/gpu.md."""
    lines = build_pack(
        into,
        cifar10=cifar10,
        inception=inception,
        most=most,
        reference=reference,
        features=features,
        earlier=earlier,
    )
    for line in lines:
        out.print(line, highlight=False, soft_wrap=True)


def gpu(
    folder: Annotated[Path, typer.Option("--out", help="Where rows.jsonl and the averaged weights are written.")],
    pack: Annotated[Path | None, typer.Option(help="The folder that `make gpu-pack` built.")] = None,
    parts: Annotated[str, typer.Option(help="Which parts, with commas between them.")] = ",".join(PARTS),
    earlier: Annotated[Path | None, typer.Option(help="Results of an earlier run, to go on from.")] = None,
    state: Annotated[Path, typer.Option(help="Folder of whole training states.")] = Path("build/gpu-state"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="All parts in miniature, on a CPU.")] = False,
    here: Annotated[bool, typer.Option("--here", hidden=True, help="Run the parts in this process.")] = False,
) -> None:
    """Measure on a GPU: its tests, the couplings, the training throughput, and the effect on FID.

    Each part has its own process and time limit. The same command goes on where the results in --out, or in --earlier,
    end.
    """
    names = parts.split(",")
    if unknown := sorted(set(names) - set(PARTS)):
        raise ValueError(f"no part named {unknown[0]!r}; there are {list(PARTS)}")
    if pack is None and not dry_run:
        raise ValueError("a GPU run needs --pack, the folder that `make gpu-pack` builds; --dry-run needs none")
    if pack is not None and not (pack / "pack.json").is_file():
        raise ValueError(f"{pack} holds no pack; build one by `make gpu-pack`")
    scale, rows = DRY if dry_run else REAL, Rows(folder, earlier)
    if here or dry_run:
        device = checked_device("cpu" if dry_run else "cuda")
        for part in names:
            run_part(part, rows, scale, pack=pack, state=state, earlier=earlier, device=device)
    else:
        options = ["--out", str(folder), "--pack", str(pack), "--state", str(state)]
        in_turn(names, rows, scale, options + (["--earlier", str(earlier)] if earlier else []))


def _recorded(
    measured: Iterator[dict[str, Any]],
    line: Callable[[dict[str, Any]], str],
    record: Path | None,
    about: dict[str, Any],
) -> list[dict[str, Any]]:
    def show(row: dict[str, Any]) -> None:
        out.print(line(row), highlight=False, soft_wrap=True)

    return recorded(measured, show, record, {**about, "environment": environment()})


def _batches(data: str) -> Callable[[int, int], Tensor]:
    source = Images(data, size=32, held_out_rows=1)
    return lambda b, i: next(source.batches(b, 0, start=i)).raw.flatten(1)
