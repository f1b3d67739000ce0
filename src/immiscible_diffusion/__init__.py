"""Pair each sample with nearby noise before diffusing it: one line in a training loop.

>>> import torch
>>> from immiscible_diffusion import couple
>>> x = torch.randn(64, 3, 8, 8)        # a batch of data
>>> noise = couple(x)                   # in place of torch.randn_like(x); x_t and the target are made from it
>>> noise.shape
torch.Size([64, 3, 8, 8])
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from immiscible_diffusion.codecs import VAE, Pixels
    from immiscible_diffusion.couplings import (
        Assignment,
        Independent,
        MisuseWarning,
        Nearest,
        assign,
        assign_index,
        assign_window,
        couple,
        nearest,
    )
    from immiscible_diffusion.data import Digits, Images, Latents
    from immiscible_diffusion.diagnostics.one_noise import one_noise
    from immiscible_diffusion.export.model import load_export, save_export
    from immiscible_diffusion.methods import Consistency, Denoising, Edm
    from immiscible_diffusion.nets import MLP, Dit, UNet, UNetCondition, guided
    from immiscible_diffusion.registry import make, names, register
    from immiscible_diffusion.sample import Trained, generate, with_guidance, with_sampler
    from immiscible_diffusion.schedules import Betas, Straight
    from immiscible_diffusion.streams import stream
    from immiscible_diffusion.train import Train, fit, new_state

__all__ = [
    "MLP",
    "VAE",
    "Assignment",
    "Betas",
    "Consistency",
    "Denoising",
    "Digits",
    "Dit",
    "Edm",
    "Images",
    "Independent",
    "Latents",
    "MisuseWarning",
    "Nearest",
    "Pixels",
    "Straight",
    "Train",
    "Trained",
    "UNet",
    "UNetCondition",
    "assign",
    "assign_index",
    "assign_window",
    "couple",
    "fit",
    "generate",
    "guided",
    "load_export",
    "make",
    "names",
    "nearest",
    "new_state",
    "one_noise",
    "register",
    "save_export",
    "stream",
    "with_guidance",
    "with_sampler",
]

__version__ = "0.1.0"

_HOMES = {
    "codecs": ["VAE", "Pixels"],
    "couplings": [
        "Assignment",
        "Independent",
        "MisuseWarning",
        "Nearest",
        "assign",
        "assign_index",
        "assign_window",
        "couple",
        "nearest",
    ],
    "data": ["Digits", "Images", "Latents"],
    "diagnostics.one_noise": ["one_noise"],
    "export.model": ["load_export", "save_export"],
    "methods": ["Consistency", "Denoising", "Edm"],
    "nets": ["MLP", "Dit", "UNet", "UNetCondition", "guided"],
    "registry": ["make", "names", "register"],
    "sample": ["Trained", "generate", "with_guidance", "with_sampler"],
    "schedules": ["Betas", "Straight"],
    "streams": ["stream"],
    "train": ["Train", "fit", "new_state"],
}
"""Module -> the public names that it defines; each is loaded when it is first used (PEP 562)."""


def __getattr__(name: str) -> Any:
    """Import the module that defines a public name, or the module of that name, and return it."""
    if name in _HOMES:
        return import_module(f"immiscible_diffusion.{name}")
    for module, defined in _HOMES.items():
        if name in defined:
            value = getattr(import_module(f"immiscible_diffusion.{module}"), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module 'immiscible_diffusion' has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return the module's names, those not yet loaded included."""
    return sorted({*globals(), *__all__})
