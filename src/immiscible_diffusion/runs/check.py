"""One check of everything that a run will do, before its first step, so that nothing is refused after hours."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from immiscible_diffusion.codecs import VAE
from immiscible_diffusion.data import Latents, Painting
from immiscible_diffusion.experiments.config import Config
from immiscible_diffusion.nets.guided import guided
from immiscible_diffusion.runs.conditions import conditioned, conditions_for, with_prompts
from immiscible_diffusion.runs.evaluation import fitted, held_out_features, measured_source, networks
from immiscible_diffusion.sample import clip_problem
from immiscible_diffusion.streams import stream
from immiscible_diffusion.types import Batch, HasFitting, HasLeastRows, HasMemory, HasPreparation, Metric

__all__ = ["Check", "check_run", "data_shape"]

T = TypeVar("T")
_REFUSALS = ValueError, TypeError, ImportError, OSError, RuntimeError, ArithmeticError, IndexError, KeyError


@dataclass
class Check:
    """What a check of one run came to: problems, one line each, headed by the key of the experiment file to change."""

    problems: list[str] = field(default_factory=list)

    def value(self, key: str, make: Callable[..., T], *arguments: Any) -> T | None:
        """Return what ``make`` returns; where it refuses, keep the reason under the key, and return None."""
        try:
            return make(*arguments)
        except _REFUSALS as error:
            text = str(error) if isinstance(error, ValueError | ImportError) else f"{type(error).__name__}: {error}"
            line = text if text.startswith(key) else f"{key}: {text}"
            if line not in self.problems:
                self.problems.append(line)
            return None


def check_run(config: Config, device: torch.device) -> Check:
    """Take some rows through all that training and evaluating do: nothing is trained, and nothing is written.

    A batch is read, encoded and paired; one row of it goes through the loss, and one sample through the sampler at
    every number of sampling steps, through the decoder, the feature networks and every metric. The features of all
    held-out images are computed as the evaluations need them, and kept in the cache where that takes long.
    Features that must be fitted to the data are left out where something else is wrong already.

    Args:
        config: the run.
        device: where features are computed.
    """
    check = Check()
    net = check.value("net", with_prompts, config.net, config.source) or config.net
    source = check.value("source", conditioned, config.source, net) or config.source
    if problem := clip_problem(config.codec, config.method):
        check.problems.append(f"method.clip: {problem}")
    batch = check.value("source", lambda: next(source.batches(config.train.batch, config.train.seed)))
    shape = None if batch is None else check.value("codec", data_shape, config)
    if batch is not None and shape is not None:
        _check_training(check, config, net.build, batch, shape)
        images = _check_sampling(check, config, shape)
        _check_counts(check, config)
        _check_metrics(check, config, device, images)
    best = config.train.keep_best
    if best and best.partition("-")[0] not in config.evaluate.metrics:
        check.problems.append(f"train.keep_best: no metric {best!r}; there are {list(config.evaluate.metrics)}")
    return check


def data_shape(config: Config) -> tuple[int, ...]:
    """Return the shape of one datum in model space: of latents, it is smaller than the image.

    Raises:
        ValueError: stored latents of another autoencoder than the codec's.
    """
    stored = config.source.source if isinstance(config.source, Painting) else config.source
    if isinstance(stored, Latents) and isinstance(config.codec, VAE):
        made, read = stored.encoder, config.codec.fingerprint()
        if any(made[key] != read[key] for key in ("class", "weights_sha256")):
            raise ValueError(f"these latents were encoded by {made}; codec.path holds {read}, which cannot decode them")
    return tuple(config.codec.encode(next(config.source.batches(1, 0)).raw).shape[1:])


def _check_training(
    check: Check,
    config: Config,
    build: Callable[[tuple[int, ...], int | None], nn.Module],
    batch: Batch,
    shape: tuple[int, ...],
) -> None:
    x = check.value("codec", config.codec.encode, batch.raw)
    with torch.random.fork_rng(devices=[]):
        net = check.value("net", build, shape, config.source.classes)
    if x is None:
        return
    coupling, generator = config.coupling, stream(config.train.seed, 0, "noise")
    kept = {name: value.clone() for name, value in coupling.memory().items()} if isinstance(coupling, HasMemory) else {}
    if isinstance(coupling, HasPreparation):
        noise = check.value("coupling", _begun, coupling, config, x)
    else:
        noise = check.value(
            "coupling", lambda: coupling(x, cond=batch.cond, generator=generator, index=batch.rows, step=0)
        )
    if isinstance(coupling, HasMemory):
        coupling.remember(kept)
    if net is None or noise is None:
        return
    cond = None if batch.cond is None else batch.cond[:1]

    def loss() -> Tensor:
        with torch.random.fork_rng(devices=[]):
            times = stream(config.train.seed, 0, "time")
            return config.method.loss(net, x[:1], noise[:1], cond, teacher=net, generator=times)

    check.value("net", loss)
    check.value("evaluate.guidance", guided, net, config.evaluate.guidance)


def _begun(coupling: HasPreparation, config: Config, x: Tensor) -> Tensor:
    """Return noise like x, after the coupling's preparation had a chance to refuse the data; nothing is fitted."""
    with closing(coupling.prepare(config.source, config.codec)) as preparing:
        next(preparing, None)
    return torch.randn(x.shape, generator=stream(config.train.seed, 0, "noise"))


def _check_sampling(check: Check, config: Config, shape: tuple[int, ...]) -> Tensor | None:
    """Return one image sampled by a net that predicts zero, as stored, or None."""
    samples = list[Tensor]()
    for steps in config.evaluate.steps:
        noise = torch.randn((1, *shape), generator=stream(0, 0, "sample"))
        sample = partial(config.method.sample, steps=steps)
        made = check.value("evaluate.steps", sample, _zero, noise, None)
        samples += [] if made is None else [made]
    check.value("evaluate", conditions_for, config, 1)
    return check.value("codec", config.codec.decode, samples[0]) if samples else None


def _zero(x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
    return torch.zeros_like(x)


def _check_counts(check: Check, config: Config) -> None:
    """Compare the numbers of held-out images and of samples with what each metric needs."""
    held_out = check.value("source", lambda: len(measured_source(config).held_out().raw))
    for name, metric in config.evaluate.metrics.items():
        if held_out is not None and isinstance(metric, HasLeastRows):
            check.value(f"evaluate.metrics.{name}", _enough, metric.least, held_out, config.evaluate.samples)


def _enough(least: int, held_out: int, samples: int) -> None:
    """Raise ValueError where there are fewer held-out images or samples than a metric needs."""
    for count, what, option in (
        (held_out, "held-out images", "source.held_out_rows"),
        (samples, "samples", "evaluate.samples"),
    ):
        if count < least:
            raise ValueError(
                f"needs at least {least} {what} and there are {count}: raise {option} or change the metric"
            )


def _check_metrics(check: Check, config: Config, device: torch.device, images: Tensor | None) -> None:
    for suffix, features in networks(config).items():
        key = "evaluate.also" if suffix else "evaluate.features"
        if check.problems and isinstance(features, HasFitting):
            continue  # fitting takes minutes: what is wrong already is said first
        network = check.value(key, fitted, config, features)
        if network is None:
            continue
        real = check.value(key, held_out_features, config, network, device)
        if images is None or real is None:
            continue
        drawn = check.value(key, network, images.to(device))
        if drawn is None:
            continue
        for name, metric in config.evaluate.metrics.items():
            check.value(f"evaluate.metrics.{name}", _try, metric, real, config)


def _try(metric: Metric, real: Tensor, config: Config) -> float:
    """Return the metric of made-up features: as many as will be compared, or as few as it takes.

    Raises:
        ValueError: there are fewer than the metric needs, or it refuses such features.
    """
    rows = config.evaluate.samples
    if isinstance(metric, HasLeastRows):
        _enough(metric.least, len(real), rows)
        rows, real = metric.least, real[: metric.least]
    made_up = torch.randn((rows, real.shape[1]), generator=stream(0, 0, "sample")) * real.std() + real.mean()
    return metric(real, made_up)
