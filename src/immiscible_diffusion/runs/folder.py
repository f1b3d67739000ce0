"""The folder of one run: whether it is finished, and the environment that is recorded in it."""

import os
import platform
import subprocess
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

__all__ = ["CONFIG", "EVALUATION", "INSTRUMENT", "LOG", "SESSIONS", "environment", "is_finished"]

CONFIG = {
    "train": {"seed": int, "steps": int, "batch": int},
    "evaluate": {"samples": int, "features": {"use": str}, "metrics": [{"use": str}]},
}
"""The form of ``config.json``, for ``files.read_json``."""
SESSIONS = [dict]
"""The form of ``environment.json``."""
LOG = {"step": int}
"""The form of a line of ``log.jsonl``."""
EVALUATION = {"step": int, "sampling_steps": int, "start": str}
"""The form of a line of ``evaluations.jsonl``."""
INSTRUMENT = [
    {
        "of": str,
        "arms": [str],
        "features": dict,
        "samples": int,
        "drawn": int,
        "held_out_rows": int,
        "same_conditions?": bool,
        "floor": {"*": {"mean": float, "sd": float}},
    }
]
"""The form of ``instrument.json``."""


def is_finished(folder: Path) -> bool:
    """Return whether a run folder holds its export, which is written last."""
    return (folder / "export" / "immiscible.json").is_file()


def environment() -> dict[str, Any]:
    """Return the versions, commit and hardware on which figures depend beside their configuration."""
    packages = {}
    for name in ("immiscible-diffusion", "torch", "numpy", "scipy", "lapx", "diffusers", "scikit-learn"):
        with suppress(PackageNotFoundError):
            packages[name] = (
                str(torch.__version__) if name == "torch" else version(name)
            )  # with its build: +cpu, +cu130
    return {
        "python": platform.python_version(),
        "packages": packages,
        "commit": _commit(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _commit() -> str | None:
    """Return the commit of the source tree, with a plus sign where the package has changes; None outside one."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)  # noqa: S603
        changed = [*git, "status", "--porcelain", "."]  # of the package alone: records do not change what it computes
        dirty = subprocess.run(changed, capture_output=True, text=True, check=True)  # noqa: S603
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + ("+" if dirty.stdout.strip() else "")


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"
