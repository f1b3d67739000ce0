"""Images as the latents of a variational autoencoder."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from immiscible_diffusion.checks import check_whole
from immiscible_diffusion.codecs import _autoencoder
from immiscible_diffusion.files import write_json
from immiscible_diffusion.registry import register
from immiscible_diffusion.tensors import as_bytes
from immiscible_diffusion.types import Float, UInt8

__all__ = ["VAE"]

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@register("codec")
@dataclass(frozen=True)
class VAE:
    """Model space is (z - shift) * scale, where z is the latent of diffusers' AutoencoderKL or AutoencoderTiny.

    One codec serves both ways of training. Images (uint8) are encoded on the fly, to the mean of their posterior: no
    draw, hence the same latent each time. Latents (floating), as ``Latents`` yields them with the posterior's draw in
    them, are z already: they are only scaled, and the encoder's weights are not loaded. ``decode`` gives images.

    Weights are read once for each dtype and device, when first needed, from safetensors alone.

    Args:
        path: a folder in diffusers' layout, or a name on the hub.
        subfolder: where in it the autoencoder lies, ``vae`` in a whole pipeline.
        revision: the hub's branch, tag or commit; its main branch if empty.
        scale: one factor, or one a channel; None takes the autoencoder's own.
        shift: one offset, or one a channel; None takes the autoencoder's own.
        dtype: what encoder and decoder compute in. Some (SDXL's) overflow in fp16, which is an error here.
        batch: images encoded or decoded at a time.
        channels_last: keep weights and activations in memory with the channels innermost: faster on CPUs with bf16
            instructions, and values differ by rounding.

    Raises:
        ValueError: no path, an unknown dtype, a batch below 1, or a scale or shift that is not finite or zero.
    """

    path: str = ""
    subfolder: str = ""
    revision: str = ""
    scale: float | tuple[float, ...] | None = None
    shift: float | tuple[float, ...] | None = None
    dtype: Literal["fp32", "fp16", "bf16"] = "fp32"
    batch: int = 16
    channels_last: bool = False

    def __post_init__(self) -> None:
        if not self.path:
            raise ValueError("path is empty; a vae needs path = a folder in diffusers' layout, or a name on the hub")
        if self.dtype not in _DTYPES:
            raise ValueError(f"no dtype named {self.dtype!r}; there are {list(_DTYPES)}")
        check_whole(batch=self.batch)
        if not all(math.isfinite(s) and s != 0 for s in _several(self.scale)):
            raise ValueError(f"scale is {self.scale}; it must be finite and not zero")
        if not all(map(math.isfinite, _several(self.shift))):
            raise ValueError(f"shift is {self.shift}; it must be finite")

    def encode(self, raw: UInt8[Tensor, "b c h w"] | Float[Tensor, "b c h w"]) -> Float[Tensor, "b z y x"]:
        """Return images (posterior mean) or latents in model space, (b, z, y, x), float32.

        Raises:
            ValueError: data that are neither; images whose channels or sides the autoencoder does not take; latents
                with another number of channels than it has; an encoder that overflows its dtype; no autoencoder.
        """
        if raw.dtype == torch.uint8:
            starts = range(0, len(raw), self.batch)
            z = torch.cat([self._moments(raw[i : i + self.batch], first=i)[0] for i in starts])
        elif raw.is_floating_point():
            z = raw.float()
        else:
            raise ValueError(f"raw is {raw.dtype}; it must be uint8 images or floating latents")
        scale, shift = self._factors(z)
        return (z - shift) * scale

    @torch.no_grad()
    def decode(self, x: Float[Tensor, "b z y x"]) -> UInt8[Tensor, "b c h w"]:
        """Return images, (b, c, h, w), rounded and clipped to 0..255.

        Raises:
            ValueError: latents with another number of channels; a decoder that overflows its dtype; no autoencoder.
        """
        scale, shift = self._factors(x)
        model, images = self._model(x), []
        for i, z in enumerate(torch.split(x.float() / scale + shift, self.batch)):
            y = self._finite(model.decode(z.to(model.dtype)).sample.float(), "decoder", self.batch * i)
            images.append(as_bytes((y + 1) * 127.5))
        return torch.cat(images)

    @torch.no_grad()
    def moments(self, images: UInt8[Tensor, "b c h w"]) -> tuple[Float[Tensor, "b z y x"], Tensor | None]:
        """Return mean and standard deviation of the posterior of z, unscaled, each (b, z, y, x), in one batch.

        AutoencoderTiny has no posterior: its latent is the mean, and the standard deviation is None.

        Raises:
            ValueError: as ``encode``.
        """
        return self._moments(images, first=0)

    @torch.no_grad()
    def _moments(self, images: Tensor, first: int) -> tuple[Tensor, Tensor | None]:
        """Return the moments of a part of a batch that begins with image ``first``."""
        model = self._model(images)
        widths = "encoder_block_out_channels" if "encoder_block_out_channels" in model.config else "block_out_channels"
        channels, factor = model.config["in_channels"], 2 ** (len(model.config[widths]) - 1)
        if images.shape[1] != channels or images.shape[2] % factor or images.shape[3] % factor:
            raise ValueError(
                f"images are {tuple(images.shape[1:])}; the autoencoder {self.path} takes {channels} channels "
                f"and sides that are multiples of {factor}"
            )
        encoded = model.encode((images.float() / 127.5 - 1).to(model.dtype))
        if hasattr(encoded, "latents"):
            return self._finite(encoded.latents.float(), "encoder", first), None
        moments = encoded.latent_dist.mean.float(), encoded.latent_dist.std.float()
        return self._finite(moments[0], "encoder", first), self._finite(moments[1], "encoder", first)

    def fingerprint(self) -> dict[str, Any]:
        """Return what determines z (class, SHA-256 of the weights, dtype), and the autoencoder's own scale and shift.

        The hash of a single file is that file's own, as the hub shows it; that of several is the hash of theirs.

        Raises:
            ValueError: no autoencoder.
        """
        folder = self._folder()
        config = _autoencoder.config(folder)
        scale, shift = _autoencoder.factors(config)
        return {
            "class": config["_class_name"],
            "weights_sha256": _autoencoder.digest(folder),
            "dtype": self.dtype,
            "scale": list(scale),
            "shift": list(shift),
        }

    def save(self, folder: Path) -> str:
        """Copy the autoencoder to ``vae/``, with this codec's scale in its configuration.

        Return why a pipeline of diffusers cannot use it, or the empty text.

        Raises:
            ValueError: no autoencoder.
        """
        source, target = self._folder(), folder / "vae"
        config = _autoencoder.copied(source, target)
        scale, shift = (tuple(_several(value)) for value in (self.scale, self.shift))
        default_scale, default_shift = _autoencoder.factors(config)
        scale, shift = scale or default_scale, shift or default_shift
        stock = len(scale) == 1 and not any(shift)
        write_json(target / "config.json", config | {"scaling_factor": scale[0]} if stock else config)
        return "" if stock else "the pipeline knows one scale and no shift of latents, and this model has others"

    def load(self, folder: Path) -> "VAE":
        """Return the same codec with the ``vae/`` of the folder, where the folder has one."""
        if not (folder / "vae" / "config.json").is_file():
            return self
        return replace(self, path=str(folder), subfolder="vae", revision="")

    def _folder(self) -> Path:
        return _autoencoder.folder(self.path, self.subfolder, self.revision)

    def _model(self, like: Tensor) -> Any:
        return _autoencoder.load(self._folder(), _DTYPES[self.dtype], str(like.device), self.channels_last)

    def _factors(self, z: Tensor) -> tuple[Tensor, Tensor]:
        config = _autoencoder.config(self._folder())
        channels = config.get("latent_channels", 4)
        if z.ndim != 4 or z.shape[1] != channels:
            raise ValueError(f"latents have shape {tuple(z.shape)}; {self.path} has (b, {channels}, h, w)")
        factors = []
        for name, option, default in zip(
            ("scale", "shift"), (self.scale, self.shift), _autoencoder.factors(config), strict=True
        ):
            values = default if option is None else tuple(_several(option))
            if len(values) not in (1, channels):
                raise ValueError(f"{name} has {len(values)} values; it must have 1 or {channels}, one a channel")
            factors.append(torch.tensor(values, dtype=torch.float32, device=z.device).reshape(-1, 1, 1))
        return factors[0], factors[1]

    def _finite(self, values: Tensor, part: str, first: int) -> Tensor:
        bad = (~values.isfinite()).flatten(1).any(1).nonzero().flatten().tolist()
        if bad:
            more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
            raise ValueError(
                f"the {part} of {self.path} gives NaN or infinity in {self.dtype} for image {first + bad[0]}{more} of "
                "its batch, counted from 0; try codec.dtype fp32 or bf16"
            )
        return values


def _several(values: float | tuple[float, ...] | None) -> Iterator[float]:
    if isinstance(values, tuple):
        yield from values
    elif values is not None:
        yield values
