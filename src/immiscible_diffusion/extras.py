"""What does not come with the bare package: optional packages, and folders on the hub."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["local_folder", "needs", "read_model"]


@contextmanager
def needs(extra: str, what: str) -> Iterator[None]:
    """Import optional packages in this block; where one is missing, say what needs it and which extra brings it.

    Raises:
        ImportError: a package is missing.

    >>> with needs("nets", "the U-Net needs diffusers"):
    ...     import no_such_package
    Traceback (most recent call last):
    ImportError: the U-Net needs diffusers: pip install 'immiscible-diffusion[nets]'
    """
    try:
        yield
    except ImportError as error:
        raise ImportError(f"{what}: pip install 'immiscible-diffusion[{extra}]'") from error


def local_folder(path: str, revision: str, files: list[str]) -> Path:
    """Return a folder, or a local copy of the files of a repository on the hub that match these patterns.

    Args:
        path: a folder, or a name on the hub, such as ``stabilityai/sd-vae-ft-mse``.
        revision: the hub's branch, tag or commit; its main branch if empty.
        files: patterns of file names.

    Raises:
        ValueError: there is neither, or the hub does not give it.
        ImportError: it is on the hub, and the ``nets`` extra is missing.
    """
    if Path(path).is_dir():
        return Path(path)
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", path):
        raise ValueError(f"no folder {path}, and it is no name on the hub, OWNER/NAME")
    with needs("nets", f"{path} is no folder, and the hub needs diffusers"):
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError
    try:
        return Path(snapshot_download(path, revision=revision or None, allow_patterns=files))
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise ValueError(f"there is no folder {path}, and the hub does not give it: {error}") from error


def read_model(loader: Any, folder: Path, what: str, **options: Any) -> Any:
    """Return a model that diffusers or transformers reads from a local folder, from safetensors alone.

    Args:
        loader: the model's class.
        folder: with its configuration and weights.
        what: the model, as errors call it.
        options: of the class's ``from_pretrained``.

    Raises:
        ValueError: a file is missing, damaged or does not fit the others.
    """
    options = {"use_safetensors": True, "local_files_only": True, "output_loading_info": True, **options}
    try:
        model, about = loader.from_pretrained(str(folder), **options)
    except ImportError:
        raise
    except Exception as error:  # damage meets these packages wherever it happens to be: KeyError, SafetensorError, ...
        raise ValueError(f"cannot load {what} in {folder}: {error}") from error
    if missing := sorted(about["missing_keys"]):  # which would stay at random values
        raise ValueError(f"{what} in {folder} lacks {len(missing)} tensors: {missing[:3]}")
    return model
