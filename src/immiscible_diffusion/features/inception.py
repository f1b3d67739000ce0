"""Features of the 2015-12-05 Inception network, for FID, KID, sFID and the Inception Score."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from immiscible_diffusion.features._images import in_batches, rgb
from immiscible_diffusion.features._inception_net import LAYERS, InceptionNet, Layer, folded, layers_within
from immiscible_diffusion.features._resize import Resize, resized
from immiscible_diffusion.features._weights import KNOWN, fetch, read_weights
from immiscible_diffusion.registry import register
from immiscible_diffusion.types import Float, UInt8

__all__ = ["Inception"]

_SIZE = 299


@register("features")
@dataclass(frozen=True)
class Inception:
    """Features of the 2015-12-05 Inception network, computed in float32.

    ``layer`` 2048 is FID's own, ``logits`` the Inception Score's, ``spatial`` sFID's; 64, 192 and 768 are pytorch-fid's
    other choices. Values of different layers or ways to resize cannot be compared.

    Args:
        weights: a file: ``.safetensors``, a state dict with or without batch normalisation, or StyleGAN's
            TorchScript; or ``pytorch-fid`` or ``stylegan2-ada``, which are downloaded once and checked. Weights may
            end early: those up to Mixed_7a give 64 to 1280 and spatial.
        layer: what is taken as features.
        resize: how images come to 299 x 299; see ``resized``. With ``pytorch_fid`` values are scaled by x / 127.5 -
            1, else by (x - 128) / 128, as each code does.
        sha256: what the weights' file must have; needed for a file of one's own that is not safetensors.

    Raises:
        ValueError: an unknown layer or resize; where used: weights that cannot be read or do not reach the layer.
    """

    weights: str = "pytorch-fid"
    layer: Layer = 2048
    resize: Resize = "pytorch_fid"
    sha256: str = ""

    def __post_init__(self) -> None:
        if self.layer not in LAYERS:
            raise ValueError(f"layer is {self.layer!r}; it must be one of {list(LAYERS)}")
        if self.resize not in get_args(Resize):
            raise ValueError(f"resize is {self.resize!r}; it must be one of {list(get_args(Resize))}")

    def __call__(self, raw: UInt8[Tensor, "n c h w"]) -> Float[Tensor, "n f"]:
        """Return the layer's features of images, (n, f), float32, on their device.

        Raises:
            ValueError: images of other than one or three channels, or weights that are missing or too short.
        """
        return self.several(raw, [self.layer])[self.layer]

    def several(self, raw: UInt8[Tensor, "n c h w"], layers: Sequence[Layer]) -> dict[Layer, Tensor]:
        """Return the features of several layers in one pass, (n, f) each."""
        images = rgb(raw, "the Inception network")
        net = _network(self.weights, self.sha256, tuple(layers), raw.device)
        widths = [LAYERS[layer][1] for layer in layers]

        def forward(part: Tensor) -> Tensor:
            x = resized(part, _SIZE, self.resize)
            x = x / 127.5 - 1 if self.resize == "pytorch_fid" else (x - 128) / 128
            outputs = net(x.contiguous(memory_format=torch.channels_last))
            return torch.cat([outputs[layer] for layer in layers], 1)

        together = in_batches(images, forward)
        return dict(zip(layers, torch.split(together, widths, 1), strict=True))

    @property
    def fingerprint(self) -> str:
        """A text that is equal where the features are: the weights' SHA-256, layer and resize."""
        return f"inception/{_read(self.weights, self.sha256)[1]}/{self.layer}/{self.resize}"


@cache
def _read(weights: str, sha256: str) -> tuple[dict[str, Tensor] | nn.Module, str]:
    known = weights in KNOWN or weights.startswith(("https://", "http://"))
    loaded, digest = read_weights(fetch(weights) if known else Path(weights).expanduser(), sha256)
    return (folded(loaded) if isinstance(loaded, dict) else loaded), digest


@cache
def _network(weights: str, sha256: str, layers: tuple[Layer, ...], device: torch.device) -> nn.Module:
    loaded, _ = _read(weights, sha256)
    if isinstance(loaded, nn.Module):
        return _TorchScriptNet(loaded.to(device), layers)
    within = layers_within(loaded)
    for layer in layers:
        if layer not in within:
            raise ValueError(
                f"{weights} does not reach layer {layer!r}: it gives {within}; choose one of them, or other weights, "
                f"such as {sorted(KNOWN)}, which are complete"
            )
    net = InceptionNet(layers)
    needed = net.state_dict()
    for name, value in needed.items():
        if loaded[name].shape != value.shape:
            came = f"{name} of shape {tuple(loaded[name].shape)} in place of {tuple(value.shape)}"
            raise ValueError(f"{weights} holds another network: {came}")
    net.load_state_dict({name: loaded[name] for name in needed}, assign=True)
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return net.eval().requires_grad_(False).to(device)


class _TorchScriptNet(nn.Module):
    """StyleGAN's TorchScript network behind the interface of ``InceptionNet``."""

    def __init__(self, net: Any, layers: tuple[Layer, ...]) -> None:
        super().__init__()
        if not hasattr(net, "layers") or layers != (2048,):
            raise ValueError(
                f"a TorchScript network must be StyleGAN's and gives layer 2048 alone; asked for were {list(layers)}: "
                "take weights = 'pytorch-fid', or a state dict"
            )
        self.net = net

    def forward(self, x: Tensor) -> dict[Layer, Tensor]:
        return {2048: self.net.layers(x).flatten(1)}
