"""The command that draws pictures which no training curve gives, and writes the numbers beside them."""

import itertools
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.markup import escape
from torch import Tensor

from immiscible_diffusion.cli.options import choice, out
from immiscible_diffusion.diagnostics.miscibility import flower, miscibility
from immiscible_diffusion.experiments.config import Config
from immiscible_diffusion.files import read_index, write_bytes, write_json
from immiscible_diffusion.runs.folder import environment, is_finished
from immiscible_diffusion.sample import Trained
from immiscible_diffusion.streams import stream
from studies.denoising import DenoisingResult, denoise, read_run
from studies.dimension import gains_by_dimension, nearness
from studies.levels import ByLevel, by_level
from studies.perturbation import PerturbationResult, perturb
from studies.study_figures import (
    denoising_figure,
    dimension_figure,
    levels_figure,
    miscibility_figure,
    perturbation_figure,
)

__all__ = ["draw"]

_COUPLINGS = ["independent", "assignment", '{use="nearest", k=8}']
_DRAWN = 96

Pairs = dict[str, tuple[Tensor, Tensor, Tensor]]


def draw(
    what: Annotated[
        str,
        typer.Argument(
            help="miscibility: Figure 2 and the measure; denoising: Figure 3; levels: consistency training by noise "
            "level; perturbation: pictures of changed noise; dimension: nearness and quality by coordinates."
        ),
    ],
    runs: Annotated[
        Path | None, typer.Argument(help="denoising, levels, perturbation: an experiment's folder, such as runs/demo.")
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
    steps: Annotated[int, typer.Option(min=1, help="denoising, perturbation: sampling steps; 20 in the papers.")] = 20,
) -> None:
    """Draw how couplings mix noise, or what trained nets make of it, and write the numbers beside the picture."""
    if what == "dimension":
        picture = dimension_figure(nearness(Path()), gains_by_dimension(Path()))
        write_bytes(out_folder / "dimension.svg", picture)
        out.print(f"Figure: {escape(str(out_folder / 'dimension.svg'))}", soft_wrap=True)
        return
    if what == "miscibility":
        chosen = {text: choice("coupling", text) for text in couplings or _COUPLINGS}
        picture, numbers = _miscibility(chosen, choice("source", source), choice("codec", codec), batch, images, points)
        about: dict[str, Any] = {"source": source, "codec": codec, "batch": batch}
    elif what == "denoising":
        picture, numbers = _denoising(runs, steps)
        about = {"sampling_steps": steps}
    elif what == "levels":
        picture, numbers = _levels(runs)
        about = {}
    elif what == "perturbation":
        picture, numbers = _perturbation(runs, steps)
        about = {"sampling_steps": steps}
    else:
        known = ["miscibility", "denoising", "levels", "perturbation", "dimension"]
        raise ValueError(f"no picture named {what!r}; there are {known}")
    if runs is not None:
        about |= {"runs": runs.name}
    write_bytes(out_folder / f"{what}.webp", picture)
    write_json(out_folder / f"{what}.json", {**about, "environment": environment(), "rows": numbers})
    out.print(f"Figures: {escape(str(out_folder / what))}.webp and .json", soft_wrap=True)


def _miscibility(
    couplings: dict[str, Any], source: Any, codec: Any, batch: int, images: int, points: int
) -> tuple[bytes, list[dict[str, Any]]]:
    if images >= batch:
        raise ValueError(f"{images} images in batches of {batch}; they need others beside them")
    drawn = [minibatch.raw for minibatch in itertools.islice(source.batches(batch, 0), 21)]
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


def _finished(folder: Path | None) -> Iterator[tuple[dict[str, Any], Trained, Config]]:
    """Yield the entry in the index, the model and the configuration of every finished run of a folder.

    Raises:
        ValueError: there is no folder, or none finished in it.
    """
    if folder is None:
        raise ValueError("this picture needs the folder of an experiment's runs, such as runs/demo")
    runs = [run for run in read_index(folder)["runs"] if is_finished(folder / str(run["folder"]))]
    if not runs:
        raise ValueError(f"{folder} holds no finished run; train them to the end first")
    for run in runs:
        out.print(f"{run['arm']}, seed {run['seed']}", highlight=False)
        yield run, *read_run(folder / str(run["folder"]))


def _denoising(folder: Path | None, steps: int) -> tuple[bytes, list[dict[str, Any]]]:
    arms: dict[str, list[DenoisingResult]] = {}
    rows = []
    for run, trained, config in _finished(folder):
        denoised = denoise(trained, config, steps=steps)
        arms.setdefault(run["arm"], []).append(denoised)
        values = {key: getattr(denoised, key) for key in ("times", "coupled", "independent", "spread")}
        rows.append({"arm": run["arm"], "seed": run["seed"], **values})
    return denoising_figure(arms), rows


def _levels(folder: Path | None) -> tuple[bytes, list[dict[str, Any]]]:
    groups: dict[str, dict[str, list[ByLevel]]] = {}
    rows = []
    for run, trained, config in _finished(folder):
        measured, point = by_level(trained, config), run["point"]
        groups.setdefault(str(point.get("method", "")), {}).setdefault(str(point["coupling"]), []).append(measured)
        rows.append({"arm": run["arm"], "seed": run["seed"], **asdict(measured)})
    return levels_figure(groups), rows


def _perturbation(folder: Path | None, steps: int) -> tuple[bytes, list[dict[str, Any]]]:
    arms: dict[str, list[PerturbationResult]] = {}
    rows = []
    for run, trained, config in _finished(folder):
        perturbed = perturb(trained, config, steps=steps)
        arms.setdefault(run["arm"], []).append(perturbed)
        values = {"weights": perturbed.weights, "change": perturbed.change}
        rows.append({"arm": run["arm"], "seed": run["seed"], **values})
    return perturbation_figure(arms), rows
