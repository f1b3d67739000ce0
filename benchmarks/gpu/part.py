"""What the parts of a GPU run share: the images and the nets."""

import torch
from torch import Tensor

from benchmarks.gpu.data import invented, read_sheets
from benchmarks.gpu.scale import Site
from immiscible_diffusion.nets import UNet

__all__ = ["images_of", "unet"]


def images_of(site: Site) -> Tensor:
    """Return the training images on the device, (n, 3, h, w), uint8: from the pack, or invented ones."""
    images = invented(256) if site.pack is None else read_sheets(site.pack)
    return images.to(torch.device(site.device))


def unet(sizes: tuple[tuple[int, ...], int, tuple[int, ...]], time: str = "levels") -> UNet:
    """Describe the U-Net of (channels, layers, attention)."""
    channels, layers, attention = sizes
    return UNet(channels=channels, layers=layers, attention=attention, time=time)  # type: ignore[arg-type]
