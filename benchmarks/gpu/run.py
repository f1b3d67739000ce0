"""Run the parts of a GPU run one after another; an error in one is a row, and the others still run.

A part is a function of its ``Site`` that returns whether all of it is measured.
"""

import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from benchmarks.gpu.checks import checks
from benchmarks.gpu.effect import effect
from benchmarks.gpu.pairing import pairing
from benchmarks.gpu.rows import Rows
from benchmarks.gpu.scale import Scale, Site
from benchmarks.gpu.throughput import throughput
from immiscible_diffusion.runs.folder import environment

__all__ = ["RUN", "in_turn", "run_part", "stopped"]

RUN: dict[str, Callable[[Site], bool]] = {
    "effect": effect,
    "tests": checks,
    "couplings": pairing,
    "throughput": throughput,
}
_GRACE = 30.0
"""Seconds after its limit that a part may take to end; then its process is ended."""


def run_part(
    part: str,
    rows: Rows,
    scale: Scale,
    *,
    pack: Path | None,
    state: Path,
    earlier: Path | None = None,
    device: str = "cpu",
    run: Mapping[str, Callable[[Site], bool]] = RUN,
) -> None:
    """Run one part in this process, unless it is done. What goes wrong in it becomes a row of one line.

    Args:
        part: one of ``PARTS``.
        rows: what is known, and where rows are added.
        scale: how large the part is.
        pack: the folder that ``make gpu-pack`` built, or None.
        state: the folder of whole training states.
        earlier: the results of an earlier run, or None.
        device: ``cuda`` or ``cpu``.
        run: what each part does.
    """
    if rows.has(part, finished=True):
        return
    if not rows.has("environment", of=part):
        rows.add("environment", of=part, **environment())
    site = Site(rows, scale, pack, state, earlier, device, scale.limits[part])
    try:
        complete = run[part](site)
    except Exception as error:  # one part shall not cost the others
        message = str(error).strip().splitlines() or [""]
        rows.add(part, error=f"{type(error).__name__}: {message[0][:300]}")
        return
    finally:
        if device == "cuda":
            torch.cuda.empty_cache()
    rows.add(part, seconds=scale.limits[part] - site.left(), **({"finished": True} if complete else {}))


def in_turn(parts: Sequence[str], rows: Rows, scale: Scale, arguments: Sequence[str]) -> None:
    """Run each part in a process of its own, which is ended when it outlasts its limit.

    Args:
        parts: in the order in which they run.
        rows: where it is recorded that a process had to be ended or died.
        scale: the limits.
        arguments: of ``python -m benchmarks gpu``, but for the part.
    """
    for part in parts:
        command = [sys.executable, "-m", "benchmarks", "gpu", *arguments, "--parts", part, "--here"]
        problem = stopped(command, scale.limits[part] + _GRACE)
        if problem:
            rows.add(part, error=problem)


def stopped(command: Sequence[str], limit: float) -> str:
    """Run a command, and return how it failed: an empty text if it did not."""
    try:
        code = subprocess.run(command, timeout=limit).returncode  # noqa: S603
    except subprocess.TimeoutExpired:
        return f"ended after {limit:.0f} s"
    return f"its process ended with {code}" if code else ""
