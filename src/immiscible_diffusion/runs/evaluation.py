"""A model measured: samples against held-out data, by sampling steps and start."""

import itertools
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from immiscible_diffusion.experiments.config import Config, Evaluation
from immiscible_diffusion.metrics import cached_features
from immiscible_diffusion.priors import StandardNormal
from immiscible_diffusion.registry import describe
from immiscible_diffusion.runs.conditions import Captioned, conditioned
from immiscible_diffusion.runs.pictures import save_grid, save_paths
from immiscible_diffusion.sample import Start, Trained, generate, with_guidance
from immiscible_diffusion.types import Features

__all__ = ["evaluate", "labels_for"]

_GRID, _TRIPLES = 64, 24
_PART = 250
_KEPT = 4
_held_out: dict[str, Tensor] = {}


@runtime_checkable
class Pictured(Protocol):
    """A source whose condition can be looked at."""

    def pictures(self, n: int) -> list[Tensor]:
        """Return what is known of the first n held-out images, and the images."""
        ...


def evaluate(trained: Trained, config: Config, grids: Path | None = None) -> Iterator[dict[str, Any]]:
    """Yield one measurement for every number of sampling steps and start.

    A coupling whose prior is not the standard normal is measured from both starts. The noise under the samples is
    the same for every model that has the same evaluation seed.

    Args:
        trained: the model.
        config: its run.
        grids: a folder for PNG grids of the first 64 images of each measurement; where a part of the picture is known,
            also of known part, result and truth side by side.
    """
    asked = config.evaluate
    device = next(trained.net.parameters()).device
    networks = {"": asked.features} | {f"-{describe('features', each)['use']}": each for each in asked.also}
    real = {suffix: _held_out_features(config, each, device) for suffix, each in networks.items()}
    guided = with_guidance(trained, asked.guidance)
    starts: list[Start] = ["matched"] if isinstance(trained.prior, StandardNormal) else ["matched", "normal"]
    for steps, start in itertools.product(asked.steps, starts):
        begun = time.perf_counter()
        images = torch.cat(list(_images(guided, config, steps, start)))
        values: dict[str, float] = {}
        for suffix, network in networks.items():
            features = network(images.to(device)).cpu()
            values |= {name + suffix: metric(real[suffix], features) for name, metric in asked.metrics.items()}
        if grids is not None:
            draw = save_grid if images.ndim == 4 else save_paths
            draw(images[:_GRID], grids / f"steps-{steps}-{start}.png")
            if isinstance(config.source, Pictured):
                beside = [*config.source.pictures(_TRIPLES), images]
                rows = [each for triple in zip(*beside, strict=False) for each in (triple[0], triple[2], triple[1])]
                save_grid(torch.stack(rows), grids / f"known-result-truth-{steps}-{start}.png", columns=9)
        spent = time.perf_counter() - begun
        yield {"sampling_steps": steps, "start": start, **_sampling(asked), **values, "wall_seconds": round(spent, 3)}


def labels_for(config: Config, n: int, first: int = 0) -> Tensor | None:
    """Return what n images are to show, for a conditional net, else None.

    Labels run through the classes, (n,); texts are the held-out images' captions, as hidden states, (n, l, f); what
    enters beside the image, (n, *dims), is that of the held-out rows.

    Args:
        config: the run.
        n: how many images.
        first: the number of the first.

    Raises:
        ValueError: the net needs captions, or a condition beside the image, and the source has none.
    """
    numbers = torch.arange(first, first + n)
    if getattr(config.net, "beside", 0):
        beside = _held_out_cond(config)
        return beside[numbers % len(beside)]
    if not getattr(config.net, "conditional", False):
        return None
    if config.source.classes is not None:
        return numbers % config.source.classes
    source = conditioned(config.source, config.net)
    if not isinstance(source, Captioned):
        return None
    captions = _held_out_cond(config)
    return source.states(captions[numbers % len(captions)])


def _images(trained: Trained, config: Config, steps: int, start: Start) -> Iterator[Tensor]:
    """Yield the images of one measurement; conditions are made for a part at a time, as texts' states are large."""
    asked = config.evaluate
    for first in range(0, asked.samples, _PART):
        count = min(_PART, asked.samples - first)
        cond = labels_for(config, count, first)
        yield from generate(trained, count, steps=steps, seed=asked.seed, start=start, cond=cond, first=first)


def _held_out_features(config: Config, features: Features, device: torch.device) -> Tensor:
    """Return the features of the held-out images, computed once for all evaluations of a process, if not before."""
    parts = describe("source", config.source), describe("features", features)
    return _once(parts, lambda: cached_features(config.source.held_out().raw.to(device), features))


def _held_out_cond(config: Config) -> Tensor:
    """Return the condition of the held-out rows, made once a process."""

    def make() -> Tensor:
        cond = config.source.held_out().cond
        if cond is None or not len(cond):
            raise ValueError(
                f"the net needs a condition, and {type(config.source).__name__} holds out rows without one"
            )
        return cond

    return _once(describe("source", config.source), make)


def _once(of: Any, make: Callable[[], Tensor]) -> Tensor:
    key = json.dumps(of, sort_keys=True, default=str)
    if key not in _held_out:
        found = make()
        while len(_held_out) >= _KEPT:
            _held_out.pop(next(iter(_held_out)))
        _held_out[key] = found
    return _held_out[key]


def _sampling(asked: Evaluation) -> dict[str, int]:
    return {"samples": asked.samples, "sample_seed": asked.seed}
