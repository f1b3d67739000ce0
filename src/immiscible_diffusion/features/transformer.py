"""Features of DINOv2 and CLIP, read with transformers from a local folder or the hub."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from immiscible_diffusion.extras import needs
from immiscible_diffusion.features._images import in_batches, rgb
from immiscible_diffusion.features._resize import resized
from immiscible_diffusion.features._weights import digest_of_state
from immiscible_diffusion.registry import register
from immiscible_diffusion.types import Float, UInt8

__all__ = ["Clip", "Dinov2"]

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and deviation of ImageNet's channels, which DINOv2 was trained with."""
_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
"""Mean and deviation of the channels that CLIP was trained with (Radford et al., arXiv:2103.00020, its code)."""
_Kind = Literal["Dinov2Model", "CLIPVisionModelWithProjection"]


@register("features")
@dataclass(frozen=True)
class Dinov2:
    """The class token of DINOv2 (Oquab et al., arXiv:2304.07193).

    FD-DINOv2 is the Fréchet distance in it (Stein et al., arXiv:2306.04675). Images are resized to a square as
    clean-fid does; published figures are of ViT-L/14 at 224 pixels.

    Args:
        model: a folder in the hub's layout, or a name on the hub. Weights are read from safetensors only, and no code
            with them.
        revision: of a name on the hub: give a commit where figures are to be repeated.
        size: height and width in pixels.

    Raises:
        ValueError: a size below 1; where used: a model that cannot be read.
    """

    model: str = "facebook/dinov2-large"
    revision: str = "main"
    size: int = 224

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size is {self.size}; it must be 1 or more")

    def __call__(self, raw: UInt8[Tensor, "n c h w"]) -> Float[Tensor, "n f"]:
        """Return the class token of images, (n, f), float32, on their device.

        Raises:
            ImportError: transformers is not installed.
            ValueError: images of other than one or three channels, or a model that cannot be read.
        """
        net = _network("Dinov2Model", self.model, self.revision, raw.device)
        return in_batches(
            rgb(raw, "DINOv2"), lambda part: net(pixel_values=_scaled(part, self.size, _IMAGENET)).pooler_output
        )

    @property
    def fingerprint(self) -> str:
        """A text that is equal where the features are: the SHA-256 of the weights, and the size."""
        net = _network("Dinov2Model", self.model, self.revision, torch.device("cpu"))
        return f"dinov2/{digest_of_state(net.state_dict())}/{self.size}"


@register("features")
@dataclass(frozen=True)
class Clip:
    """The image embedding of CLIP, scaled to unit length, in which CMMD is measured (arXiv:2401.09603).

    Images are resized to the model's own square as clean-fid does, without a crop; published figures are of ViT-L/14
    at 336 pixels.

    Args:
        model: a folder in the hub's layout, or a name on the hub. Weights are read from safetensors only, and no code
            with them.
        revision: of a name on the hub: give a commit where figures are to be repeated.
    """

    model: str = "openai/clip-vit-large-patch14-336"
    revision: str = "main"

    def __call__(self, raw: UInt8[Tensor, "n c h w"]) -> Float[Tensor, "n f"]:
        """Return the embedding of images, (n, f) of unit length, float32, on their device.

        Raises:
            ImportError: transformers is not installed.
            ValueError: images of other than one or three channels, or a model that cannot be read.
        """
        net = _network("CLIPVisionModelWithProjection", self.model, self.revision, raw.device)
        embeddings = in_batches(
            rgb(raw, "CLIP"), lambda part: net(pixel_values=_scaled(part, net.config.image_size, _CLIP)).image_embeds
        )
        return torch.nn.functional.normalize(embeddings, dim=1)

    @property
    def fingerprint(self) -> str:
        """A text that is equal where the features are: the SHA-256 of the weights, and the size."""
        net = _network("CLIPVisionModelWithProjection", self.model, self.revision, torch.device("cpu"))
        return f"clip/{digest_of_state(net.state_dict())}/{net.config.image_size}"


def _scaled(raw: Tensor, size: int, channels: tuple[tuple[float, ...], tuple[float, ...]]) -> Tensor:
    mean, deviation = (torch.tensor(each, device=raw.device).reshape(1, 3, 1, 1) for each in channels)
    return (resized(raw, size, "clean_fid") / 255 - mean) / deviation


@cache
def _network(kind: _Kind, model: str, revision: str, device: torch.device) -> Any:
    with needs("text", "dinov2 and clip need transformers"):
        import transformers
    local = Path(model).expanduser().is_dir()
    place = str(Path(model).expanduser()) if local else model
    try:
        net, about = getattr(transformers, kind).from_pretrained(
            place,
            revision=revision,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=local,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"cannot read {model} as a folder in the hub's layout or a name on the hub: {error}"
        ) from error
    if missing := sorted(about["missing_keys"]):
        raise ValueError(f"{model} lacks weights of {kind}, {missing[0]} for one: it holds another network")
    return net.eval().requires_grad_(False).to(device)
