"""How long a run will take, from a few timed steps."""

import dataclasses
import itertools
import time
from typing import NamedTuple

import torch

from immiscible_diffusion.experiments.config import Config
from immiscible_diffusion.runs.check import data_shape
from immiscible_diffusion.streams import stream
from immiscible_diffusion.train import fit, new_state

__all__ = ["Timing", "timed"]

_STEPS, _ROWS = 3, 16


class Timing(NamedTuple):
    """Seconds of one training step, and of one measurement: its samples at every number of sampling steps."""

    step: float
    measurement: float

    def run(self, steps: int, measurements: int) -> float:
        """Return the seconds of a run.

        >>> Timing(0.5, 10.0).run(100, 3)
        80.0
        """
        return steps * self.step + measurements * self.measurement


def timed(config: Config, device: torch.device) -> Timing:
    """Train a few steps and sample a few rows of a run that is then forgotten; return what that took.

    The coupling must need no preparation.

    Raises:
        ValueError: source, codec, coupling or net refuse.
    """
    shape = data_shape(config)
    with torch.random.fork_rng(devices=[]):
        net = config.net.build(shape, config.source.classes).to(device)
    train = dataclasses.replace(config.train, steps=_STEPS + 1, compile=False)
    steps = fit(new_state(net, train), config.source, config.codec, config.coupling, config.method, train)
    next(steps)  # the first step warms up
    begun = _now(device)
    for _ in itertools.islice(steps, _STEPS):
        pass
    step = (_now(device) - begun) / _STEPS
    steps.close()  # type: ignore[attr-defined]
    count = min(_ROWS, config.evaluate.samples)
    noise = torch.randn((count, *shape), generator=stream(0, 0, "sample")).to(device)
    begun = _now(device)
    with torch.no_grad():
        x = config.method.sample(net, noise, None, steps=2)
    sampled = (_now(device) - begun) / 2 / count
    begun = _now(device)
    config.codec.decode(x)
    decoded = (_now(device) - begun) / count
    sample_seconds = sum(sampled * steps + decoded for steps in config.evaluate.steps)
    return Timing(step, config.evaluate.samples * sample_seconds)


def _now(device: torch.device) -> float:
    """Return the time, after all work on the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
