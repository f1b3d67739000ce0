"""Commands that show measurements: couplings on one's own data, and the report of an experiment."""

import itertools
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from immiscible_diffusion.cli.options import choice, out
from immiscible_diffusion.couplings import prepared
from immiscible_diffusion.diagnostics.inspect import inspect as compare_pairs
from immiscible_diffusion.files import write_bytes, write_json
from immiscible_diffusion.registry import names
from immiscible_diffusion.report.figures import inspect_figure
from immiscible_diffusion.report.page import FIGURES, inspect_table, terminal_table
from immiscible_diffusion.report.page import report as write_report
from immiscible_diffusion.report.record import read_record
from immiscible_diffusion.report.summary import summary_sentences
from immiscible_diffusion.runs.conditions import with_states
from immiscible_diffusion.types import HasPreparation

__all__ = ["inspect", "print_report", "report"]


def inspect(
    source: Annotated[
        str, typer.Option(help='A source\'s name, or a table: \'{use="images", path="folder"}\'.')
    ] = "digits",
    couplings: Annotated[
        list[str] | None,
        typer.Option(
            "--coupling", help="A name or a table; may be repeated. By default all but those over a whole data set."
        ),
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
    data_source, data_codec = choice("source", source), choice("codec", codec)
    data_source = with_states(data_source, text) if text else data_source
    chosen = {text: choice("coupling", text) for text in couplings or names("coupling")}
    chosen = {
        text: prepared(coupling, data_source, data_codec)
        for text, coupling in chosen.items()
        if couplings or not isinstance(coupling, HasPreparation)
    }
    drawn = itertools.islice(data_source.batches(batch, seed), batches)
    captioned = data_source.classes is None and not text  # numbers of captions are no labels
    pairs = [
        (data_codec.encode(minibatch.raw), None if captioned else minibatch.cond, minibatch.mask, minibatch.rows)
        for minibatch in drawn
    ]
    rows = compare_pairs(chosen, pairs, seed=seed)
    out.print(inspect_table(rows))
    for row in rows:
        if row["idle"]:
            out.print(f"Note: {escape(row['idle'])}", highlight=False)
    write_json(out_folder / "inspect.json", {"source": source, "codec": codec, "batch": batch, "couplings": rows})
    write_bytes(out_folder / "inspect.png", inspect_figure(rows))
    out.print(f"Figures: {escape(str(out_folder / 'inspect.json'))} and inspect.png", soft_wrap=True)


def report(
    folder: Annotated[Path, typer.Argument(help="An experiment's folder, such as runs/demo.")],
    record: Annotated[
        Path | None, typer.Option(help="Also copy the numbers and figures, without the runs, into this folder.")
    ] = None,
    out_folder: Annotated[
        Path | None, typer.Option("--out", help="Where the report goes; by default into FOLDER.")
    ] = None,
) -> None:
    """Write report.html, summary.json and figures from the runs in a folder, and print what they show."""
    page = print_report(folder, out_folder)
    if record is not None:
        files = [page.parent / name for name in ("summary.json", *FIGURES)]
        for file in [*files, *folder.glob("rollout.json")]:
            write_bytes(record / file.name, file.read_bytes())
        out.print(f"Recorded in {escape(str(record))}")


def print_report(folder: Path, to: Path | None = None) -> Path:
    """Write an experiment's report, by default into its folder, print three sentences and a table, and return the page.

    Raises:
        OSError: the report cannot be written.
    """
    try:
        page = write_report(folder, to)
    except OSError as error:
        raise OSError(
            f"the report cannot be written: {error}; give `immiscible report` another place with --out"
        ) from error
    numbers = read_record(page.parent / "summary.json")
    out.print()
    for sentence in summary_sentences(numbers):
        out.print(escape(sentence), highlight=False)
    out.print()
    out.print(terminal_table(numbers))
    out.print(f"Report: {escape(str(page))}", soft_wrap=True)
    return page
