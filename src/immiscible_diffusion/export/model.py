"""A trained model on disk, and the way back. Safetensors and JSON alone, never a pickle."""

import math
import warnings
from pathlib import Path
from typing import Any

from immiscible_diffusion.export.card import card
from immiscible_diffusion.export.stock import save_stock
from immiscible_diffusion.files import new_folder, read_json, read_tensors, write_bytes, write_json, write_tensors
from immiscible_diffusion.priors import Gaussian, StandardNormal
from immiscible_diffusion.registry import describe, make
from immiscible_diffusion.sample import Trained, clip_problem
from immiscible_diffusion.types import HasAutoencoder, NetDescription, Prior

__all__ = ["load_export", "save_export"]


def save_export(
    trained: Trained, folder: Path, *, net: NetDescription, classes: int | None, about: dict[str, Any]
) -> None:
    """Write a model for others to load.

    The net writes its own files: a net of diffusers in diffusers' layout, such as ``unet/`` or ``transformer/``.
    Beside it lie ``scheduler/`` and, where a pipeline of diffusers draws the model's own images, the
    ``model_index.json`` that its ``from_pretrained`` reads. The codec's autoencoder goes to ``vae/``. The start of
    sampling lies in ``prior.safetensors`` unless it is the standard normal. ``README.md`` says what the model is and
    how to sample.

    Args:
        trained: the model.
        folder: takes the place of what was there, once it is whole.
        net: the description that the net was built from.
        classes: the number of classes it was built for.
        about: what else to keep and to say in the README: data, coupling, steps, metrics, commit.
    """
    with new_folder(folder) as part:
        net.save(trained.net, part)
        codec_obstacle = "the pipeline needs the codec vae"
        if isinstance(trained.codec, HasAutoencoder):
            codec_obstacle = trained.codec.save(part)
        stock = save_stock(trained, net, part, classes=classes, codec_obstacle=codec_obstacle)
        if isinstance(trained.prior, Gaussian):
            write_tensors(part / "prior.safetensors", trained.prior.tensors())
        pieces = {"net": net, "method": trained.method, "codec": trained.codec}
        described = {kind: describe(kind, piece) for kind, piece in pieces.items()}
        rest = {"coupling": trained.coupling, "shape": trained.shape, "classes": classes, "about": about}
        write_json(part / "immiscible.json", described | rest)
        lora = (part / "lora").is_dir()
        text = card(trained, stock, net=net, classes=classes, described=described, about=about, lora=lora)
        write_bytes(part / "README.md", text.encode())


_LARGEST = 2**28
"""Numbers of one datum, as of an image of 9,000 x 9,000 pixels."""

INDEX: dict[str, Any] = {"net": dict, "method": dict, "codec": dict, "shape": [int]}
"""The form of ``immiscible.json``."""


def load_export(folder: Path) -> Trained:
    """Return the model that ``save_export`` wrote, with a warning if its sampling clips below the range of its data.

    Raises:
        ValueError: a file is missing, damaged or does not fit the others.
    """
    index = read_json(folder / "immiscible.json", INDEX)
    _check_sizes(index, folder)
    try:
        net, method, codec = (make(kind, index[kind], imports=False) for kind in ("net", "method", "codec"))
        shape, codec = tuple(index["shape"]), codec.load(folder) if isinstance(codec, HasAutoencoder) else codec
        built = net.load(folder, shape, index["classes"])
        prior: Prior = StandardNormal()
        if (folder / "prior.safetensors").exists():
            prior = Gaussian(**read_tensors(folder / "prior.safetensors"))
    except (AttributeError, KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"{folder} holds no model that can be loaded: {error}") from error
    if problem := clip_problem(codec, method):
        warnings.warn(f"{folder}: {problem}", stacklevel=2)
    coupling = str(index.get("coupling", "independent"))
    return Trained(built.eval().requires_grad_(False), method, codec, prior, shape, coupling)


def _check_sizes(index: dict[str, Any], folder: Path) -> None:
    """Raise ValueError where a damaged file would have a net built that is larger than its weights, or a vast datum."""
    if not 0 < math.prod(index["shape"]) <= _LARGEST:
        raise ValueError(f"{folder / 'immiscible.json'} is damaged: shape is {index['shape']}")
    most = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    numbers = [("classes", index.get("classes")), *((f"net.{key}", value) for key, value in index["net"].items())]
    for key, value in numbers:
        parts = value if isinstance(value, list) else [value]
        if any(isinstance(part, int | float) and part > most for part in parts):
            raise ValueError(
                f"{folder / 'immiscible.json'} is damaged: {key} is {value}, and all files beside it have {most} bytes"
            )
