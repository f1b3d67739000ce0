"""Commands over recorded results: the list of the papers' tables and figures, pages, and reruns."""

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.markup import escape
from rich.progress import track

from immiscible_diffusion.cli.options import Sets, err, out
from immiscible_diffusion.experiments.values import parse_override
from immiscible_diffusion.files import write_bytes
from immiscible_diffusion.report.page import text_table
from immiscible_diffusion.runs.folder import is_finished
from immiscible_diffusion.runs.run import execute
from studies.pages import html_page
from studies.pages import pages as all_pages
from studies.papers import SCALES, papers_page, papers_table
from studies.papers import papers as listed
from studies.rerun import keep_outcome, recorded_config, recorded_threads, unlike_record

__all__ = ["pages", "papers", "rerun"]


def papers(
    root: Annotated[Path, typer.Option(help="The folder that holds results/.")] = Path(),
    page: Annotated[Path | None, typer.Option(help="Put the list between the markers of this Markdown page.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Change nothing; fail where the page is out of date.")] = False,
) -> None:
    """List every table and figure of the papers: what makes it, and the state of its result by scale."""
    if page is None:
        if check:
            raise ValueError("--check compares a page with results: name it by --page")
        _print_papers(root)
        return
    before = page.read_text(encoding="utf-8")
    after = papers_page(before, listed(), root)
    if check and after != before:
        raise ValueError(f"{page} is out of date; write it again: python -m studies papers --page {page}")
    if not check:
        write_bytes(page, after.encode())
    out.print(f"{escape(str(page))} says what results/ holds")


def _print_papers(root: Path = Path()) -> None:
    """Print the list."""
    columns, rows = ("paper", "what", "", "made by", *SCALES), papers_table(listed(), root)
    cells = ([escape(cell) for cell in row] for row in rows)
    out.print(text_table("Tables and figures of the papers", columns, cells, left=len(columns)))


def pages(
    root: Annotated[Path, typer.Option(help="The folder that holds results/ and docs/.")] = Path(),
    check: Annotated[
        bool, typer.Option("--check", help="Change nothing; fail where pages and results differ.")
    ] = False,
    html: Annotated[
        bool, typer.Option("--html", help="Write one HTML page of all results, build/results.html, and no other.")
    ] = False,
) -> None:
    """Write the pages over everything that is recorded in results/ into docs/results/."""
    if html and check:
        raise ValueError(
            "--check compares the Markdown pages; the HTML page is not kept: use one of --html and --check"
        )
    if html:
        write_bytes(root / "build" / "results.html", html_page(root))
        out.print(f"All results on one page: {escape(str(root / 'build' / 'results.html'))}", soft_wrap=True)
        return
    written = all_pages(root)
    kept = {path.relative_to(root).as_posix() for path in (root / "docs" / "results").glob("*") if path.is_file()}
    stale = [name for name, page in written.items() if name not in kept or (root / name).read_bytes() != page]
    surplus = sorted(kept - set(written))
    if check and (stale or surplus):
        raise ArithmeticError(
            f"not what results/ says: {', '.join([*stale, *surplus])}; write them: python -m studies pages"
        )
    if not check:
        for name in stale:
            write_bytes(root / name, written[name])
        for name in surplus:
            (root / name).unlink()
    out.print(
        f"{len(written)} pages in {escape(str(root / 'docs' / 'results'))} say what results/ holds", soft_wrap=True
    )


def rerun(
    summary: Annotated[Path, typer.Argument(help="A record, such as results/demo/summary.json.")],
    arm: Annotated[str, typer.Option(help="Which arm.")],
    seed: Annotated[int, typer.Option(help="Which seed.")] = 0,
    sets: Sets = None,
    out_folder: Annotated[Path, typer.Option("--out", help="Where the run goes.")] = Path("runs/rerun"),
    keep: Annotated[bool, typer.Option("--keep", help="Keep the outcome beside the record, for its page.")] = False,
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
        steps = execute(config, place, torch.device("cpu"))
        for _ in track(steps, "training", total=config.train.steps, console=err, transient=True):
            pass
    finally:
        torch.set_num_threads(before)
    differing, count = unlike_record(summary, arm, seed, place)
    if keep:
        keep_outcome(summary, arm, seed, numbers=count, differing=len(differing))
    if differing:
        raise ArithmeticError("the run is not the recorded one:\n  " + "\n  ".join(differing))
    out.print(f"{count} numbers of {escape(arm)}, seed {seed}, are the recorded ones, bit for bit")
