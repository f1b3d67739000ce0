"""The command line: every command is a few calls of the library, and every mistake gets one line."""

import dataclasses
import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from immiscible_diffusion.analysis.inspect import inspect as compare_pairs
from immiscible_diffusion.analysis.summary import read_summary
from immiscible_diffusion.bench import bench as bench_couplings
from immiscible_diffusion.bench import bench_data, bench_line, bench_page, bench_sizes
from immiscible_diffusion.checkpoint import load_export
from immiscible_diffusion.config import Config, build, parse_override, read_config
from immiscible_diffusion.experiment import Cell, Experiment, built_in, read_experiment
from immiscible_diffusion.figures import inspect_figure
from immiscible_diffusion.files import read_json, write_bytes, write_json
from immiscible_diffusion.launch import launch
from immiscible_diffusion.registry import KINDS, names
from immiscible_diffusion.report import inspect_table, terminal_tables
from immiscible_diffusion.report import report as write_report
from immiscible_diffusion.runs import environment, labels_for, save_grid
from immiscible_diffusion.runs import evaluate as measure
from immiscible_diffusion.sample import Start, Trained, generate

__all__ = ["app", "run"]

app = typer.Typer(
    name="immiscible",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Train diffusion and flow-matching models with noise that is paired with the data, and see what it changes.",
)
out = Console()
err = Console(stderr=True)

Name = Annotated[str, typer.Argument(help="An experiment's name (see `immiscible list`) or the path of its TOML file.")]
Folder = Annotated[Path, typer.Argument(help="A run folder, such as runs/demo/assignment-seed0-1a2b3c4d.")]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change one value: --set train.steps=1000. May be repeated.", metavar="KEY=VALUE"),
]
Scale = Annotated[str | None, typer.Option(help="One of the experiment's scales, such as smoke.")]
Out = Annotated[Path, typer.Option("--out", help="Where run folders are written.")]
Workers = Annotated[int | None, typer.Option(min=1, help="Runs at a time; by default one a core, or one on a GPU.")]
Device = Annotated[str | None, typer.Option(help="cpu or cuda; by default cuda where there is one.")]


@app.command()
def demo(out_folder: Out = Path("runs"), scale: Scale = None, sets: Sets = None, workers: Workers = None) -> None:
    """Train three couplings on real digits from the same seeds, and show what they change (a few minutes)."""
    _train("demo", out_folder, scale, sets, workers, None)
    _report(out_folder / "demo")


@app.command("list")
def list_() -> None:
    """List the experiments, and the names that an experiment file may use."""
    table = Table(title="Experiments", title_justify="left")
    table.add_column("name")
    table.add_column("runs", justify="right")
    table.add_column("title")
    for name in built_in():
        experiment = read_experiment(name)
        table.add_row(name, str(len(experiment.cells())), experiment.title)
    out.print(table)
    table = Table(title="Names for experiment files", title_justify="left")
    table.add_column("key")
    table.add_column("choices")
    for kind in KINDS:
        table.add_row(kind, ", ".join(names(kind)))
    out.print(table)


@app.command()
def show(name: Name, scale: Scale = None, sets: Sets = None) -> None:
    """Show an experiment: what it asks, its runs, and the resolved configuration of the first."""
    experiment, cells = _cells(name, scale, sets)
    out.print(f"[bold]{escape(experiment.title)}[/bold]\n{escape(experiment.source)}\n{escape(experiment.question)}\n")
    for cell in cells:
        out.print(f"  {cell.folder}", highlight=False)
    out.print(f"\nConfiguration of {cells[0].folder}:")
    out.print_json(data=cells[0].config.plain())


@app.command()
def train(
    name: Name,
    out_folder: Out = Path("runs"),
    scale: Scale = None,
    sets: Sets = None,
    workers: Workers = None,
    device: Device = None,
) -> None:
    """Carry out every run of an experiment; the same command again goes on with what was cut."""
    folder = _train(name, out_folder, scale, sets, workers, device)
    out.print(f"Runs are in {escape(str(folder))}; make the report with: immiscible report {escape(str(folder))}")


@app.command()
def sample(
    run_folder: Folder,
    n: Annotated[int, typer.Option(min=1, help="How many images.")] = 64,
    steps: Annotated[int, typer.Option(min=1, help="Sampling steps.")] = 10,
    seed: Annotated[int, typer.Option(help="Names the images' noise; image i is the same whatever n is.")] = 0,
    start: Annotated[str, typer.Option(help="matched: the coupling's own start; normal: N(0, I).")] = "matched",
    out_folder: Annotated[Path | None, typer.Option("--out", help="Where images go; by default RUN/generated.")] = None,
    device: Device = None,
) -> None:
    """Generate images from a finished run: PNG files and one grid."""
    config, trained = _run(run_folder, device)
    target = out_folder or run_folder / "generated"
    images = torch.cat(
        list(generate(trained, n, steps=steps, seed=seed, start=_start(start), cond=labels_for(config, n)))
    )
    for i, image in enumerate(images):
        save_grid(image.unsqueeze(0), target / f"{i:06d}.png", columns=1)
    save_grid(images[:256], target / "grid.png", columns=16 if n > 64 else 8)
    out.print(f"{n} images and grid.png are in {escape(str(target))}")


@app.command()
def evaluate(
    run_folder: Folder,
    steps: Annotated[list[int] | None, typer.Option(min=1, help="Sampling steps; may be repeated.")] = None,
    n: Annotated[int | None, typer.Option("--n", min=2, help="How many images to generate.")] = None,
    seed: Annotated[int | None, typer.Option(help="Names the images' noise.")] = None,
    device: Device = None,
) -> None:
    """Measure a finished run against held-out data, and keep the numbers in RUN/evaluated.json."""
    config, trained = _run(run_folder, device)
    asked = dataclasses.replace(
        config.evaluate,
        steps=tuple(steps) if steps else config.evaluate.steps,
        samples=n or config.evaluate.samples,
        seed=config.evaluate.seed if seed is None else seed,
    )
    lines = list(measure(trained, dataclasses.replace(config, evaluate=asked)))
    table = Table()
    for column in lines[0]:
        table.add_column(column, justify="right")
    for line in lines:
        table.add_row(*(f"{value:.4g}" if isinstance(value, float) else str(value) for value in line.values()))
    out.print(table)
    path = run_folder / "evaluated.json"
    write_json(path, [*(read_json(path) if path.exists() else []), *lines])


@app.command()
def inspect(
    source: Annotated[
        str, typer.Option(help='A source\'s name, or a table: \'{use="images", path="folder"}\'.')
    ] = "digits",
    couplings: Annotated[
        list[str] | None,
        typer.Option("--coupling", help="A name or a table; may be repeated. By default all, with their defaults."),
    ] = None,
    codec: Annotated[str, typer.Option(help="How raw data become model space; the scale matters.")] = "pixels",
    batch: Annotated[int, typer.Option(min=1, help="Rows a batch.")] = 128,
    batches: Annotated[int, typer.Option(min=1, help="How many batches are measured.")] = 20,
    seed: Annotated[int, typer.Option(help="Names the random streams.")] = 0,
    out_folder: Annotated[Path, typer.Option("--out", help="Where inspect.json and inspect.png go.")] = Path("inspect"),
) -> None:
    """Measure couplings on your own data: what they gain, what they cost, what they do to the noise."""
    texts = couplings or names("coupling")
    chosen = {text: _choice("coupling", text) for text in texts}
    data_source, data_codec = _choice("source", source), _choice("codec", codec)
    drawn = itertools.islice(data_source.batches(batch, seed), batches)
    rows = compare_pairs(chosen, [(data_codec.encode(each.raw), each.cond) for each in drawn], seed=seed)
    out.print(inspect_table(rows))
    write_json(out_folder / "inspect.json", {"source": source, "codec": codec, "batch": batch, "couplings": rows})
    write_bytes(out_folder / "inspect.png", inspect_figure(rows))
    out.print(f"Figures: {escape(str(out_folder / 'inspect.json'))} and inspect.png", soft_wrap=True)


@app.command()
def bench(
    what: Annotated[str, typer.Argument(help="What to time: couplings.")] = "couplings",
    sizes: Annotated[list[str] | None, typer.Option("--size", help="b x d, as 256x3072; may be repeated.")] = None,
    k: Annotated[int, typer.Option(min=1, help="Candidates of nearest.")] = 64,
    times: Annotated[int, typer.Option(min=1, help="Candidates of oversampling, a multiple of b.")] = 16,
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch.")] = 1,
    images: Annotated[str, typer.Option(help="Images of 32 x 32 for d = 3072: folder, parquet or hub name.")] = "",
    record: Annotated[Path | None, typer.Option("--out", help="Write the figures to this JSON file.")] = None,
    page: Annotated[Path | None, typer.Option("--readme", help="Put their table between this page's markers.")] = None,
) -> None:
    """Time the couplings against the strongest public ways to do the same."""
    if what != "couplings":
        raise ValueError(f"no benchmark named {what!r}; there are ['couplings']")
    torch.set_num_threads(threads)
    rows = []
    for row in bench_couplings(bench_sizes(sizes), bench_data(images), k=k, times=times):
        rows.append(row)
        out.print(bench_line(row), highlight=False, soft_wrap=True)
        if record is not None:  # after every row: an interrupt keeps what was measured
            about = {"images": Path(images).name, "k": k, "times": times, "environment": environment()}
            write_json(record, {**about, "rows": rows})
    if page is not None:
        write_bytes(page, bench_page(page.read_text(encoding="utf-8"), rows).encode())


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="An experiment's folder, such as runs/demo.")],
    record: Annotated[
        Path | None, typer.Option(help="Also copy the numbers and figures, without the runs, into this folder.")
    ] = None,
) -> None:
    """Write report.html, summary.json and figures from the runs in a folder, and print the main table."""
    _report(folder)
    if record is not None:
        for path in [folder / "summary.json", *sorted((folder / "figures").glob("*.png"))]:
            write_bytes(record / path.name, path.read_bytes())
        out.print(f"Recorded in {escape(str(record))}")


def run(arguments: Sequence[str]) -> int:
    """Run the command line and return its exit code: 2 for a mistake of the user's, 1 for a run that failed."""
    try:
        app(args=list(arguments))
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except (ValueError, ImportError) as error:
        code, line = 2, str(error)
    except (OSError, ArithmeticError) as error:
        code, line = 1, str(error)
    else:
        return 0
    err.print(f"immiscible: {escape(line)}", soft_wrap=True, highlight=False)
    return code


def _cells(name: str, scale: str | None, sets: list[str] | None) -> tuple[Experiment, list[Cell]]:
    experiment = read_experiment(name)
    return experiment, experiment.cells(scale, [parse_override(text) for text in sets or []])


def _train(
    name: str, out_folder: Path, scale: str | None, sets: list[str] | None, workers: int | None, device: str | None
) -> Path:
    experiment, cells = _cells(name, scale, sets)
    folder, device = out_folder / experiment.name, _device(device)
    count = workers or (1 if device == "cuda" else os.cpu_count() or 1)
    out.print(f"{escape(experiment.title)}: {len(cells)} runs on {device}, {min(count, len(cells))} at a time")
    try:
        failed = launch(experiment, cells, folder, workers=count, device=device, console=out)
    except KeyboardInterrupt:
        err.print("Interrupted; what was trained is saved, and the same command goes on from there.")
        raise typer.Exit(130) from None
    if failed:
        raise ArithmeticError("\n  ".join(["some runs failed; the same command tries them again", *failed]))
    return folder


def _report(folder: Path) -> None:
    page = write_report(folder)
    summary = read_summary(folder)
    for table in terminal_tables(summary, summary.metrics[0]):
        out.print(table)
    out.print(f"Report: {escape(str(page))}", soft_wrap=True)


def _device(device: str | None) -> str:
    if device not in (None, "cpu", "cuda"):
        raise ValueError(f"no device named {device!r}; there are ['cpu', 'cuda']")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("this machine has no CUDA device that PyTorch can use; leave out --device")
    return device or ("cuda" if torch.cuda.is_available() else "cpu")


def _choice(kind: str, text: str) -> Any:
    return build(kind, parse_override(f"{kind}={text}")[1], kind)


def _run(folder: Path, device: str | None) -> tuple[Config, Trained]:
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} is not a run folder: it has no config.json")
    if not (folder / "export").is_dir():
        raise ValueError(f"{folder} is not finished: it has no export/; train it to the end first")
    trained = load_export(folder / "export")
    trained.net.to(_device(device))
    return read_config(read_json(folder / "config.json")), trained


def _start(start: str) -> Start:
    known: dict[str, Start] = {"matched": "matched", "normal": "normal"}
    if start not in known:
        raise ValueError(f"no start named {start!r}; there are {list(known)}")
    return known[start]
