"""Coupled noise for SiT and its descendants (LightningDiT and others), whose ``transport`` draws the noise inside."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from immiscible_diffusion.couplings import couple as assignment
from immiscible_diffusion.types import Coupling

__all__ = ["paired"]


def paired(sample: Callable[..., Any], couple: Coupling = assignment) -> Callable[..., Any]:
    """Return a transport's ``sample`` with the coupling's noise in place of independent noise.

    ``transport.sample = paired(transport.sample)`` is the one line. ``training_losses`` makes x_t and the target from
    what ``sample`` returns, (t, noise, data). Times and data stay.

    Args:
        sample: the bound method, called with the data first.
        couple: chooses the noise.

    Raises:
        ValueError: at a call, if ``sample`` returns anything else.

    >>> import torch
    >>> def sample(x1): return torch.rand(len(x1)), torch.randn_like(x1), x1
    >>> t, noise, x = paired(sample)(torch.randn(4, 3, 8, 8))
    >>> noise.shape
    torch.Size([4, 3, 8, 8])
    """
    return _PairedSampler(sample.sample if isinstance(sample, _PairedSampler) else sample, couple)


@dataclass(frozen=True)
class _PairedSampler:
    """A ``sample`` with coupled noise; it can be copied and saved with its transport."""

    sample: Callable[..., Any]
    couple: Coupling

    def __call__(self, x: Tensor, *args: Any, **options: Any) -> tuple[Any, Tensor, Tensor]:
        drawn = self.sample(x, *args, **options)
        if len(drawn) != 3 or not all(isinstance(each, Tensor) and each.shape == x.shape for each in drawn[1:]):
            raise ValueError("sample(x) did not return (t, noise, data) with noise and data in the shape of x")
        t, _, data = drawn
        return t, self.couple(data), data
