"""Commands about one finished run: sample from it, measure it."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.markup import escape
from rich.table import Table

from immiscible_diffusion.cli.options import Device, Folder, checked_device, out, progress
from immiscible_diffusion.experiments.config import Config, read_config
from immiscible_diffusion.export.model import load_export
from immiscible_diffusion.files import read_json, write_json
from immiscible_diffusion.runs.check import data_shape
from immiscible_diffusion.runs.conditions import conditions_for
from immiscible_diffusion.runs.evaluation import evaluate as measure
from immiscible_diffusion.runs.folder import CONFIG
from immiscible_diffusion.runs.run import trained_at
from immiscible_diffusion.runs.write_samples import SamplingOptions, write_samples
from immiscible_diffusion.sample import Start, Trained

__all__ = ["evaluate", "sample"]


def sample(
    run_folder: Folder,
    n: Annotated[int, typer.Option(min=1, help="How many images.")] = 64,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Sampling steps; by default the most of the run's evaluate.steps.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Names the images' noise; image i is the same whatever n is.")] = 0,
    start: Annotated[str, typer.Option(help="matched: the coupling's own start; normal: N(0, I).")] = "matched",
    sampler: Annotated[str, typer.Option(help="Another sampler of the method, as heun or dpmpp for denoising.")] = "",
    eta: Annotated[float | None, typer.Option(min=0, help="DDIM's share of fresh noise; 0 is deterministic.")] = None,
    labels: Annotated[str, typer.Option(help="Classes that the images run through, as 0,3,7; by default all.")] = "",
    guidance: Annotated[float, typer.Option(min=0, help="Scale of classifier-free guidance; 1 is none.")] = 1.0,
    out_folder: Annotated[Path | None, typer.Option("--out", help="Where images go; by default RUN/generated.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes, of one thread each.")] = 1,
    device: Device = None,
) -> None:
    """Generate images from a finished run: PNG files, one grid and an .npz; the same command again goes on."""
    config, trained = _run(run_folder, device)
    target = out_folder or run_folder / "generated"
    sampling = SamplingOptions(
        steps=steps or max(config.evaluate.all_steps),
        seed=seed,
        start=_start(start),
        sampler=sampler,
        options={} if eta is None else {"eta": eta},
        labels=_labels(labels, config),
        run=_held_out_conditions(config),
        guidance=guidance,
    )
    sampling.applied(trained)  # a sampler that is not there is refused before the folder is claimed
    with progress("generating", n) as move:
        made = write_samples(run_folder / "export", target, n, sampling, workers=workers, device=checked_device(device))
        for done in made:
            move(completed=done)
    out.print(f"{n} images, grid.png and samples.npz are in {escape(str(target))}", soft_wrap=True)


def evaluate(
    run_folder: Folder,
    steps: Annotated[list[int] | None, typer.Option(min=1, help="Sampling steps; may be repeated.")] = None,
    step: Annotated[
        int | None, typer.Option(min=1, help="The training step of a checkpoint that was kept; by default the end.")
    ] = None,
    n: Annotated[int | None, typer.Option("--n", min=2, help="How many images to generate.")] = None,
    seed: Annotated[int | None, typer.Option(help="Names the images' noise.")] = None,
    guidance: Annotated[float | None, typer.Option(min=0, help="Scale of classifier-free guidance; 1 is none.")] = None,
    device: Device = None,
) -> None:
    """Measure a run against held-out data, at its end or at a kept checkpoint, and keep it in RUN/evaluated.json."""
    if step is None:
        config, trained = _run(run_folder, device)
    else:
        config = _config(run_folder)
        trained = trained_at(config, run_folder, step, torch.device(checked_device(device)))
    if tuple(trained.shape) != (shape := data_shape(config)):
        raise ValueError(f"the model draws rows of shape {tuple(trained.shape)} and the run's data have {shape}")
    evaluation = dataclasses.replace(
        config.evaluate,
        steps=tuple(steps) if steps else config.evaluate.all_steps,
        last_steps=(),
        samples=n or config.evaluate.samples,
        seed=config.evaluate.seed if seed is None else seed,
        guidance=config.evaluate.guidance if guidance is None else guidance,
    )
    measured = measure(trained, dataclasses.replace(config, evaluate=evaluation))
    guided = {} if evaluation.guidance == 1 else {"guidance": evaluation.guidance}
    at = {} if step is None else {"step": step}
    lines = [{**at, **line, **guided} for line in measured]
    table = Table()
    for column in lines[0]:
        table.add_column(column, justify="right")
    for line in lines:
        table.add_row(*(f"{value:.4g}" if isinstance(value, float) else str(value) for value in line.values()))
    out.print(table)
    path = run_folder / "evaluated.json"
    write_json(path, [*(read_json(path, [dict]) if path.exists() else []), *lines])


def _config(folder: Path) -> Config:
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} is not a run folder: it has no config.json")
    return read_config(read_json(folder / "config.json", CONFIG))  # imports modules of the user's own


def _run(folder: Path, device: str | None) -> tuple[Config, Trained]:
    config = _config(folder)
    if not (folder / "export").is_dir():
        raise ValueError(
            f"{folder} is not finished: it has no export/; train it to the end first, or measure a checkpoint by --step"
        )
    trained = load_export(folder / "export")
    trained.net.to(checked_device(device))
    return config, trained


def _labels(text: str, config: Config) -> tuple[int, ...]:
    classes = config.source.classes
    if config.net.condition(classes) != "labels" or classes is None:
        if text:
            raise ValueError("--labels: this run's net takes no labels")
        return ()
    if not text:
        return tuple(range(classes))
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() and int(part) < classes for part in parts):
        raise ValueError(f"--labels {text!r}: write classes within 0 .. {classes - 1}, as 0,3,7")
    return tuple(map(int, parts))


def _held_out_conditions(config: Config) -> dict[str, Any]:
    """Return the run's plain values where its net's condition is no label, and so comes from held-out rows."""
    if config.net.condition(config.source.classes) not in ("text", "dense"):
        return {}
    conditions_for(config, 1)  # a source without them is refused before the folder is claimed
    return config.plain()


def _start(start: str) -> Start:
    known: dict[str, Start] = {"matched": "matched", "normal": "normal"}
    if start not in known:
        raise ValueError(f"no start named {start!r}; there are {list(known)}")
    return known[start]
