"""Commands about the papers: the list of their tables and figures, and the pictures that no training curve gives."""

import itertools
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from immiscible_diffusion.analysis.denoising import Denoised, denoise, read_run
from immiscible_diffusion.analysis.miscibility import flower, miscibility
from immiscible_diffusion.cli.options import choice, out
from immiscible_diffusion.files import read_index, write_bytes, write_json
from immiscible_diffusion.papers import SCALES, papers_page, papers_table
from immiscible_diffusion.papers import papers as listed
from immiscible_diffusion.runs import environment, is_finished
from immiscible_diffusion.streams import stream
from immiscible_diffusion.study_figures import denoising_figure, miscibility_figure

__all__ = ["draw", "papers", "print_papers"]

_COUPLINGS = ["independent", "assignment", '{use="nearest", k=8}']
_DRAWN = 96

Pairs = dict[str, tuple[Tensor, Tensor, Tensor]]


def papers(
    root: Annotated[Path, typer.Option(help="The folder that holds results/.")] = Path(),
    page: Annotated[Path | None, typer.Option(help="Put the list between the markers of this Markdown page.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Change nothing; fail where the page is out of date.")] = False,
) -> None:
    """List every table and figure of the papers: what makes it, and the state of its result by scale."""
    if page is None:
        if check:
            raise ValueError("--check compares a page with results: name it by --page")
        print_papers(root)
        return
    before = page.read_text(encoding="utf-8")
    after = papers_page(before, listed(), root)
    if check and after != before:
        raise ValueError(f"{page} is out of date; write it again: immiscible papers --page {page}")
    if not check:
        write_bytes(page, after.encode())
    out.print(f"{escape(str(page))} says what results/ holds")


def print_papers(root: Path = Path()) -> None:
    """Print the list."""
    table = Table(title="Tables and figures of the papers", title_justify="left", box=None, padding=(0, 1, 0, 0))
    for column in ("paper", "what", "", "made by", *SCALES):
        table.add_column(column, overflow="fold")
    for row in papers_table(listed(), root):
        table.add_row(*map(escape, row))
    out.print(table)


def draw(
    what: Annotated[str, typer.Argument(help="miscibility: Figure 2 and the measure; denoising: Figure 3.")],
    runs: Annotated[Path | None, typer.Argument(help="denoising: an experiment's folder, such as runs/demo.")] = None,
    out_folder: Annotated[Path, typer.Option("--out", help="Where WHAT.png and WHAT.json go.")] = Path("figures"),
    source: Annotated[str, typer.Option(help="miscibility: a source's name, or a table.")] = "digits",
    codec: Annotated[str, typer.Option(help="miscibility: how raw data become model space.")] = "pixels",
    couplings: Annotated[
        list[str] | None, typer.Option("--coupling", help="miscibility: a name or a table; may be repeated.")
    ] = None,
    batch: Annotated[int, typer.Option(min=8, help="miscibility: rows that are paired at a time.")] = 256,
    images: Annotated[int, typer.Option(min=2, help="miscibility: images whose noise is measured.")] = 10,
    points: Annotated[int, typer.Option(min=2, help="miscibility: noises an image; the paper has 10,000.")] = 1000,
    steps: Annotated[int, typer.Option(min=1, help="denoising: sampling steps; the paper has 20.")] = 20,
) -> None:
    """Draw how couplings mix noise, or what trained nets make of it, and write the numbers beside the picture."""
    if what == "miscibility":
        chosen = {text: choice("coupling", text) for text in couplings or _COUPLINGS}
        picture, numbers = _miscibility(chosen, choice("source", source), choice("codec", codec), batch, images, points)
        about: dict[str, Any] = {"source": source, "codec": codec, "batch": batch}
    elif what == "denoising":
        if runs is None:
            raise ValueError("draw denoising needs the folder of an experiment's runs")
        picture, numbers = _denoising(runs, steps)
        about = {"runs": runs.name, "sampling_steps": steps}
    else:
        raise ValueError(f"no picture named {what!r}; there are ['miscibility', 'denoising']")
    write_bytes(out_folder / f"{what}.png", picture)
    write_json(out_folder / f"{what}.json", {**about, "environment": environment(), "rows": numbers})
    out.print(f"Figures: {escape(str(out_folder / what))}.png and .json", soft_wrap=True)


def _miscibility(
    couplings: dict[str, Any], source: Any, codec: Any, batch: int, images: int, points: int
) -> tuple[bytes, list[dict[str, Any]]]:
    if images >= batch:
        raise ValueError(f"{images} images in batches of {batch}; they need others beside them")
    drawn = [each.raw for each in itertools.islice(source.batches(batch, 0), 21)]
    first = next(source.batches(batch, 0))
    x = codec.encode(first.raw)
    classes = torch.zeros(batch, dtype=torch.long) if first.cond is None else first.cond
    flat, leaf = flower(batch, stream(0, 0, "data"))
    panels = [("a set of two dimensions", _pairs(couplings, flat, leaf))]
    panels.append(("images, in their leading plane", _pairs(couplings, x, classes)))
    others = [codec.encode(raw[images:]) for raw in drawn[1:]]
    rows = []
    for name, coupling in couplings.items():
        found = miscibility(coupling, x[:images], others, points=points)
        rows.append({"coupling": name, **asdict(found)})
        out.print(
            f"{name}: clusters {found.distance:.3f} ± {found.deviation:.3f} apart, {found.debiased:.3f} but for chance",
            highlight=False,
            markup=False,
        )
    return miscibility_figure(panels), rows


def _pairs(couplings: dict[str, Any], x: Tensor, cluster: Tensor) -> Pairs:
    """Return the first rows of a batch with their noise, which the whole batch was paired with."""
    paired = {name: coupling(x, None, stream(0, 0, "noise")) for name, coupling in couplings.items()}
    return {name: (x[:_DRAWN], noise[:_DRAWN], cluster[:_DRAWN]) for name, noise in paired.items()}


def _denoising(folder: Path, steps: int) -> tuple[bytes, list[dict[str, Any]]]:
    arms: dict[str, list[Denoised]] = {}
    rows = []
    for run in read_index(folder)["runs"]:
        name = str(run["folder"])
        if not is_finished(folder / name):
            continue
        found = denoise(*read_run(folder / name), steps=steps)
        arms.setdefault(run["arm"], []).append(found)
        told = {key: getattr(found, key) for key in ("times", "coupled", "independent", "spread")}
        rows.append({"arm": run["arm"], "seed": run["seed"], **told})
        out.print(
            f"{run['arm']}, seed {run['seed']}: guesses from pure noise vary by {found.spread:.4f}", highlight=False
        )
    if not arms:
        raise ValueError(f"{folder} holds no finished run; train them to the end first")
    return denoising_figure(arms), rows
