"""Weights of feature networks: known by their SHA-256, checked before anything in them is opened."""

import hashlib
import io
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

import torch
from torch import Tensor, nn

from immiscible_diffusion.cache import cache_folder
from immiscible_diffusion.extras import needs
from immiscible_diffusion.files import digest_of, write_bytes

__all__ = ["KNOWN", "WeightsFile", "digest_of_state", "fetch", "read_weights"]

Opener = Callable[[str], BinaryIO]


class WeightsFile(NamedTuple):
    """A published file of weights: its address, and how to recognise and read it."""

    url: str
    sha256: str


KNOWN: dict[str, WeightsFile] = {
    "pytorch-fid": WeightsFile(
        "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
        "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    ),
    "stylegan2-ada": WeightsFile(
        "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt",
        "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4",
    ),
}
"""The 2015-12-05 Inception network as pytorch-fid (95,628,359 bytes) and StyleGAN2-ADA (95,607,719) publish it."""

_LARGEST = 2**28
"""No known file is larger; a server that sends more is cut off."""


def fetch(name: str, opener: Opener | None = None) -> Path:
    """Return the path of a published file in the cache, downloaded if it is not there.

    Args:
        name: a key of ``KNOWN`` or one of its URLs; nothing else is ever asked of the network.
        opener: returns the stream of a URL.

    Raises:
        ValueError: an unknown name, no connection, or other content than the known SHA-256: it is not kept.
    """
    file = KNOWN.get(name) or next((known for known in KNOWN.values() if known.url == name), None)
    if file is None:
        urls = [known.url for known in KNOWN.values()]
        raise ValueError(f"{name!r} is neither a file nor a known download; there are {sorted(KNOWN)} and {urls}")
    path = cache_folder() / "weights" / file.url.rpartition("/")[2]
    if path.is_file() and digest_of(path.read_bytes()) == file.sha256:
        return path
    try:
        with closing((opener or _open)(file.url)) as stream:
            content = stream.read(_LARGEST + 1)
    except (OSError, urllib.error.URLError) as error:
        raise ValueError(
            f"cannot download {file.url}: {error}; save it as {path}, or name a file of yours "
            "(evaluate.features.weights)"
        ) from error
    if digest_of(content) != file.sha256:
        raise ValueError(f"{file.url} sent SHA-256 {digest_of(content)}, not {file.sha256}: nothing of it was kept")
    try:
        write_bytes(path, content)
    except OSError as error:
        raise ValueError(f"cannot keep {file.url} as {path}: {error}; set XDG_CACHE_HOME") from error
    return path


def _open(url: str) -> BinaryIO:
    if not url.startswith("https://"):
        raise ValueError(f"{url} is not https")
    # Of KNOWN alone, and never opened before its SHA-256 is checked.
    return cast(BinaryIO, urllib.request.urlopen(url, timeout=60))  # noqa: S310


def read_weights(path: Path, sha256: str = "") -> tuple[dict[str, Tensor] | nn.Module, str]:
    """Return the weights in a file, or its TorchScript network, and the file's SHA-256.

    A safetensors file holds numbers alone. Any other is opened only if its SHA-256 is a known one or the given one: the
    same bytes are checked and opened. State dicts are read with ``weights_only``; TorchScript can run code when loaded.

    Args:
        path: a ``.safetensors`` file, a state dict of ``torch.save``, or a TorchScript archive.
        sha256: what the file must have, in hexadecimal; empty: see above.

    Raises:
        ValueError: no such file, another SHA-256, an unknown one, or unreadable content.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot read weights {path}: {error}") from error
    digest = digest_of(content)
    if sha256 and digest != sha256.lower():
        raise ValueError(f"{path} has SHA-256 {digest}, not {sha256}")
    if path.suffix == ".safetensors":
        return _safetensors(content, path), digest
    if not sha256 and digest not in {known.sha256 for known in KNOWN.values()}:
        raise ValueError(
            f"{path} has SHA-256 {digest}, which is no known file's, and opening it could run code in it; "
            f"if you trust it, give sha256 = {digest!r}, or convert it to safetensors"
        )
    try:
        if _is_torchscript(content):
            return torch.jit.load(io.BytesIO(content), map_location="cpu").eval(), digest  # type: ignore[no-untyped-call]
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a file that is not what it seems
        raise ValueError(f"cannot read weights {path}: {error}") from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} is not a state dict: a mapping from names to tensors")
    return dict(state), digest


def _safetensors(content: bytes, path: Path) -> dict[str, Tensor]:
    with needs("nets", "feature networks need safetensors"):
        from safetensors import SafetensorError
        from safetensors.torch import load
    try:
        return load(content)
    except SafetensorError as error:
        raise ValueError(f"cannot read weights {path}: {error}") from error


def _is_torchscript(content: bytes) -> bool:
    if not zipfile.is_zipfile(io.BytesIO(content)):
        return False
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def digest_of_state(state: Mapping[str, Tensor]) -> str:
    """Return a SHA-256 of tensors: their names, dtypes, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b"")
    return digest.hexdigest()
