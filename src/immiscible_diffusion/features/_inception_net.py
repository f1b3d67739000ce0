"""The 2015-12-05 Inception network, as the Fréchet Inception Distance is defined on it, in plain convolutions.

Batch normalisation is folded into the convolutions when weights are read, so that a block is convolutions with a
bias, each followed by ReLU, and pools. Structure: Szegedy et al., arXiv:1512.00567, in the variant of the published
graph: average pools leave the padding out of the mean, and the last block pools by maximum. Names are those of
pytorch-fid's weights.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from immiscible_diffusion.types import Float

__all__ = ["LAYERS", "InceptionNet", "Layer", "folded", "layers_within"]

Layer = Literal[64, 192, 768, 1280, 2048, "logits", "spatial"]
LAYERS: dict[Layer, tuple[str, int]] = {
    64: ("pool_1", 64),
    192: ("pool_2", 192),
    768: ("Mixed_6e", 768),
    1280: ("Mixed_7a", 1280),
    2048: ("Mixed_7c", 2048),
    "logits": ("fc", 1008),
    "spatial": ("Mixed_6d", 7 * 17 * 17),
}
"""What can be asked of the network: the block that gives it, and how many features it has."""

_EPSILON = 1e-3
"""Added to the variance by the batch normalisation of the published graph."""


class _Conv(NamedTuple):
    """One convolution: at stride 1 it keeps height and width, at stride 2 it has no padding."""

    name: str
    channels: int
    rows: int = 1
    columns: int = 1
    stride: int = 1


_Part = _Conv | tuple[_Conv, ...] | Literal["mean", "max", "max by 2"]
_Path = Sequence[_Part]


class _InceptionBlock(nn.Module):
    """Paths side by side over the same input, joined along the channels."""

    def __init__(self, channels: int, paths: Sequence[_Path]) -> None:
        super().__init__()
        self.paths = paths
        self.channels = 0
        for path in paths:
            width = channels
            for part in path:
                if isinstance(part, str):
                    continue
                convs = (part,) if isinstance(part, _Conv) else part
                for conv in convs:
                    self.add_module(conv.name, _convolution(width, conv))
                width = sum(conv.channels for conv in convs)
            self.channels += width

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self._follow(path, x) for path in self.paths], 1)

    def _follow(self, path: _Path, x: Tensor) -> Tensor:
        for part in path:
            match part:
                case "mean":
                    x = nn.functional.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
                case "max":
                    x = nn.functional.max_pool2d(x, 3, stride=1, padding=1)
                case "max by 2":
                    x = nn.functional.max_pool2d(x, 3, stride=2)
                case _Conv():
                    x = self.get_submodule(part.name)(x).relu_()
                case _:
                    x = torch.cat([self.get_submodule(conv.name)(x).relu_() for conv in part], 1)
        return x


def _convolution(channels: int, conv: _Conv) -> nn.Conv2d:
    padding = (conv.rows // 2, conv.columns // 2) if conv.stride == 1 else (0, 0)
    return nn.Conv2d(channels, conv.channels, (conv.rows, conv.columns), conv.stride, padding)


def _block_5(pooled: int) -> list[_Path]:
    return [
        [_Conv("branch1x1", 64)],
        [_Conv("branch5x5_1", 48), _Conv("branch5x5_2", 64, 5, 5)],
        [_Conv("branch3x3dbl_1", 64), _Conv("branch3x3dbl_2", 96, 3, 3), _Conv("branch3x3dbl_3", 96, 3, 3)],
        ["mean", _Conv("branch_pool", pooled)],
    ]


def _block_6(inner: int) -> list[_Path]:
    one = [_Conv("branch7x7_1", inner), _Conv("branch7x7_2", inner, 1, 7), _Conv("branch7x7_3", 192, 7, 1)]
    two = [_Conv("branch7x7dbl_1", inner), _Conv("branch7x7dbl_2", inner, 7, 1), _Conv("branch7x7dbl_3", inner, 1, 7)]
    two += [_Conv("branch7x7dbl_4", inner, 7, 1), _Conv("branch7x7dbl_5", 192, 1, 7)]
    return [[_Conv("branch1x1", 192)], one, two, ["mean", _Conv("branch_pool", 192)]]


def _block_7(pool: Literal["mean", "max"]) -> list[_Path]:
    one: _Path = [_Conv("branch3x3_1", 384), (_Conv("branch3x3_2a", 384, 1, 3), _Conv("branch3x3_2b", 384, 3, 1))]
    ends = (_Conv("branch3x3dbl_3a", 384, 1, 3), _Conv("branch3x3dbl_3b", 384, 3, 1))
    two: _Path = [_Conv("branch3x3dbl_1", 448), _Conv("branch3x3dbl_2", 384, 3, 3), ends]
    return [[_Conv("branch1x1", 320)], one, two, [pool, _Conv("branch_pool", 192)]]


_MIXED: dict[str, list[_Path]] = {
    "Mixed_5b": _block_5(32),
    "Mixed_5c": _block_5(64),
    "Mixed_5d": _block_5(64),
    "Mixed_6a": [
        [_Conv("branch3x3", 384, 3, 3, 2)],
        [_Conv("branch3x3dbl_1", 64), _Conv("branch3x3dbl_2", 96, 3, 3), _Conv("branch3x3dbl_3", 96, 3, 3, 2)],
        ["max by 2"],
    ],
    "Mixed_6b": _block_6(128),
    "Mixed_6c": _block_6(160),
    "Mixed_6d": _block_6(160),
    "Mixed_6e": _block_6(192),
    "Mixed_7a": [
        [_Conv("branch3x3_1", 192), _Conv("branch3x3_2", 320, 3, 3, 2)],
        [
            *(_Conv("branch7x7x3_1", 192), _Conv("branch7x7x3_2", 192, 1, 7)),
            *(_Conv("branch7x7x3_3", 192, 7, 1), _Conv("branch7x7x3_4", 192, 3, 3, 2)),
        ],
        ["max by 2"],
    ],
    "Mixed_7b": _block_7("mean"),
    "Mixed_7c": _block_7("max"),
}


def _blocks() -> dict[str, nn.Module]:
    blocks: dict[str, nn.Module] = {
        "Conv2d_1a_3x3": nn.Conv2d(3, 32, 3, stride=2),
        "Conv2d_2a_3x3": nn.Conv2d(32, 32, 3),
        "Conv2d_2b_3x3": nn.Conv2d(32, 64, 3, padding=1),
        "pool_1": nn.MaxPool2d(3, stride=2),
        "Conv2d_3b_1x1": nn.Conv2d(64, 80, 1),
        "Conv2d_4a_3x3": nn.Conv2d(80, 192, 3),
        "pool_2": nn.MaxPool2d(3, stride=2),
    }
    channels = 192
    for name, paths in _MIXED.items():
        mixed = _InceptionBlock(channels, paths)
        blocks[name], channels = mixed, mixed.channels
    return {**blocks, "fc": nn.Linear(channels, 1008)}


class InceptionNet(nn.Module):
    """The network up to the deepest of some layers.

    Args:
        layers: what ``forward`` returns, keys of ``LAYERS``.
    """

    def __init__(self, layers: Sequence[Layer]) -> None:
        super().__init__()
        self.layers = tuple(layers)
        wanted = {LAYERS[layer][0] for layer in layers}
        for name, block in _blocks().items():
            self.add_module(name, block)
            wanted.discard(name)
            if not wanted:
                break

    def forward(self, x: Float[Tensor, "n 3 299 299"]) -> dict[Layer, Tensor]:
        """Return the features of images in [-1, 1], (n, f) for each layer.

        Features of a block are means over its rows and columns. ``logits`` leave out the last bias, as the Inception
        Score always has. ``spatial`` is the first 7 channels of Mixed_6d's 1x1 branch at all 17 x 17 places: the tensor
        ``mixed_6/conv`` of the published graph, which sFID (Nash et al., arXiv:2103.03841) compares.
        """
        outputs: dict[Layer, Tensor] = {}
        for name, block in self.named_children():
            if name == "Mixed_6d" and "spatial" in self.layers:
                outputs["spatial"] = block.get_submodule("branch1x1")(x)[:, :7].relu().flatten(1)
            if isinstance(block, nn.Linear):
                outputs["logits"] = nn.functional.linear(x.mean((2, 3)), block.weight)
                break
            x = block(x)
            if isinstance(block, nn.Conv2d):
                x = x.relu_()
            for layer in self.layers:
                if LAYERS[layer][0] == name and layer != "spatial":
                    outputs[layer] = x.mean((2, 3))
        return {layer: outputs[layer] for layer in self.layers}


def folded(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights with batch normalisation folded into the convolutions, float32, under the net's own names.

    Weights that have no normalisation stay as they are. The auxiliary classifier is left out: no layer needs it.
    """
    plain = {name.removeprefix("module."): value for name, value in weights.items()}
    plain = {name: value.double() for name, value in plain.items() if not name.startswith("AuxLogits.")}
    result = {}
    for name, value in plain.items():
        if name.endswith(".conv.weight"):
            at = name.removesuffix(".conv.weight")
            scale = plain[f"{at}.bn.weight"] / (plain[f"{at}.bn.running_var"] + _EPSILON).sqrt()
            result[f"{at}.weight"] = value * scale[:, None, None, None]
            result[f"{at}.bias"] = plain[f"{at}.bn.bias"] - plain[f"{at}.bn.running_mean"] * scale
        elif ".bn." not in name:
            result[name] = value
    return {name: value.float() for name, value in result.items()}


def layers_within(names: Iterable[str]) -> list[Layer]:
    """Return the layers that weights of these names are enough for, in the order of ``LAYERS``."""
    known = set(names)

    def reached(layer: Layer) -> bool:
        with torch.device("meta"):
            return set(InceptionNet([layer]).state_dict()) <= known

    return [layer for layer in LAYERS if reached(layer)]
