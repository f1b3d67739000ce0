"""Features of real data, kept once computed, and statistics in the file format of other programs."""

import io
import json
import math
import time
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from immiscible_diffusion.cache import cache_folder, keep_in_cache
from immiscible_diffusion.extras import needs
from immiscible_diffusion.files import digest_of, write_bytes
from immiscible_diffusion.metrics.moments import Moments
from immiscible_diffusion.types import Features, Float, HasFingerprint

__all__ = ["cached_features", "read_npz", "write_npz"]

_WORTH_SECONDS = 5.0
"""Features that were made sooner than this are not kept in the cache."""


def cached_features(raw: Tensor, features: Features) -> Float[Tensor, "n f"]:
    """Return the features of images, (n, f), on the CPU, from the cache where the same were made before.

    They are kept under a digest of the images, the features' ``fingerprint`` and everything that their last bits depend
    on, so that they equal what this process would make. What takes less than five seconds is not kept.

    Args:
        raw: the images, on the device that is to compute.
        features: the network; without a ``fingerprint`` nothing is kept.
    """
    with needs("nets", "kept features need safetensors"):
        from safetensors import SafetensorError
        from safetensors.torch import load, save

    if not isinstance(features, HasFingerprint):
        return features(raw).cpu()
    images = raw.cpu().contiguous()
    digest = digest_of(images.numpy().tobytes())
    about = json.dumps([digest, str(images.dtype), list(images.shape), features.fingerprint, *_arithmetic(raw.device)])
    path = cache_folder() / "features" / f"{digest_of(about.encode())[:32]}.safetensors"
    try:
        return load(path.read_bytes())["features"]
    except (OSError, SafetensorError, KeyError):  # not there, or not whole: both are mended by making
        pass
    begun = time.perf_counter()
    made = features(raw).cpu()
    if time.perf_counter() - begun >= _WORTH_SECONDS:
        keep_in_cache(path, save({"features": made.contiguous()}, {"about": about}))
    return made


def _arithmetic(device: torch.device) -> list[str]:
    """Return the settings besides weights and input that change the last bits of a network's output."""
    if device.type == "cuda":
        return [torch.__version__, torch.cuda.get_device_name(device)]
    return [torch.__version__, device.type, torch.backends.cpu.get_cpu_capability(), str(torch.get_num_threads())]


def write_npz(path: Path, moments: Moments) -> None:
    """Write ``mu`` and ``sigma`` as pytorch-fid, clean-fid, ADM and EDM name them, and ``count`` beside them."""
    mu, sigma = moments.mean.cpu().numpy(), moments.covariance.cpu().numpy()
    buffer = io.BytesIO()
    if moments.count is None:
        np.savez(buffer, mu=mu, sigma=sigma)
    else:
        np.savez(buffer, mu=mu, sigma=sigma, count=np.array(moments.count))
    write_bytes(path, buffer.getvalue())


def read_npz(path: Path) -> Moments:
    """Return the statistics in a file of pytorch-fid, clean-fid, ADM or EDM: its ``mu`` and ``sigma``, in float64.

    EDM's newer ``.pkl`` files are not read: a pickle can run code when opened. Write its ``mu`` and ``sigma`` as
    ``.npz`` where you trust it. The layer, resize and data behind a file are not in it: they must be those of the
    features compared.

    Raises:
        ValueError: not an npz file, without ``mu`` and ``sigma``, of wrong shape, not finite, not symmetric, or with
            a negative variance.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     write_npz(Path(folder) / "statistics.npz", Moments(torch.zeros(2), torch.eye(2), 9))
    ...     read_npz(Path(folder) / "statistics.npz").count
    9
    """
    if path.suffix in (".pkl", ".pickle"):
        raise ValueError(f"{path} is a pickle, which can run code when opened; write its mu and sigma as .npz")
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            missing = sorted({"mu", "sigma"} - set(file.files))
            if missing:
                raise ValueError(f"it has no {missing[0]!r}, but {file.files}")
            mu, sigma = file["mu"].astype(np.float64), file["sigma"].astype(np.float64)
            count = int(file["count"]) if "count" in file.files else None
        mean, covariance = torch.from_numpy(mu), torch.from_numpy(sigma)
        moments = Moments(mean, covariance, count)
    except (OSError, ValueError, EOFError, BadZipFile, TypeError, AttributeError) as error:
        raise ValueError(f"cannot read statistics {path}: {error}") from error
    largest = float(covariance.diagonal().abs().max()) if len(mean) else math.inf
    if not math.isfinite(largest) or float((covariance - covariance.T).abs().max()) > 1e-6 * largest:
        raise ValueError(f"cannot read statistics {path}: sigma is not a covariance, it is not symmetric")
    if float(covariance.diagonal().min()) < -1e-9 * largest:
        raise ValueError(f"cannot read statistics {path}: sigma is not a covariance, a variance in it is negative")
    return moments
