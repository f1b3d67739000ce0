"""Pair each sample with nearby noise before diffusing it: one line in a training loop.

>>> import torch
>>> from immiscible_diffusion import assign
>>> x = torch.randn(64, 3, 8, 8)        # a batch of data
>>> noise = torch.randn_like(x)
>>> noise = assign(x, noise)            # the one line; x_t and the target are made after it
>>> noise.shape
torch.Size([64, 3, 8, 8])
"""

from immiscible_diffusion.codecs import VAE, Pixels
from immiscible_diffusion.couplings import Assignment, Independent, Nearest, assign, assign_index, nearest
from immiscible_diffusion.data import Digits, Images, Latents
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
    "Nearest",
    "Pixels",
    "Straight",
    "Train",
    "Trained",
    "UNet",
    "UNetCondition",
    "assign",
    "assign_index",
    "fit",
    "generate",
    "guided",
    "make",
    "names",
    "nearest",
    "new_state",
    "register",
    "stream",
    "with_guidance",
    "with_sampler",
]

__version__ = "0.1.0"
