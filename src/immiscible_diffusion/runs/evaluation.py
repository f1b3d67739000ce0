"""A model measured: samples against held-out data, by sampling steps and start."""

import itertools
import json
import time
from collections.abc import Callable, Collection, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from immiscible_diffusion.experiments.config import Config, Evaluation
from immiscible_diffusion.features.training_images import decoded
from immiscible_diffusion.metrics import cached_features
from immiscible_diffusion.priors import StandardNormal
from immiscible_diffusion.registry import describe
from immiscible_diffusion.runs.conditions import conditions_for, once
from immiscible_diffusion.runs.pictures import save_grid, save_paths
from immiscible_diffusion.runs.team import ALONE, Team
from immiscible_diffusion.sample import Start, Trained, generate, with_guidance
from immiscible_diffusion.types import (
    Batch,
    Codec,
    Features,
    HasFingerprint,
    HasFitting,
    HasMoments,
    HasOriginal,
    HasPictures,
    Source,
)

__all__ = ["evaluate", "fitted", "held_out_features", "measured_source", "networks"]

_GRID, _TRIPLES = 64, 24
_PART = 250
_fitted: dict[str, Features] = {}


def evaluate(
    trained: Trained,
    config: Config,
    grids: Path | None = None,
    made: Collection[tuple[int, str]] = (),
    team: Team = ALONE,
    last: bool = True,
) -> Iterator[dict[str, Any]]:
    """Yield one measurement for every number of sampling steps and start.

    A coupling whose prior is not the standard normal is measured from both starts. The noise under the samples is
    the same for every model that has the same evaluation seed.

    Args:
        trained: the model.
        config: its run.
        grids: a folder for PNG grids of the first 64 images of each measurement; where a part of the picture is known,
            also of known part, result and truth side by side.
        made: sampling steps and start of the measurements that are left out.
        team: the processes that draw the samples together; the first one measures them, and all yield the same.
        last: whether it is the last evaluation, which measures at ``evaluate.last_steps``, too.
    """
    options = config.evaluate
    starts: list[Start] = ["matched"] if isinstance(trained.prior, StandardNormal) else ["matched", "normal"]
    due = [
        point for point in itertools.product(options.all_steps if last else options.steps, starts) if point not in made
    ]
    if not due:
        return
    device = next(trained.net.parameters()).device
    networks_of = networks(config) if team.first else {}
    compared = {suffix: fitted(config, features) for suffix, features in networks_of.items()}
    real = {suffix: held_out_features(config, network, device) for suffix, network in compared.items()}
    guided = with_guidance(trained, options.guidance)
    for steps, start in due:
        begun = time.perf_counter()
        images = team.divided(_parts(guided, config, steps, start), device)

        def measure(images: Tensor = images, steps: int = steps, start: Start = start) -> dict[str, float]:
            values: dict[str, float] = {}
            for suffix, network in compared.items():
                features = network(images.to(device)).cpu()
                values |= {name + suffix: metric(real[suffix], features) for name, metric in options.metrics.items()}
            if grids is not None:
                _draw(images, config, grids, f"{steps}-{start}")
            return values

        values = team.once(measure)
        spent = time.perf_counter() - begun
        yield {"sampling_steps": steps, "start": start, **_sampling(options), **values, "wall_seconds": round(spent, 3)}


def _draw(images: Tensor, config: Config, grids: Path, name: str) -> None:
    draw = save_grid if images.ndim == 4 else save_paths
    draw(images[:_GRID], grids / f"steps-{name}.png")
    if isinstance(config.source, HasPictures):
        beside = [*config.source.pictures(_TRIPLES), images]
        rows = [image for triple in zip(*beside, strict=False) for image in (triple[0], triple[2], triple[1])]
        save_grid(torch.stack(rows), grids / f"known-result-truth-{name}.png", columns=9)


def _parts(trained: Trained, config: Config, steps: int, start: Start) -> list[Callable[[], Tensor]]:
    """Return what makes the images of one measurement, part by part, with conditions, as texts' states are large.

    Where held-out data are padded, what is generated there was never trained: it gets the held-out rows' own padding.
    """
    options = config.evaluate
    padded = config.source.held_out() if next(config.source.batches(1, 0)).mask is not None else None

    def made(first: int) -> Tensor:
        count = min(_PART, options.samples - first)
        cond = conditions_for(config, count, first)
        images = torch.cat(
            list(generate(trained, count, steps=steps, seed=options.seed, start=start, cond=cond, first=first))
        )
        return images if padded is None else _with_padding(images, padded, first)

    return [partial(made, first) for first in range(0, options.samples, _PART)]


def _with_padding(made: Tensor, held_out: Batch, first: int) -> Tensor:
    """Return the samples from number ``first`` on, with the padding of the held-out rows of the same numbers."""
    rows = torch.arange(first, first + len(made)) % len(held_out.raw)
    return made if held_out.mask is None else torch.where(held_out.mask[rows], made, held_out.raw[rows])


def networks(config: Config) -> dict[str, Features]:
    """Return the feature networks of a run by the end that the names of their distances have: none for the first."""
    also = config.evaluate.also
    return {"": config.evaluate.features} | {f"-{describe('features', network)['use']}": network for network in also}


def measured_source(config: Config) -> Source:
    """Return the source that samples are compared with: one that only adds a condition gives way to its original."""
    return config.source.original if isinstance(config.source, HasOriginal) else config.source


def fitted(config: Config, features: Features) -> Features:
    """Return a run's features ready for use: those that must be fitted to its data are, once a process.

    Raises:
        ValueError: the features cannot be fitted to these data.
    """
    if not isinstance(features, HasFitting):
        return features
    source = measured_source(config)
    about = [describe("features", features), describe("source", source), describe("codec", config.codec)]
    key = json.dumps(about, sort_keys=True, default=str)
    if key not in _fitted:
        _fitted[key] = features.fitted(source, config.codec)
    return _fitted[key]


def held_out_features(config: Config, features: Features, device: torch.device) -> Tensor:
    """Return the features of the held-out images, computed once for all evaluations of a process, if not before.

    With ``evaluate.reference = "decoded"`` the codec encodes and decodes these images first.

    Args:
        config: the run.
        features: of ``fitted``.
        device: where they are computed.
    """
    if config.evaluate.reference == "decoded":
        features = _Decoded(features, config.codec)
    name = features.fingerprint if isinstance(features, HasFingerprint) else describe("features", features)
    source = measured_source(config)
    return once((describe("source", source), name), lambda: cached_features(source.held_out().raw.to(device), features))


class _Decoded:
    """The features of images that a codec encoded and decoded, with a fingerprint where the features have one."""

    def __init__(self, features: Features, codec: Codec) -> None:
        self._features, self._codec = features, codec
        if isinstance(features, HasFingerprint):
            weights = codec.fingerprint() if isinstance(codec, HasMoments) else None
            about = [features.fingerprint, describe("codec", codec), weights]
            self.fingerprint = json.dumps(about, sort_keys=True, default=str)

    def __call__(self, raw: Tensor) -> Tensor:
        return self._features(decoded(raw, self._codec))


def _sampling(asked: Evaluation) -> dict[str, int]:
    return {"samples": asked.samples, "sample_seed": asked.seed}
