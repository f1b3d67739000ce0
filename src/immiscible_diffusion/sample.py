"""A trained model: the averaged net with its method, codec and starting distribution."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from immiscible_diffusion.priors import StandardNormal
from immiscible_diffusion.streams import stream
from immiscible_diffusion.types import Codec, Method, Prior

__all__ = ["Start", "Trained", "generate"]

Start = Literal["matched", "normal"]


@dataclass(frozen=True)
class Trained:
    """What sampling needs. ``prior`` is the coupling's own; ``shape`` that of one datum in model space."""

    net: nn.Module
    method: Method
    codec: Codec
    prior: Prior
    shape: tuple[int, ...]


def generate(
    trained: Trained,
    n: int,
    *,
    steps: int,
    seed: int = 0,
    start: Start = "matched",
    cond: Tensor | None = None,
    batch: int = 250,
) -> Iterator[Tensor]:
    """Yield n generated images in batches, each (<= batch, c, h, w), as stored.

    Image i starts from ``stream(seed, i, "sample")``: neither n nor the batch size changes it, and two models are
    compared under the same noise.

    Args:
        trained: the model.
        n: how many images.
        steps: sampling steps.
        seed: names the images' random streams.
        start: ``matched`` draws from the coupling's prior, ``normal`` from N(0, I) whatever the coupling.
        cond: labels of the images, (n,), for a conditional net.
        batch: images a net evaluation.

    Raises:
        ValueError: an unknown start, or labels that are not (n,).
    """
    if start not in ("matched", "normal"):
        raise ValueError(f"no start named {start!r}; there are ['matched', 'normal']")
    if cond is not None and cond.shape != (n,):
        raise ValueError(f"labels have shape {tuple(cond.shape)}; there must be one for each of {n} images")
    prior = trained.prior if start == "matched" else StandardNormal()
    device = next(trained.net.parameters()).device
    for first in range(0, n, batch):
        images = range(first, min(first + batch, n))
        noise = torch.cat([prior.sample((1, *trained.shape), stream(seed, i, "sample")) for i in images]).to(device)
        labels = None if cond is None else cond[first : first + batch].to(device)
        yield trained.codec.decode(trained.method.sample(trained.net, noise, labels, steps=steps)).cpu()
