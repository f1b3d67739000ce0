"""Commands over recorded results: the list of the papers' tables and figures, pages, pictures, and reruns."""

import itertools
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.markup import escape
from torch import Tensor

from immiscible_diffusion.cli.options import Sets, choice, err, out
from immiscible_diffusion.diagnostics.miscibility import flower, miscibility
from immiscible_diffusion.experiments.values import parse_override
from immiscible_diffusion.files import read_index, write_bytes, write_json
from immiscible_diffusion.report.page import text_table
from immiscible_diffusion.runs.folder import environment, is_finished
from immiscible_diffusion.runs.run import execute
from immiscible_diffusion.streams import stream
from studies.denoising import Denoised, denoise, read_run
from studies.levels import ByLevel, by_level
from studies.pages import html_page
from studies.pages import pages as all_pages
from studies.papers import SCALES, papers_page, papers_table
from studies.papers import papers as listed
from studies.rerun import keep_outcome, recorded_config, recorded_threads, unlike_record
from studies.start import dimensions
from studies.study_figures import denoising_figure, dimension_figure, levels_figure, miscibility_figure

__all__ = ["draw", "pages", "papers", "rerun"]

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


def draw(
    what: Annotated[
        str,
        typer.Argument(
            help="miscibility: Figure 2 and the measure; denoising: Figure 3; levels: consistency training by noise "
            "level; dimension: nearness by coordinates."
        ),
    ],
    runs: Annotated[
        Path | None, typer.Argument(help="denoising, levels: an experiment's folder, such as runs/demo.")
    ] = None,
    out_folder: Annotated[Path, typer.Option("--out", help="Where WHAT.webp and WHAT.json go.")] = Path("figures"),
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
    if what == "dimension":
        write_bytes(out_folder / "dimension.svg", dimension_figure(dimensions(Path())))
        out.print(f"Figure: {escape(str(out_folder / 'dimension.svg'))}", soft_wrap=True)
        return
    if what == "miscibility":
        chosen = {text: choice("coupling", text) for text in couplings or _COUPLINGS}
        picture, numbers = _miscibility(chosen, choice("source", source), choice("codec", codec), batch, images, points)
        about: dict[str, Any] = {"source": source, "codec": codec, "batch": batch}
    elif what == "denoising":
        if runs is None:
            raise ValueError("draw denoising needs the folder of an experiment's runs")
        picture, numbers = _denoising(runs, steps)
        about = {"runs": runs.name, "sampling_steps": steps}
    elif what == "levels":
        if runs is None:
            raise ValueError("draw levels needs the folder of an experiment's runs")
        picture, numbers = _levels(runs)
        about = {"runs": runs.name}
    else:
        raise ValueError(f"no picture named {what!r}; there are ['miscibility', 'denoising', 'levels', 'dimension']")
    write_bytes(out_folder / f"{what}.webp", picture)
    write_json(out_folder / f"{what}.json", {**about, "environment": environment(), "rows": numbers})
    out.print(f"Figures: {escape(str(out_folder / what))}.webp and .json", soft_wrap=True)


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
        mixed = miscibility(coupling, x[:images], others, points=points)
        rows.append({"coupling": name, **asdict(mixed)})
        out.print(
            f"{name}: clusters {mixed.distance:.3f} ± {mixed.deviation:.3f} apart, {mixed.debiased:.3f} but for chance",
            highlight=False,
            markup=False,
        )
    return miscibility_figure(panels), rows


def _pairs(couplings: dict[str, Any], x: Tensor, cluster: Tensor) -> Pairs:
    """Return the first rows of a batch with their noise, which the whole batch was paired with."""
    paired = {name: coupling(x, generator=stream(0, 0, "noise")) for name, coupling in couplings.items()}
    return {name: (x[:_DRAWN], noise[:_DRAWN], cluster[:_DRAWN]) for name, noise in paired.items()}


def _denoising(folder: Path, steps: int) -> tuple[bytes, list[dict[str, Any]]]:
    arms: dict[str, list[Denoised]] = {}
    rows = []
    for run in read_index(folder)["runs"]:
        name = str(run["folder"])
        if not is_finished(folder / name):
            continue
        denoised = denoise(*read_run(folder / name), steps=steps)
        arms.setdefault(run["arm"], []).append(denoised)
        values = {key: getattr(denoised, key) for key in ("times", "coupled", "independent", "spread")}
        rows.append({"arm": run["arm"], "seed": run["seed"], **values})
        out.print(
            f"{run['arm']}, seed {run['seed']}: guesses from pure noise vary by {denoised.spread:.4f}", highlight=False
        )
    if not arms:
        raise ValueError(f"{folder} holds no finished run; train them to the end first")
    return denoising_figure(arms), rows


def _levels(folder: Path) -> tuple[bytes, list[dict[str, Any]]]:
    groups: dict[str, dict[str, list[ByLevel]]] = {}
    rows = []
    for run in read_index(folder)["runs"]:
        name, point = str(run["folder"]), run["point"]
        if not is_finished(folder / name):
            continue
        measured = by_level(*read_run(folder / name))
        groups.setdefault(str(point.get("method", "")), {}).setdefault(str(point["coupling"]), []).append(measured)
        rows.append({"arm": run["arm"], "seed": run["seed"], **asdict(measured)})
        out.print(f"{run['arm']}, seed {run['seed']}", highlight=False)
    if not rows:
        raise ValueError(f"{folder} holds no finished run; train them to the end first")
    return levels_figure(groups), rows


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
        for step in execute(config, place, torch.device("cpu")):
            err.print(f"step {step} of {config.train.steps}", end="\r", highlight=False)
    finally:
        torch.set_num_threads(before)
    differing, count = unlike_record(summary, arm, seed, place)
    if keep:
        keep_outcome(summary, arm, seed, numbers=count, differing=len(differing))
    if differing:
        raise ArithmeticError("the run is not the recorded one:\n  " + "\n  ".join(differing))
    out.print(f"{count} numbers of {escape(arm)}, seed {seed}, are the recorded ones, bit for bit")
