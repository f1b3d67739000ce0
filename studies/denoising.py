"""What a trained net makes of noise, level by level: Figure 3 of paper 1, and the error behind it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from immiscible_diffusion.experiments.config import Config, read_config
from immiscible_diffusion.export.model import load_export
from immiscible_diffusion.files import read_json
from immiscible_diffusion.methods import Denoising
from immiscible_diffusion.priors import StandardNormal
from immiscible_diffusion.runs.conditions import conditions_for
from immiscible_diffusion.runs.folder import is_finished
from immiscible_diffusion.sample import Trained, generate
from immiscible_diffusion.streams import stream
from immiscible_diffusion.types import Float

__all__ = ["DenoisingResult", "clean_error", "denoise", "paired", "predict_clean", "read_run"]


@dataclass(frozen=True)
class DenoisingResult:
    """What one run's net makes of noise.

    Attributes:
        times: the noise levels, t in (0, 1].
        coupled: error of the predicted clean image at each of them, where held-out data are noised by the run's own
            coupling, as its training data were: mean square in units of the data's variance, 1 for the data's mean.
        independent: the same where they are noised independently.
        spread: how much the predicted clean images of pure noise differ from each other, their variance in units of the
            data's: 0 where all are the same.
        guesses: predicted clean images of pure noise, as stored, (n, c, h, w).
        samples: what sampling makes of the same noise, (n, c, h, w).
    """

    times: list[float]
    coupled: list[float]
    independent: list[float]
    spread: float
    guesses: Tensor
    samples: Tensor


def read_run(folder: Path) -> tuple[Trained, Config]:
    """Return the model of a finished run and its configuration.

    Raises:
        ValueError: the run is not finished, or a file of it cannot be read.
    """
    if not is_finished(folder):
        raise ValueError(f"{folder} is not the folder of a finished run; train it to the end first")
    config = read_config(read_json(folder / "config.json"))  # imports modules of the user's own
    return load_export(folder / "export"), config


def denoise(
    trained: Trained, config: Config, *, times: Sequence[float] = (), steps: int = 20, images: int = 8, rows: int = 256
) -> DenoisingResult:
    """Return the predictions of a trained net from pure noise down to little noise (arXiv:2406.12303, Fig. 3).

    Pure noise is that of the first sampling step, drawn from N(0, I), the same for every run of equal evaluation seed;
    so are the samples' beginnings. Held-out data are paired in batches of the training's size, or all at once where
    there are fewer. Predicted clean data are clipped to the range of the held-out ones, as DDPM's code does: near pure
    noise a prediction of eps is divided by the small share of data in x_t, and would leave it by far.

    Args:
        trained: the model.
        config: its run.
        times: noise levels at which errors are measured; by default those of ten sampling steps.
        steps: sampling steps of ``samples``; the paper has 20.
        images: how many guesses and samples.
        rows: how many held-out rows the errors are over.

    Raises:
        ValueError: a method that predicts no clean image at a level of its own choosing: it must be ``denoising``.
    """
    method = trained.method
    if not isinstance(method, Denoising):
        raise ValueError(f"the method is {type(method).__name__}; levels of denoising are those of Denoising")
    levels = list(times) or method.schedule.times(10).tolist()
    held = config.source.held_out()
    x, cond = config.codec.encode(held.raw[:rows]), held.cond[:rows] if held.cond is not None else None
    labels = cond if config.net.condition(config.source.classes) in ("labels", "text") else None
    pairs = {
        "coupled": paired(config, x, cond),
        "independent": torch.randn(x.shape, generator=stream(config.evaluate.seed, 0, "noise")),
    }
    errors = {name: [clean_error(trained, x, noise, t, labels) for t in levels] for name, noise in pairs.items()}
    noise = torch.cat([_start(trained, config, i) for i in range(max(images, 64))])
    conditions = conditions_for(config, len(noise))
    guesses = predict_clean(trained, noise, float(method.schedule.times(1)[0]), conditions).clamp(x.min(), x.max())
    samples = generate(
        trained, images, steps=steps, seed=config.evaluate.seed, start="normal", cond=conditions_for(config, images)
    )
    return DenoisingResult(
        times=levels,
        coupled=errors["coupled"],
        independent=errors["independent"],
        spread=float(guesses.var(0).mean() / x.var(0).mean()),
        guesses=trained.codec.decode(guesses[:images]),
        samples=torch.cat(list(samples)),
    )


@torch.no_grad()
def predict_clean(
    trained: Trained, x_t: Float[Tensor, "b *dims"], t: float, cond: Tensor | None = None
) -> Float[Tensor, "b *dims"]:
    """Return the clean data that the net's prediction at noise level t implies, (b, *dims).

    Raises:
        ValueError: the method is not ``denoising``.
    """
    if not isinstance(trained.method, Denoising):
        raise ValueError(f"the method is {type(trained.method).__name__}; it must be Denoising")
    each = torch.full((len(x_t),), t, device=x_t.device)
    return trained.method.split(x_t, each, trained.net(x_t, each, cond))[0]


def clean_error(
    trained: Trained,
    x: Float[Tensor, "b *dims"],
    noise: Float[Tensor, "b *dims"],
    t: float,
    cond: Tensor | None = None,
) -> float:
    """Return the mean squared error of the predicted clean data at noise level t, in units of the data's variance.

    Predictions are clipped to the range of x. A net that predicts the data's mean has 1.

    Raises:
        ValueError: the method is not ``denoising``, or data that do not vary.
    """
    if not isinstance(trained.method, Denoising):
        raise ValueError(f"the method is {type(trained.method).__name__}; it must be Denoising")
    variance = float(x.var(0, correction=0).mean())
    if variance == 0:
        raise ValueError("the data do not vary; an error in units of their variance needs different rows")
    alpha, sigma = (float(coefficient) for coefficient in trained.method.schedule.coefficients(torch.tensor([t])))
    clean = predict_clean(trained, alpha * x + sigma * noise, t, cond)
    return float((clean.clamp(x.min(), x.max()) - x).square().mean()) / variance


def paired(config: Config, x: Tensor, cond: Tensor | None) -> Tensor:
    """Return noise paired with held-out rows by the run's coupling, in batches of the training's size."""
    size, parts = min(config.train.batch, len(x)), []
    for i, first in enumerate(range(0, len(x) - size + 1, size)):
        labels = None if cond is None else cond[first : first + size]
        generator = stream(config.evaluate.seed, i, "noise")
        parts.append(
            config.coupling(x[first : first + size], cond=labels, generator=generator, step=config.train.steps)
        )
    rest = len(x) - size * len(parts)
    if rest:  # the last rows are paired among as many as the others
        labels = None if cond is None else cond[-size:]
        generator = stream(config.evaluate.seed, len(parts), "noise")
        parts.append(config.coupling(x[-size:], cond=labels, generator=generator, step=config.train.steps)[-rest:])
    return torch.cat(parts)


def _start(trained: Trained, config: Config, i: int) -> Tensor:
    return StandardNormal().sample((1, *trained.shape), stream(config.evaluate.seed, i, "sample"))
