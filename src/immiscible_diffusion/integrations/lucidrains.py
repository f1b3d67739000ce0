"""Coupled noise for denoising-diffusion-pytorch, whose own ``immiscible=True`` pairs x_t and not the target."""

from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor

from immiscible_diffusion.couplings import couple as assignment
from immiscible_diffusion.types import Coupling

__all__ = ["immiscible"]

T = TypeVar("T")


def immiscible(diffusion: T, couple: Coupling = assignment) -> T:
    """Return the same ``GaussianDiffusion``, which from now on trains on the coupling's noise.

    It replaces ``p_losses`` of this one object. Noise is paired with the images as the model sees them, after
    ``normalize``, before noise offset, and x_t and the target are made of it, for each objective. The package's
    ``immiscible=True`` pairs again inside ``q_sample``, for x_t alone: it is switched off. Noise that a caller hands
    over stays. The class variant's ``classes`` are the condition, so that ``Assignment(per_class=True)`` keeps to them.

    Args:
        diffusion: an object of denoising-diffusion-pytorch with ``p_losses(x_start, t, ..., noise=None)``.
        couple: chooses the noise.

    Raises:
        ValueError: an object without ``p_losses``, such as ``ElucidatedDiffusion``, which draws noise elsewhere.
    """
    losses = getattr(diffusion, "p_losses", None)
    if not callable(losses):
        raise ValueError(
            f"{type(diffusion).__name__} has no p_losses(x_start, t, noise=...): hand it noise = couple(x) where it "
            f"draws its own"
        )
    if isinstance(losses, _CoupledLosses):
        losses = losses.losses
    diffusion.p_losses = _CoupledLosses(losses, couple)  # type: ignore[attr-defined]
    diffusion.immiscible = False  # type: ignore[attr-defined]
    return diffusion


@dataclass(frozen=True)
class _CoupledLosses:
    """``p_losses`` with coupled noise; it can be copied and saved with the object that it belongs to."""

    losses: Any
    couple: Coupling

    def __call__(self, x_start: Tensor, *args: Any, noise: Tensor | None = None, **options: Any) -> Any:
        if noise is None and len(args) < 2:  # otherwise it is the third argument
            noise = self.couple(x_start, cond=options.get("classes"))
        return (
            self.losses(x_start, *args, **options)
            if noise is None
            else self.losses(x_start, *args, noise=noise, **options)
        )
