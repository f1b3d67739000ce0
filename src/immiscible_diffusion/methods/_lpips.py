"""The perceptual distance LPIPS (Zhang et al., arXiv:1801.03924), as consistency training uses it."""

from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from immiscible_diffusion.tensors import full_precision
from immiscible_diffusion.types import Float

__all__ = ["lpips"]

_BLOCKS = (
    ("slice1.0", "slice1.2"),
    ("slice2.5", "slice2.7"),
    ("slice3.10", "slice3.12", "slice3.14"),
    ("slice4.17", "slice4.19", "slice4.21"),
    ("slice5.24", "slice5.26", "slice5.28"),
)
"""VGG-16's convolutions between its pools, by the names of the lpips package's state dict."""

_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""ImageNet's colours for images in [-1, 1], as the lpips package has them."""

_SIDE = 224
"""Images below 256 pixels are enlarged to this side, as in the code of arXiv:2303.01469."""


@full_precision
def lpips(first: Float[Tensor, "b 3 h w"], second: Float[Tensor, "b 3 h w"], weights: str) -> Float[Tensor, " b"]:
    """Return the LPIPS distance of images in [-1, 1], (b,), in VGG-16's features, under autocast as without.

    Departs: openai/consistency_models takes piq's ``LPIPS(replace_pooling=True)``: averages for VGG-16's maximum pools.

    Args:
        first: RGB images.
        second: RGB images.
        weights: a safetensors file with the state dict of ``lpips.LPIPS(net="vgg")`` (version 0.1).

    Raises:
        ValueError: the images have not three channels, or the file is missing, no such file or lacks a tensor.
    """
    if first.ndim != 4 or first.shape[1] != 3:
        raise ValueError(f"lpips compares RGB images, (b, 3, h, w); there came {tuple(first.shape)}")
    tensors = _load(weights, first.device, first.dtype)
    both = torch.cat([first, second])
    if both.shape[-1] < 256:
        both = functional.interpolate(both, size=(_SIDE, _SIDE), mode="bilinear", align_corners=False)
    shift, scale = (both.new_tensor(values).reshape(1, 3, 1, 1) for values in (_SHIFT, _SCALE))
    hidden, total = (both - shift) / scale, both.new_zeros(len(first))
    for i, block in enumerate(_BLOCKS):
        if i:
            hidden = functional.max_pool2d(hidden, 2)
        for name in block:
            weight, bias = tensors[f"net.{name}.weight"], tensors[f"net.{name}.bias"]
            hidden = functional.conv2d(hidden, weight, bias, padding=1).relu()
        unit = hidden / (hidden.square().sum(1, keepdim=True) + 1e-20).sqrt()  # finite gradient at zero features
        apart = (unit[: len(first)] - unit[len(first) :]).square()
        total = total + functional.conv2d(apart, tensors[f"lin{i}.model.1.weight"]).mean((1, 2, 3))
    return total


@lru_cache(2)
def _load(weights: str, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise ImportError("lpips needs safetensors: pip install 'immiscible-diffusion[nets]'") from error
    names = [f"net.{name}.{part}" for block in _BLOCKS for name in block for part in ("weight", "bias")]
    names += [f"lin{i}.model.1.weight" for i in range(len(_BLOCKS))]
    try:
        tensors = load_file(Path(weights))
    except (OSError, SafetensorError) as error:
        raise ValueError(f"cannot read the lpips weights {weights}: {error}") from error
    if missing := [name for name in names if name not in tensors]:
        raise ValueError(
            f"{weights} has no tensor {missing[0]!r}: save the state dict of lpips.LPIPS(net='vgg') with "
            f"safetensors.torch.save_file"
        )
    return {name: tensors[name].to(device, dtype) for name in names}
