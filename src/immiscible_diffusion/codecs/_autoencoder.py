"""diffusers' autoencoders: where they lie, what they say of themselves, and their weights, from safetensors alone."""

import shutil
import threading
from functools import cache
from pathlib import Path
from typing import Any

import torch

from immiscible_diffusion.extras import local_folder, needs, read_model
from immiscible_diffusion.files import digest_of, digest_of_file, read_json

__all__ = ["config", "copied", "digest", "factors", "folder", "load"]

_OWN_SCALE = {"AutoencoderKL": 0.18215, "AutoencoderTiny": 1.0}  # diffusers' defaults; older config.json name none
_WEIGHTS = "diffusion_pytorch_model"
_loading = threading.Lock()


@cache
def folder(path: str, subfolder: str, revision: str) -> Path:
    """Return the local folder with configuration and weights, fetched from the hub if need be.

    Raises:
        ValueError: there is none.
    """
    suffixes = (".safetensors", ".safetensors.index.json", "-*.safetensors")
    files = ["config.json", *(_WEIGHTS + suffix for suffix in suffixes)]
    wanted = [f"{subfolder}/{file}" if subfolder else file for file in files]
    place = local_folder(path, revision, wanted) / subfolder
    if not (place / "config.json").is_file():
        where = "; a whole pipeline needs subfolder = 'vae'" if (place / "model_index.json").is_file() else ""
        raise ValueError(f"{place} has no config.json of an autoencoder{where}: name another codec.path")
    return place


@cache
def config(path: Path) -> dict[str, Any]:
    """Return the configuration in a folder.

    Raises:
        ValueError: it cannot be read, or belongs to another class.
    """
    values = read_json(path / "config.json")
    kind = values.get("_class_name") if isinstance(values, dict) else None
    if kind not in _OWN_SCALE:  # a name that comes out of a file never reaches another class
        raise ValueError(f"{path / 'config.json'} describes a {kind}; a vae is one of {list(_OWN_SCALE)}")
    return values  # type: ignore[no-any-return]


def copied(source: Path, target: Path) -> dict[str, Any]:
    """Copy the weights of one folder into another, which is made, and return the configuration."""
    target.mkdir()
    index = source / f"{_WEIGHTS}.safetensors.index.json"
    for file in [*_weights(source), *([index] if index.is_file() else [])]:
        shutil.copyfile(file, target / file.name)
    return config(source)


def factors(values: dict[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return scale and shift that a configuration gives, each of 1 or c values.

    Means and deviations by channel come before a shift, as in diffusers' SDXL pipeline.
    """
    scale = values.get("scaling_factor", _OWN_SCALE[values["_class_name"]])
    mean, std = values.get("latents_mean"), values.get("latents_std")
    if mean and std:
        return tuple(scale / each for each in std), tuple(mean)
    return (scale,), (values.get("shift_factor") or 0.0,)


def digest(path: Path) -> str:
    """Return the SHA-256 of the weights: the file's own, as the hub shows it, or of the hashes of several files.

    Raises:
        ValueError: there are no weights.
    """
    digests = [digest_of_file(file) for file in _weights(path)]
    return digests[0] if len(digests) == 1 else digest_of("\n".join(digests).encode())


def load(path: Path, dtype: torch.dtype, device: str, channels_last: bool) -> Any:
    """Return the model in a folder, read once for each dtype, device and memory format.

    Raises:
        ValueError: its files are missing, damaged or do not fit each other.
    """
    with _loading:  # a background thread may prepare batches
        return _load(path, dtype, device, channels_last)


def _weights(path: Path) -> list[Path]:
    files = sorted([*path.glob(f"{_WEIGHTS}.safetensors"), *path.glob(f"{_WEIGHTS}-*.safetensors")])
    if not files:
        raise ValueError(f"{path} has no {_WEIGHTS}.safetensors; other formats are not loaded: convert it")
    return files


@cache
def _load(path: Path, dtype: torch.dtype, device: str, channels_last: bool) -> Any:
    with needs("nets", "a vae needs diffusers"):
        import diffusers
    name = config(path)["_class_name"]
    _weights(path)
    with torch.random.fork_rng(devices=[]):  # diffusers may initialise weights before it loads them
        model = read_model(getattr(diffusers, name), path, f"the {name}", low_cpu_mem_usage=False)
    # nn.Module's own: diffusers' warns of modules kept in fp32, of which these classes have none
    move: Any = torch.nn.Module.to
    layout = torch.channels_last if channels_last else None
    return move(model.eval().requires_grad_(False), device=device, dtype=dtype, memory_format=layout)
