"""Part ``couplings``: the time of every pairing on the device, and its share of a training step."""

from collections.abc import Callable
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from benchmarks.couplings import bench, structured
from benchmarks.gpu.data import Resident
from benchmarks.gpu.part import images_of, unet
from benchmarks.gpu.scale import Site
from benchmarks.measuring import repeated, spread_ms
from benchmarks.step import bench_step
from immiscible_diffusion.codecs import Pixels
from immiscible_diffusion.couplings import assign_data, fit_dual
from immiscible_diffusion.couplings._potentials import ascend, noises_a_step
from immiscible_diffusion.methods import Denoising

__all__ = ["pairing"]


def pairing(site: Site) -> bool:
    """Record the rows of the training step, of the semidiscrete coupling, then of all contenders by size.

    Returns whether all are measured: a size that would have outlasted the time is measured by the next run.
    """
    images = images_of(site)
    _steps(site, images)
    _semidiscrete(site, images)

    def known(row: dict[str, Any]) -> bool:
        same = {key: row[key] for key in ("task", "name", "b", "d")}
        return any("would_take" not in known for known in site.rows.of("couplings") if same.items() <= known.items())

    rows = bench(
        site.scale.sizes,
        _data(images),
        device=site.device,
        solvers=True,
        seconds=site.scale.seconds,
        left=site.left,
        known=known,
    )
    complete = True
    for row in rows:
        site.rows.add("couplings", **row)
        complete = complete and "would_take" not in row
    return complete


def _data(images: Tensor) -> Callable[[int, int], Tensor]:
    """Return a function that gives (b, d) data of unit variance: images where they have d values and are enough."""
    flat = images.flatten(1)

    def data(b: int, d: int) -> Tensor:
        if d != flat.shape[1] or b > len(flat):
            return structured(b, d)
        x = flat[:b].float()
        return (x - x.mean()) / x.std()

    return data


def _steps(site: Site, images: Tensor) -> None:
    if site.rows.has("couplings", task="training step"):
        return
    scale = site.scale
    rows = bench_step(
        Resident(images),
        Pixels(),
        Denoising(),
        unet(scale.net),
        batch=scale.batch,
        steps=scale.steps,
        rounds=scale.rounds,
        device=site.device,
    )
    for row in rows:
        site.rows.add("couplings", task="training step", **row)


def _semidiscrete(site: Site, images: Tensor) -> None:
    data = Pixels().encode(images[: site.scale.semidiscrete]).flatten(1)
    d = data.shape[1]
    batches = [b for b, wide in site.scale.sizes if wide == d]
    task = f"semidiscrete among {len(data)}"
    if all(site.rows.has("couplings", task=task, b=b) for b in batches):
        return
    generator, a_step = torch.Generator(site.device).manual_seed(0), noises_a_step(len(data))
    _, spent = repeated(lambda: list(islice(ascend(data), 10)), device=site.device, seconds=0.0)
    dual = fit_dual(data, noises=100 * a_step / len(data))
    site.rows.add(
        "couplings", task=f"{task}, one step of fitting", b=a_step, d=d, **spread_ms([value / 10 for value in spent])
    )
    for b in batches:
        noise = torch.randn(b, d, device=site.device, generator=generator)

        def call(noise: Tensor = noise) -> Tensor:
            return assign_data(noise, data, dual)

        _, spent = repeated(call, device=site.device, seconds=site.scale.seconds)
        near = torch.linalg.vector_norm(noise - data[call()], dim=1).mean()
        far = torch.linalg.vector_norm(noise - data[torch.arange(b, device=data.device) % len(data)], dim=1).mean()
        reduction = 100 * (1 - float(near / far))
        site.rows.add("couplings", task=task, b=b, d=d, **spread_ms(spent), distance_reduction_percent=reduction)
