"""Start a script: make its coupling, replace its draws, execute it."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from immiscible_diffusion.experiments.values import parse_override
from immiscible_diffusion.registry import make
from immiscible_diffusion.scripts.draws import LIKE, SHAPED
from immiscible_diffusion.scripts.execute import Launch, execute, launched, rerun
from immiscible_diffusion.scripts.noise import PairedNoise, check_usable
from immiscible_diffusion.scripts.prepare import PreparedScript, prepare

__all__ = ["first_process", "load", "paired_noise", "run_script", "start"]


def first_process() -> bool:
    """Return whether this process is its launcher's first, or has none."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))


def paired_noise(coupling: str, prepared: PreparedScript, say: Callable[[str], None]) -> PairedNoise:
    """Return the noise of a prepared script.

    Args:
        coupling: a name or a TOML table.
        prepared: the script.
        say: prints one line for the user.

    Raises:
        ValueError: there is no such coupling, or it cannot pair data alone.
    """
    made = make("coupling", parse_override(f"coupling={coupling}")[1])
    check_usable(made)
    return PairedNoise(made, ", ".join(prepared.places), say)


def run_script(prepared: PreparedScript, coupling: str, noise: PairedNoise, argv: Sequence[str]) -> None:
    """Execute a prepared script; its exceptions pass through.

    Args:
        prepared: the script.
        coupling: the text of the noise's coupling, for processes that the script starts.
        noise: of this process.
        argv: the script's name and arguments, as it will see them.
    """
    places = tuple(f"{Path(file).absolute()}:{line}" for file, _, line in map(_parted, prepared.places))
    launch = Launch(str(prepared.script.absolute()), places, coupling)
    execute(prepared.files, launch, argv, _names(noise))


def start(arguments: Sequence[str]) -> None:
    """Run, in a process that a script started, the whole script again; Lightning's launcher does so.

    Raises:
        ValueError: no script started this process.
    """
    launch, prepared = _repeated()
    run_script(prepared, launch.coupling, paired_noise(launch.coupling, prepared, _silent), [launch.script, *arguments])


def load(scope: dict[str, Any]) -> None:
    """Define the script's functions and classes in a process that the script started by multiprocessing.

    Raises:
        ValueError: no script started this process.
    """
    launch, prepared = _repeated()
    rerun(prepared.files, prepared.script, scope, _names(paired_noise(launch.coupling, prepared, _silent)))


def _repeated() -> tuple[Launch, PreparedScript]:
    launch = launched()
    if launch is None:
        raise ValueError("this module is for processes that `immiscible run` starts")
    return launch, prepare(Path(launch.script), launch.at)


def _parted(place: str) -> tuple[str, str, str]:
    return place.rpartition(":")


def _names(noise: PairedNoise) -> dict[str, Any]:
    return {LIKE: noise.like, SHAPED: noise.randn}


def _silent(line: str) -> None:
    """Say nothing: the first process speaks for all."""
