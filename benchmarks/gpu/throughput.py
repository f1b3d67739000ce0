"""Part ``throughput``: images a second of training, by this library's loop and by diffusers' example."""

from collections.abc import Generator
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu.data import Resident
from benchmarks.gpu.part import images_of, unet
from benchmarks.gpu.scale import Site
from benchmarks.loops import diffusers_loop, eps_method
from benchmarks.measuring import now, quartiles
from immiscible_diffusion.codecs import Pixels
from immiscible_diffusion.registry import make
from immiscible_diffusion.train import Train, fit, new_state

__all__ = ["MODES", "throughput"]

MODES: dict[str, dict[str, Any]] = {
    "eager, float32": {},
    "eager, bfloat16": {"bf16": True},
    "eager, bfloat16, channels last": {"bf16": True, "channels_last": True},
    "compiled, bfloat16, channels last": {"bf16": True, "channels_last": True, "compiled": True},
}
"""float32 is torch's default: convolutions may use TF32 on a GPU that has it."""


def throughput(site: Site) -> bool:
    """Record the images a second of each loop in each mode, the loops of a mode in turn; return whether all are."""
    images, scale = images_of(site), site.scale
    spent = 0.0
    for mode in scale.modes:
        options = MODES[mode]
        if site.rows.has("throughput", mode=mode) or site.left() < 1.5 * spent:
            continue
        begun = site.left()
        loops = {
            "this library, independent": _library(site, images, "independent", **options),
            "this library, assignment": _library(site, images, "assignment", **options),
            "diffusers' unconditional example": _example(site, images, **options),
        }
        for loop in loops.values():
            for _ in range(2):
                next(loop)
        rates: dict[str, list[float]] = {name: [] for name in loops}
        for _ in range(scale.rounds):
            for name, loop in loops.items():
                started = now(site.device)
                for _ in range(scale.steps):
                    next(loop)
                rates[name].append(scale.batch * scale.steps / (now(site.device) - started))
        for name, values in rates.items():
            site.rows.add(
                "throughput",
                mode=mode,
                loop=name,
                images_per_second=median(values),
                quartiles=quartiles(values),
                batch=scale.batch,
                rounds=scale.rounds,
                steps=scale.steps,
            )
        for loop in loops.values():
            loop.close()
        spent = begun - site.left()
    return all(site.rows.has("throughput", mode=mode) for mode in scale.modes)


def _net(site: Site, images: Tensor, channels_last: bool) -> nn.Module:
    net = unet(site.scale.large).build(tuple(images.shape[1:]), None).to(site.device)
    return net.to(memory_format=torch.channels_last) if channels_last else net  # type: ignore[call-overload]


def _library(
    site: Site,
    images: Tensor,
    coupling: str,
    *,
    bf16: bool = False,
    channels_last: bool = False,
    compiled: bool = False,
) -> Generator[object, None, None]:
    config = Train(
        steps=10**9, batch=site.scale.batch, lr=1e-4, ema=0.999, precision="bf16" if bf16 else "fp32", prefetch=True
    )
    state = new_state(_net(site, images, channels_last), config)
    if compiled:
        state.net.compile()
    yield from fit(state, Resident(images), Pixels(), make("coupling", coupling), eps_method(), config)


def _example(
    site: Site, images: Tensor, *, bf16: bool = False, channels_last: bool = False, compiled: bool = False
) -> Generator[object, None, None]:
    net = _net(site, images, channels_last)
    yield from diffusers_loop(images, net, batch=site.scale.batch, bf16=bf16, compiled=compiled)
