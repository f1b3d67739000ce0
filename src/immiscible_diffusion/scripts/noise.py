"""The functions that take the place of a script's draws: noise paired with the data, as the script wants it."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from immiscible_diffusion.types import Coupling

__all__ = ["PairedNoise", "check_usable"]


class PairedNoise:
    """A coupling in the place of ``torch.randn_like`` and ``torch.randn``, which sees to it that it is used.

    The first draw is reported. The first step of an optimizer raises at its end where no noise was drawn until then;
    not at its beginning, since Lightning computes the loss in a closure inside the step.
    """

    def __init__(self, coupling: Coupling, where: str, say: Callable[[str], None]) -> None:
        """Take the coupling, the replaced lines in words, and the function that prints one line for the user."""
        self.drawn = 0
        self._coupling, self._where, self._say = coupling, where, say
        self._hook = register_optimizer_step_post_hook(self._check_step)

    def like(
        self,
        x: Tensor,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        memory_format: torch.memory_format = torch.preserve_format,
        layout: torch.layout | None = None,
        requires_grad: bool = False,
        pin_memory: bool = False,
    ) -> Tensor:
        """Return noise paired with x, (b, *dims), with the options of ``torch.randn_like``.

        ``layout`` and ``pin_memory`` do nothing.

        Raises:
            ValueError: the coupling cannot pair x.
        """
        noise = self._paired(x, generator, x.device if device is None else device, x.dtype if dtype is None else dtype)
        return noise.contiguous(memory_format=memory_format).requires_grad_(requires_grad)

    def randn(
        self,
        x: Tensor,
        generator: torch.Generator | None = None,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        layout: torch.layout | None = None,
        *,
        requires_grad: bool = False,
        pin_memory: bool = False,
    ) -> Tensor:
        """Return noise paired with x, (b, *dims), with the dtype and device that ``torch.randn`` would give, not x's.

        Raises:
            ValueError: the coupling cannot pair x.
        """
        device = torch.get_default_device() if device is None else device
        dtype = torch.get_default_dtype() if dtype is None else dtype
        return self._paired(x, generator, device, dtype).requires_grad_(requires_grad)

    def _paired(
        self, x: Tensor, generator: torch.Generator | None, device: torch.device | str | int, dtype: torch.dtype
    ) -> Tensor:
        data = x.detach().to(device=x.device if generator is None else generator.device, dtype=dtype)
        noise = self._coupling(data, generator=generator)
        self.drawn += 1
        if self.drawn == 1:
            self._say(f"{self._where}: {_pairs(data, noise)}")
        return noise.to(device)

    def close(self) -> None:
        """Watch no optimizer any more."""
        self._hook.remove()

    def _check_step(self, *_: Any) -> None:
        self.close()
        if self.drawn == 0:
            raise RuntimeError(
                f"the first optimizer step ended, and {self._where} had drawn no noise: this script trains on other "
                "noise. Name the line of its draw: immiscible run --at LINE, or --at FILE:LINE of a module"
            )


def _pairs(x: Tensor, noise: Tensor) -> str:
    """Return the batch and how near its pairs are, in words."""
    rows = f"{len(x)} rows of {tuple(x.shape[1:])}"
    if len(x) == 1:
        hint = '--coupling \'{use="nearest", k=16, cost="dot"}\''
        return f"the batch is {rows}: an assignment has nothing to choose from; nearest of several noises has ({hint})"
    flat, near = x.flatten(1).float(), noise.flatten(1).float().to(x.device)
    paired, apart = ((flat - other).norm(dim=1).mean() for other in (near, near.roll(1, 0)))
    return f"noise is paired with {rows}, distance {float(paired):.4g}; noise of other rows {float(apart):.4g}"


_UNUSED = {"Cached": "the rows' numbers", "Conditional": "the conditions"}
"""Couplings that without these are plain assignments, and say nothing."""


def check_usable(coupling: Coupling) -> None:
    """Try a copy of the coupling on two rows; the random numbers that a script will draw stay as they were.

    Raises:
        ValueError: the coupling needs more than the data, such as labels, the rows' numbers or the training step.
    """
    lacking = _UNUSED.get(type(coupling).__name__, "")
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            copy.deepcopy(coupling)(torch.zeros(2, 4))
    except (ValueError, UserWarning) as error:
        lacking = str(error)
    if lacking:
        raise ValueError(
            f"--coupling: {coupling!r}: a script hands over its data alone, and this coupling needs more: {lacking}"
        )
