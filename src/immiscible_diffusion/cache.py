"""The cache of what takes long to compute: fitted features, statistics of images, potentials."""

import os
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path

from immiscible_diffusion.files import write_bytes

__all__ = ["alone_in_cache", "cache_folder", "keep_in_cache"]


def cache_folder() -> Path:
    """Return the cache of this library: ``$XDG_CACHE_HOME/immiscible-diffusion``, ``~/.cache`` where unset.

    Raises:
        ValueError: neither this variable nor a home directory is set.
    """
    try:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError as error:
        raise ValueError(f"there is no place for the cache: set XDG_CACHE_HOME to a folder ({error})") from error
    return Path(base) / "immiscible-diffusion"


def keep_in_cache(path: Path, content: bytes) -> None:
    """Write a file of the cache; where that cannot be, warn once a process and go on without."""
    try:
        write_bytes(path, content)
    except OSError as error:
        _warn_of_cache(cache_folder(), str(error))


@contextmanager
def alone_in_cache(path: Path) -> Iterator[None]:
    """Let one process at a time make a file of the cache; where the cache cannot be written, do not wait for others.

    Look for the file before, and once more inside: another process may have made it in between.
    """
    from filelock import FileLock

    with ExitStack() as stack:
        with suppress(OSError, NotImplementedError):
            path.parent.mkdir(parents=True, exist_ok=True)
            # another thread may close a generator
            stack.enter_context(FileLock(path.with_suffix(".lock"), thread_local=False))
        yield


@cache
def _warn_of_cache(folder: Path, problem: str) -> None:
    warnings.warn(
        f"the cache {folder} cannot be written ({problem}): what would be kept there is made anew each time. Set "
        "XDG_CACHE_HOME to a folder that can be written",
        stacklevel=4,
    )
