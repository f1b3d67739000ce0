"""How much memory is left: of the machine, and of the container that this process runs in."""

import os
from pathlib import Path

__all__ = ["free_bytes"]

_MEMINFO = Path("/proc/meminfo")
_GROUPS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (
        Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
        Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ),
)
"""The limit of a container's memory and what it uses, of control groups version 2 and 1."""


def free_bytes() -> int | None:
    """Return the bytes that can still be used, the least of what machine and container have; None where unknown."""
    known = [_available(), *(_left(limit, used) for limit, used in _GROUPS)]
    return min((number for number in known if number is not None), default=None)


def _available() -> int | None:
    """Return what Linux calls available, which counts the cache of files as free; all memory on other systems."""
    try:
        for line in _MEMINFO.read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    except (OSError, ValueError, IndexError):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return None


def _left(limit: Path, used: Path) -> int | None:
    try:
        return max(0, int(limit.read_text()) - int(used.read_text()))
    except (OSError, ValueError):  # no control groups, or "max": no limit
        return None
