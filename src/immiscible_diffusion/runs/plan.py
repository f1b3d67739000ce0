"""Plan an experiment on data of one's own: choose every option and say why, and estimate how long it takes."""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from immiscible_diffusion.experiments.config import Config
from immiscible_diffusion.experiments.experiment import Experiment
from immiscible_diffusion.experiments.values import overridden
from immiscible_diffusion.experiments.written import experiment_text
from immiscible_diffusion.features import Classifier
from immiscible_diffusion.runs.look import Look, look_at_images, look_at_latents
from immiscible_diffusion.runs.timing import Timing, timed

__all__ = ["Choice", "Plan", "plan"]

_ARMS, _MEASUREMENTS = 2, 5
_LEAST_STEPS, _MOST_STEPS = 400, 4000
_BATCH = 128
_HELD_OUT, _MOST_HELD_OUT, _SAMPLES = 5, 1000, (100, 250)
"""One image in so many is held out, at most so many; the least and the most samples a measurement."""
_SIZES = {"cpu": (16, 32), "cuda": (32, 64)}
_NEXT_SIZE = 4
"""A step at the next size takes about so many times as long."""
_CHANNELS = {"cpu": {16: [16, 32], 64: [16, 32, 64]}, "cuda": {16: [64, 128], 64: [64, 128, 128]}}
"""Device -> the largest side -> channels of the U-Net's levels."""
_CLASSIFIED = 8, 64
"""Sides of the images that a classifier of features can learn from; larger ones are reduced first."""
_LEAST_LEARNED = {"labels": 200, "rotation": 960}
"""Task -> the fewest training images; with fewer, blurred images score nearly like sharp ones (small_features.json)."""
_LEAST_OF_CLASS = 20
_FEATURES_SHARE = 0.25
"""Of the time at hand, what fitting it may take."""
_GRID: dict[str, Any] = {
    "coupling": {"independent": "independent", "assignment": "assignment"},
    "train.seed": [0, 1, 2],
}
_WHY_GRID: dict[str, Any] = {
    "grid.coupling": "What is compared: noise drawn at random for each image, and noise paired with near images.",
    "grid.train.seed": "Both are trained from each of these seeds: same first weights, batches, noise and times.",
}


class Choice(NamedTuple):
    """One option of the experiment file, and why it has its value; empty where it has its usual one."""

    key: str
    value: Any
    why: str = ""


@dataclass(frozen=True)
class Plan:
    """An experiment on one's own data.

    Args:
        name: of the experiment, for its file and its folder.
        choices: every option of a run.
        seconds: about how long all runs take.
        timing: of the steps that were timed.
        steps: training steps of a run.
        runs: how many runs there are.
        together: how many of them at a time.
    """

    name: str
    choices: Sequence[Choice]
    seconds: float
    timing: Timing
    steps: int
    runs: int
    together: int

    @property
    def text(self) -> str:
        """The experiment file: each option below the reason for its value."""
        reasons = {f"base.{choice.key}": choice.why for choice in self.choices}
        return experiment_text(_values(self.name, self.choices), reasons | _WHY_GRID)

    @property
    def estimate(self) -> str:
        """How long it takes, in one sentence."""
        minutes = math.ceil(self.seconds / 60)
        return (
            f"About {minutes} minute{'s' * (minutes > 1)}: {self.runs} runs of {self.steps:,} training steps at "
            f"{1000 * self.timing.step:.0f} ms, {self.together} at a time (a few steps were timed)."
            + " One seed alone is quicker: --set train.seed=0."
            * (self.runs > _ARMS)
        )


def plan(
    path: str,
    *,
    latents: bool = False,
    overrides: Sequence[tuple[str, Any]] = (),
    minutes: float = 10.0,
    workers: int = 1,
    device: str = "cpu",
) -> Plan:
    """Choose size, held-out share, net, batch, features and training steps for these data and this machine.

    The largest size is taken at which the runs fit into the time, else the smallest; never more than images have.

    Args:
        path: of images, as ``source.path`` takes it, or of a folder of latents.
        latents: whether it is a folder that ``immiscible encode`` wrote.
        overrides: dotted keys of the experiment file and values, where the user chose.
        minutes: about how long training may take.
        workers: runs at a time.
        device: ``cpu`` or ``cuda``.

    Raises:
        ValueError: the data cannot be read or are too few, or a value that is given is refused.
    """
    given = dict(_flat("", {key: value for key, value in overrides if not key.startswith("grid.")}))
    look = look_at_latents(path, given) if latents else look_at_images(path, given)
    seeds = given.get("train.seed", _GRID["train.seed"])
    runs = _ARMS * (len(seeds) if isinstance(seeds, list) else 1)
    together = min(workers, runs)
    rounds = math.ceil(runs / together)
    for size in _sizes(look, given, device):
        features, fitting = _features(look, size, given, 60 * minutes)
        draft = _choices(look, size, _LEAST_STEPS, features, given, device)
        timing = _timed(_config(look.name, draft, overrides), together, device)
        training = 60 * minutes / rounds - timing.run(0, _MEASUREMENTS)
        if training < _NEXT_SIZE * _LEAST_STEPS * timing.step:
            break
    affordable = max(_LEAST_STEPS, min(_MOST_STEPS, int(training / timing.step)))
    steps = given.get("train.steps", affordable // 100 * 100)
    choices = _choices(look, size, steps, features, given, device, minutes)
    reading = look.read_seconds * look.rows * (1 + rounds)
    seconds = reading + fitting + rounds * timing.run(steps, _MEASUREMENTS)
    return Plan(look.name, choices, seconds, timing, steps, runs, together)


def _flat(above: str, values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield dotted keys and values of tables in tables."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(f"{above}{key}.", value)
        else:
            yield above + key, value


def _sizes(look: Look, given: Mapping[str, Any], device: str) -> Sequence[int]:
    """Return sides in pixels to try, rising; the images' own where they are smaller."""
    if look.latents:
        return [look.shortest]
    if "source.size" in given:
        return [given["source.size"]]
    return [size for size in _SIZES[device] if size <= look.shortest] or [max(8, look.shortest // 4 * 4)]


def _features(look: Look, size: int, given: Mapping[str, Any], seconds: float) -> tuple[Choice, float]:
    """Return the features that are compared, and about how long fitting them takes."""
    key, side = "evaluate.features", look.image_side or size
    if key in given or "evaluate.features.use" in given:
        return Choice(key, given.get(key, {}), "As given."), 0.0
    rows, labels = look.rows - _held_out(look), look.classes or 0
    task = "labels" if labels > 1 and rows >= _LEAST_OF_CLASS * labels else "rotation"
    least, most = _CLASSIFIED
    reason = ""
    if look.latents:
        reason = "a classifier of features would need every latent decoded"
    elif side < least:
        reason = f"a classifier of features takes images of {least} pixels and more"
    elif rows < _LEAST_LEARNED[task]:
        lack = "" if task == "labels" else " without labels"
        reason = f"a classifier of features needs {_LEAST_LEARNED[task]} training images{lack} and there are {rows}"
    else:
        fitting = Classifier().fit_seconds((3, min(side, most), min(side, most)), rows)
        if fitting > _FEATURES_SHARE * seconds:
            reason = f"a classifier of features would take {math.ceil(fitting)} seconds to train (--minutes)"
    if reason:
        why = f"Averages of pixels on a grid, which show colour and layout but not sharpness: {reason}."
        return Choice(key, "pooled_pixels", why), 0.0
    reduced = {"size": most} if side > most else {}
    seen = f" It sees them reduced to {most} pixels." if reduced else ""
    if task == "labels":
        why = f"A small classifier that learns the {labels} classes of your images; a distance in it is not FID.{seen}"
        return Choice(key, {"use": "classifier", "task": "labels"} | reduced, why), fitting
    lack = "the images have no labels" if labels < 2 else f"{labels} classes have fewer than 20 images each"
    why = f"A small classifier that learns which way up an image is, as {lack}; a distance in it is not FID.{seen}"
    return Choice(key, {"use": "classifier", "task": "rotation"} | reduced, why), fitting


def _held_out(look: Look) -> int:
    return 0 if look.latents else min(_MOST_HELD_OUT, look.rows // _HELD_OUT)


def _choices(
    look: Look,
    size: int,
    steps: int,
    features: Choice,
    given: Mapping[str, Any],
    device: str,
    minutes: float = 0.0,
) -> list[Choice]:
    """Return every option of a run; those that are given have their value."""
    why_steps = f"What fits into {minutes:g} min on this machine (--minutes)."
    if steps == _LEAST_STEPS:
        why_steps = (
            f"The fewest that show anything, although {minutes:g} min (--minutes) are too short for them. Faster: "
            "--set source.size=16, --set train.seed=0"
        )
    held_out = given.get("source.held_out_rows", _held_out(look))
    train_rows = max(1, look.rows - held_out)
    channels = next(channels for side, channels in _CHANNELS[device].items() if size <= side or side == 64)
    batch = min(_BATCH, train_rows)
    why_batch = "Rows that are paired with each other at a time; all training images." * (batch == train_rows)
    samples = min(max(held_out, _SAMPLES[0]), _SAMPLES[1])
    chosen = [
        *(_latents(look) if look.latents else _images(look, size, held_out)),
        Choice("coupling", "independent"),
        Choice("method", {"use": "denoising", "schedule": "straight", "predict": "velocity"}, "Flow matching."),
        Choice("net.use", "unet"),
        Choice("net.channels", channels, f"A small U-Net for {size} x {size}: channels of its levels."),
        Choice("train.steps", steps, why_steps),
        Choice("train.batch", batch, why_batch or "Rows that are paired with each other at a time."),
        Choice("train.lr", 1e-3),
        Choice("train.warmup", 50),
        Choice("train.ema", 0.99),
        Choice("evaluate.every", max(1, steps // _MEASUREMENTS)),
        Choice("evaluate.steps", [2, 5, 10], "Sampling steps: what pairing gains is largest at few of them."),
        Choice("evaluate.samples", samples, "Generated images that are compared with the held-out ones."),
        features,
        Choice("evaluate.metrics", ["frechet"]),
    ]
    other_net = given.get("net", given.get("net.use", "unet")) != "unet"
    known = {choice.key: choice for choice in chosen if not (other_net and choice.key.startswith("net."))}
    return list((known | {key: Choice(key, value, "As given.") for key, value in given.items()}).values())


def _images(look: Look, size: int, held_out: int) -> list[Choice]:
    colour = " They are grey, and trained as three equal channels." if look.grey else ""
    labels = f"{look.classes} classes" if look.classes else "no labels"
    return [
        Choice("source.use", "images"),
        Choice("source.path", look.path, f"{look.rows:,} images, {labels}.{colour}"),
        Choice(
            "source.size",
            size,
            f"Images are cropped to a square of so many pixels; half of yours are {look.shortest} or smaller.",
        ),
        Choice("source.held_out_rows", held_out, "Never trained on, to measure samples against."),
        Choice("source.on_bad", "skip", "A file that cannot be read is left out, with a warning."),
        Choice("codec", "pixels"),
    ]


def _latents(look: Look) -> list[Choice]:
    return [
        Choice("source.use", "latents"),
        Choice("source.path", look.path, f"{look.rows:,} latents."),
        Choice("codec.use", "vae"),
        Choice("codec.path", "", "The autoencoder that made the latents."),
    ]


def _values(name: str, choices: Sequence[Choice]) -> dict[str, Any]:
    """Return the values of the experiment file."""
    base: dict[str, Any] = {}
    grid = dict(_GRID)
    for choice in choices:
        if choice.key == "train.seed":
            grid[choice.key] = choice.value if isinstance(choice.value, list) else [choice.value]
        else:
            base = overridden(base, choice.key, choice.value)
    return {
        "title": f"{name}: independent noise against assignment",
        "source": "Chosen by `immiscible init` for these data and this machine.",
        "question": "Does pairing images with near noise train a better model in equally many steps?",
        "base": base,
        "grid": grid,
    }


def _config(name: str, choices: Sequence[Choice], overrides: Sequence[tuple[str, Any]]) -> Config:
    """Return the run of the assignment's first seed."""
    values = {**_values(name, choices), "grid": {"coupling": {"assignment": "assignment"}}}
    return Experiment(name, scale={}, published={}, **values).cells(None, overrides)[0].config


def _timed(config: Config, together: int, device: str) -> Timing:
    """Return how long steps take on as many threads as a run will have."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, min((os.cpu_count() or 1) // together, before)))
    try:
        return timed(config, torch.device(device))
    finally:
        torch.set_num_threads(before)
