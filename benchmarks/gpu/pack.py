"""Build the folder that a bare GPU machine needs beside the working tree: wheels, images, reference and weights."""

import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np
import torch

from benchmarks.gpu.data import SHEET, sheet_bytes
from benchmarks.precision import extract, features_in
from benchmarks.precision._extract import images_of
from immiscible_diffusion.features import Inception
from immiscible_diffusion.features._inception_net import InceptionNet, folded
from immiscible_diffusion.features._weights import read_weights
from immiscible_diffusion.files import new_folder, write_bytes, write_json
from immiscible_diffusion.metrics import Moments

__all__ = ["EXPECTED", "LIMIT", "PACKAGES", "build_pack", "fitting", "tree_bytes"]

LIMIT = 60 * 2**20
"""The most bytes that working tree, pack and earlier results may take together."""
PACKAGES = (
    *("diffusers", "importlib-metadata", "lazy-importer", "zipp", "safetensors"),
    *("lapx", "pydantic", "pydantic-core", "annotated-types", "typing-inspection", "typing-extensions"),
    *("typer", "annotated-doc", "shellingham", "rich", "markdown-it-py", "mdurl"),
    *("beartype", "jaxtyping", "wadler-lindig"),
)
"""What is carried, in the versions that are installed here."""
EXPECTED = (
    "torch",
    "numpy",
    "scipy",
    "pillow",
    "pytest",
    "pygments",
    "filelock",
    "huggingface-hub",
    "regex",
    "requests",
)
"""What the machine must have itself: most of it is large, and comes with PyTorch, pytest or transformers."""
_FEWEST = 5000
_LAYER: Literal[768] = 768


def build_pack(
    into: Path, *, cifar10: Path, inception: Path, most: int, reference: int, features: Path, earlier: Path | None
) -> Iterator[str]:
    """Build the pack anew, and yield a line for every piece.

    Training images are the first ones of CIFAR-10's files, as many as fit into what ``LIMIT`` leaves: a pack of fewer
    images holds the same first ones.

    Args:
        into: the folder of the pack.
        cifar10: the folder of CIFAR-10's parquet files.
        inception: the Inception network's weights, in safetensors, up to layer 768 or beyond.
        most: training images at most.
        reference: test images whose moments are the reference, a multiple of 250.
        features: the folder that keeps the features of the test images: their computation goes on where it was cut.
        earlier: results of an earlier run, which will travel too; None for none.

    Raises:
        ValueError: data or weights that cannot be read, or fewer than 5,000 training images fit.
    """
    for path in extract(cifar10, Inception(str(inception), _LAYER), features, {"test": reference}):
        yield f"features of test images: {path.name}"
    with new_folder(into) as folder:
        _cut_weights(inception, folder / "inception.safetensors")
        rows = features_in(features)["test"][_LAYER][:reference]
        moments = Moments.of(rows)
        _write_reference(folder / "reference.npz", moments)
        yield f"moments of {moments.count} test images, weights up to layer {_LAYER}"
        count = _wheels(folder / "wheels.tar.xz")
        yield f"{count} wheels, {(folder / 'wheels.tar.xz').stat().st_size / 2**20:.1f} MiB"
        room = LIMIT - tree_bytes() - _size(folder) - (0 if earlier is None else _size(earlier))
        count = 0
        for sheet in fitting(_sheets(cifar10, most), room - 4096):
            write_bytes(folder / "images" / f"{count // SHEET**2:05d}.webp", sheet)
            count = min(count + SHEET**2, most)
        if count < min(most, _FEWEST):
            raise ValueError(
                f"{LIMIT / 2**20:.0f} MiB leave {room / 2**20:.1f} MiB for images: {count} of them, and at least "
                f"{_FEWEST} are needed; make the working tree or the earlier results smaller"
            )
        about = {"images": count, "reference": moments.count, "layer": _LAYER}
        versions = {name: version(name) for name in PACKAGES}
        write_json(folder / "pack.json", {**about, "bytes": _size(folder), "packages": versions})
    yield f"{into}: {count} training images; {_size(into) / 2**20:.1f} MiB, and the tree {tree_bytes() / 2**20:.1f} MiB"


def fitting(pieces: Iterable[bytes], room: int) -> Iterator[bytes]:
    """Yield pieces while all of them together are no longer than ``room`` bytes.

    >>> list(fitting([b"ab", b"cd", b"e"], 3))
    [b'ab']
    """
    for piece in pieces:
        room -= len(piece)
        if room < 0:
            return
        yield piece


def tree_bytes(root: Path | None = None) -> int:
    """Return the bytes of the working tree's files that git tracks or does not ignore."""
    root = root or Path(__file__).parents[2]
    command = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, capture_output=True, check=True).stdout.decode().split("\0")  # noqa: S603
    return sum((root / name).stat().st_size for name in set(names) if name and (root / name).is_file())


def _sheets(cifar10: Path, most: int) -> Iterator[bytes]:
    for images in torch.split(images_of(cifar10, "train", 0, most), SHEET**2):
        yield sheet_bytes(images)


def _cut_weights(path: Path, into: Path) -> None:
    """Write the weights that the layer needs, in half precision."""
    from safetensors.torch import save

    weights, _ = read_weights(path)
    if not isinstance(weights, dict):
        raise ValueError(f"{path} is TorchScript; the pack needs the weights as safetensors")
    needed = InceptionNet([_LAYER]).state_dict()
    state = folded(weights)
    write_bytes(into, save({name: state[name].half().contiguous() for name in needed}))


def _write_reference(path: Path, moments: Moments) -> None:
    """Write statistics in float32, which takes half the room and moves FID by less than 1e-4."""
    mean, covariance = moments.mean.float(), moments.covariance.float()
    np.savez_compressed(path, mu=mean.numpy(), sigma=covariance.numpy(), count=np.array(moments.count))


def _wheels(into: Path) -> int:
    """Write wheels for Python 3.12 on Linux x86_64 into one archive, and return their number.

    Each is packed anew without compression of its own: the archive compresses all of them together, to half the size.
    """
    tags = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
    wanted = [f"{name}=={version(name)}" for name in PACKAGES]
    options = ["--python-version=3.12", "--only-binary=:all:", "--no-deps", "--quiet"]
    options += [f"--platform={tag}" for tag in tags]
    with TemporaryDirectory() as folder, tarfile.open(into, "w:xz") as archive:
        command = [sys.executable, "-m", "pip", "download", *options, f"--dest={folder}", *wanted]
        subprocess.run(command, check=True)  # noqa: S603
        wheels = sorted(Path(folder).glob("*.whl"))
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as file:
                content = {name: file.read(name) for name in file.namelist()}
            with zipfile.ZipFile(wheel, "w") as file:
                for name, value in content.items():
                    file.writestr(name, value)
            archive.add(wheel, wheel.name)
    return len(wheels)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
