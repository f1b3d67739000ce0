"""Commands that show what was found: couplings on one's own data, and the report of an experiment."""

import itertools
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.markup import escape

from immiscible_diffusion.analysis.inspect import inspect as compare_pairs
from immiscible_diffusion.analysis.summary import read_summary
from immiscible_diffusion.cli.options import Sets, choice, err, out
from immiscible_diffusion.config import parse_override
from immiscible_diffusion.figures import inspect_figure
from immiscible_diffusion.files import write_bytes, write_json
from immiscible_diffusion.pages import pages
from immiscible_diffusion.registry import names
from immiscible_diffusion.report import inspect_table, terminal_tables
from immiscible_diffusion.report import report as write_report
from immiscible_diffusion.reruns import recorded_config, recorded_threads, unlike_record
from immiscible_diffusion.runs import execute, is_finished
from immiscible_diffusion.text import with_states

__all__ = ["inspect", "print_report", "report", "rerun"]


def inspect(
    source: Annotated[
        str, typer.Option(help='A source\'s name, or a table: \'{use="images", path="folder"}\'.')
    ] = "digits",
    couplings: Annotated[
        list[str] | None,
        typer.Option("--coupling", help="A name or a table; may be repeated. By default all, with their defaults."),
    ] = None,
    codec: Annotated[str, typer.Option(help="How raw data become model space; the scale matters.")] = "pixels",
    text: Annotated[
        str, typer.Option(help="For captions: a folder or hub name with text_encoder/ and tokenizer/.")
    ] = "",
    batch: Annotated[int, typer.Option(min=1, help="Rows a batch.")] = 128,
    batches: Annotated[int, typer.Option(min=1, help="How many batches are measured.")] = 20,
    seed: Annotated[int, typer.Option(help="Names the random streams.")] = 0,
    out_folder: Annotated[Path, typer.Option("--out", help="Where inspect.json and inspect.png go.")] = Path("inspect"),
) -> None:
    """Measure couplings on your own data: what they gain, what they cost, what they do to the noise."""
    texts = couplings or names("coupling")
    chosen = {text: choice("coupling", text) for text in texts}
    data_source, data_codec = choice("source", source), choice("codec", codec)
    data_source = with_states(data_source, text) if text else data_source
    drawn = itertools.islice(data_source.batches(batch, seed), batches)
    captioned = data_source.classes is None and not text  # numbers of captions are no labels
    pairs = [(data_codec.encode(each.raw), None if captioned else each.cond) for each in drawn]
    rows = compare_pairs(chosen, pairs, seed=seed)
    out.print(inspect_table(rows))
    write_json(out_folder / "inspect.json", {"source": source, "codec": codec, "batch": batch, "couplings": rows})
    write_bytes(out_folder / "inspect.png", inspect_figure(rows))
    out.print(f"Figures: {escape(str(out_folder / 'inspect.json'))} and inspect.png", soft_wrap=True)


def report(
    folder: Annotated[
        Path | None, typer.Argument(help="An experiment's folder, such as runs/demo; without it, all recorded results.")
    ] = None,
    record: Annotated[
        Path | None, typer.Option(help="Also copy the numbers and figures, without the runs, into this folder.")
    ] = None,
    root: Annotated[Path, typer.Option(help="Without a folder: what holds results/ and docs/.")] = Path(),
    check: Annotated[
        bool, typer.Option("--check", help="Without a folder: change nothing; fail where pages and results differ.")
    ] = False,
) -> None:
    """Write report.html, summary.json and figures from the runs in a folder, and print the main table.

    Without a folder: write the pages over everything that is recorded in results/ into docs/results/.
    """
    if folder is None:
        _report_all(root, check=check)
        return
    if check:
        raise ValueError("--check compares the pages over all results: leave out the folder")
    print_report(folder)
    if record is not None:
        for path in [folder / "summary.json", *sorted((folder / "figures").glob("*.png"))]:
            write_bytes(record / path.name, path.read_bytes())
        out.print(f"Recorded in {escape(str(record))}")


def _report_all(root: Path, *, check: bool) -> None:
    found = pages(root)
    kept = {path.relative_to(root).as_posix() for path in (root / "docs" / "results").glob("*") if path.is_file()}
    stale = [name for name, page in found.items() if name not in kept or (root / name).read_bytes() != page]
    surplus = sorted(kept - set(found))
    if check and (stale or surplus):
        raise ArithmeticError(f"not what results/ says: {', '.join([*stale, *surplus])}; write them: immiscible report")
    if not check:
        for name in stale:
            write_bytes(root / name, found[name])
        for name in surplus:
            (root / name).unlink()
    out.print(f"{len(found)} pages in {escape(str(root / 'docs' / 'results'))} say what results/ holds", soft_wrap=True)


def rerun(
    summary: Annotated[Path, typer.Argument(help="A record, such as results/demo/summary.json.")],
    arm: Annotated[str, typer.Option(help="Which arm.")],
    seed: Annotated[int, typer.Option(help="Which seed.")] = 0,
    sets: Sets = None,
    out_folder: Annotated[Path, typer.Option("--out", help="Where the run goes.")] = Path("runs/rerun"),
) -> None:
    """Train one recorded run again, and say whether every number is the recorded one, bit for bit.

    It is on the same kind of machine with the same versions, on as many threads as recorded; the exit code is 1 where a
    number differs. An interrupted one goes on; a finished one is not taken for a new one. Data that lie elsewhere now:
    --set source.path=...
    """
    place = out_folder / f"{arm}-seed{seed}"
    if is_finished(place):
        raise ValueError(
            f"{place} holds a finished run, which says nothing of this code; remove it, or give another --out"
        )
    config = recorded_config(summary, arm, seed, [parse_override(text) for text in sets or []])
    before = torch.get_num_threads()
    torch.set_num_threads(recorded_threads(summary))
    try:
        for step in execute(config, place, torch.device("cpu")):
            err.print(f"step {step} of {config.train.steps}", end="\r", highlight=False)
    finally:
        torch.set_num_threads(before)
    differing, count = unlike_record(summary, arm, seed, place)
    if differing:
        raise ArithmeticError("the run is not the recorded one:\n  " + "\n  ".join(differing))
    out.print(f"{count} numbers of {escape(arm)}, seed {seed}, are the recorded ones, bit for bit")


def print_report(folder: Path) -> None:
    """Write an experiment's report and print its tables."""
    page = write_report(folder)
    summary = read_summary(folder)
    for table in terminal_tables(summary, summary.metrics[0]):
        out.print(table)
    out.print(f"Report: {escape(str(page))}", soft_wrap=True)
