"""How stable the way from noise to picture is: images of a fixed noise to which a little other noise is added."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from immiscible_diffusion.experiments.config import Config
from immiscible_diffusion.runs.conditions import conditions_for
from immiscible_diffusion.sample import Trained, draw
from immiscible_diffusion.streams import stream

__all__ = ["WEIGHTS", "PerturbationResult", "perturb"]

WEIGHTS = 0.1, 0.2, 0.3, 0.5, 1.0
"""The first three are those of arXiv:2505.18521, Figure 3."""


@dataclass(frozen=True)
class PerturbationResult:
    """What becomes of the images of one run where their noise is changed a little.

    Attributes:
        weights: of the noise that is added.
        change: by how much an image changes at each weight, the mean square difference in units of that between the
            images of two unrelated noises: 0 for the same image, 1 for any other.
        images: of the first noise, unchanged and at each weight, as stored, (1 + weights, c, h, w).
    """

    weights: list[float]
    change: list[float]
    images: Tensor


@torch.no_grad()
def perturb(
    trained: Trained,
    config: Config,
    *,
    weights: Sequence[float] = WEIGHTS,
    steps: int = 20,
    noises: int = 32,
    draws: int = 10,
) -> PerturbationResult:
    """Return how the images of fixed noises change where noise of a weight w is added (arXiv:2505.18521, section 4.2).

    The start is (z + w e) / sqrt(1 + w^2), which is as normal as the noise z itself. Noises and perturbations are the
    same for every run of equal evaluation seed. Sampling must be deterministic: what changes is the start alone.

    Args:
        trained: the model.
        config: its run.
        weights: w.
        steps: sampling steps.
        noises: how many fixed noises z.
        draws: how many perturbations e of each.

    Raises:
        ValueError: fewer than two noises, or images that are all the same.
    """
    if noises < 2:
        raise ValueError(f"noises is {noises}; images of different noises are compared: give at least 2")
    seed, shape = config.evaluate.seed, trained.shape
    conditions = conditions_for(config, noises)

    def images(start: Tensor) -> Tensor:
        generators = [stream(seed, i, "sample") for i in range(noises)]
        return trained.codec.decode(draw(trained, start, conditions, steps=steps, streams=generators)).float()

    z = torch.randn((noises, *shape), generator=stream(seed, 0, "noise"))
    plain = images(z)
    others = float((plain[:, None] - plain[None]).square().flatten(2).mean(2).sum()) / (noises * (noises - 1))
    if not others > 0:
        raise ValueError("all images are the same, so that no change of them can be told")
    change, shown = [], [plain[0]]
    for w in weights:
        total = 0.0
        for i in range(draws):
            e = torch.randn((noises, *shape), generator=stream(seed, i, "data"))
            changed = images((z + w * e) / (1 + w * w) ** 0.5)
            total += float((changed - plain).square().mean()) / others / draws
            if i == 0:
                shown.append(changed[0])
        change.append(total)
    return PerturbationResult(list(weights), change, torch.stack(shown).round().clamp(0, 255).to(torch.uint8))
