"""Runs that are killed at random moments: each must end as if nothing had happened, byte for byte.

Every trial trains one small run in one or two processes. A process is ended by ``kill -9`` at a random moment, in a
step, in the writing of a checkpoint, in an evaluation or in the export; the same call then goes on, and may be killed
again. In some attempts the disk refuses to write, or a file of the newest checkpoint is damaged before the next one.
"""

import hashlib
import os
import random
import resource
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from immiscible_diffusion.experiments.config import Config, read_config
from immiscible_diffusion.processes import process_context
from immiscible_diffusion.runs.folder import is_finished
from immiscible_diffusion.runs.run import execute
from immiscible_diffusion.runs.team import started_team

__all__ = ["bench_chaos", "chaos_line"]

_STEPS, _EVERY = 24, 8
_SECONDS = 120.0
"""An attempt that takes longer hangs."""
_TRAINING = 1.0
"""Seconds that a small run trains, evaluates and writes, about."""
_MOST = 8
"""Kills of one trial; then it may end."""
_REFUSED = 30_000
"""Bytes of the largest file in an attempt whose disk refuses to write: no checkpoint fits."""
_BY_CHANCE = "log.jsonl", "evaluations.jsonl", "environment.json"
"""Files that hold times, and so differ between two runs; their lines are compared without these."""


def bench_chaos(kills: int, folder: Path, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Yield a row for every trial until so many kills were made, in one and in two processes in turn.

    Raises:
        RuntimeError: an attempt hangs.
    """
    chance, made, trial = random.Random(seed), 0, 0  # noqa: S311  # no secret
    whole = {world: _whole(folder / f"whole-{world}", world) for world in (1, 2)}
    while made < kills:
        world = 1 + trial % 2
        row = _trial(folder / f"trial-{trial}", world, whole[world], chance, min(_MOST, kills - made))
        made, trial = made + row["kills"], trial + 1
        yield row


def chaos_line(row: dict[str, Any]) -> str:
    """Return a row as a line of text."""
    how = "equal" if row["equal"] else f"DIFFERS in {', '.join(row['unlike'])}"
    moments = ", ".join(f"{count} in {moment}" for moment, count in row["moments"].items())
    return f"{row['processes']} processes, {row['kills']} kills ({moments}), {row['attempts']} attempts: {how}"


def _config() -> Config:
    """Return a small run with a memory, so that everything a state may hold is in it."""
    train = {"steps": _STEPS, "batch": 64, "warmup": 2, "checkpoint": 2, "keep_every": 8, "seed": 3}
    return read_config(
        {
            "source": "digits",
            "codec": "pixels",
            "coupling": "cached",
            "method": "denoising",
            "net": {"use": "mlp", "width": 64, "depth": 2},
            "train": train,
            "evaluate": {
                "every": _EVERY,
                "steps": [2, 5],
                "samples": 300,
                "features": {"use": "pooled_pixels", "size": 4},
                "metrics": ["frechet"],
            },
        }
    )


def _attempt(rank: int, world: int, port: int, folder: str, refuses: bool) -> None:
    """Be one of the processes of a run."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what a process says that lost the others
    if refuses:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (_REFUSED, _REFUSED))
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_PORT": str(port)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}
    try:
        with started_team("cpu") as team:
            for _ in execute(_config(), Path(folder), torch.device("cpu"), team):
                pass
    except OSError:
        os._exit(1 if refuses else 3)
    os._exit(0)  # without waiting for the others' messages


def _started(folder: Path, world: int, refuses: bool = False) -> list[BaseProcess]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = process_context()
    processes: list[BaseProcess] = [
        context.Process(target=_attempt, args=(r, world, port, str(folder), refuses)) for r in range(world)
    ]
    for process in processes:
        process.start()
    return processes


def _whole(folder: Path, world: int) -> dict[str, str]:
    """Return the digests of an uninterrupted run's files."""
    for process in _started(folder, world):
        process.join(_SECONDS)
    if not is_finished(folder):
        raise RuntimeError(f"the uninterrupted run in {folder} did not end")
    return _digests(folder)


def _trial(folder: Path, world: int, whole: dict[str, str], chance: random.Random, most: int) -> dict[str, Any]:
    """Kill one run again and again until it ends, or ``most`` kills were made and it may end."""
    moments, attempts, damaged, refused = Counter[str](), 0, 0, 0
    while not is_finished(folder):
        attempts += 1
        refuses = chance.random() < 0.1
        processes = _started(folder, world, refuses)
        refused += refuses
        if sum(moments.values()) < most:
            moments.update(_killed(processes, folder, chance))
        _ended(processes)
        if chance.random() < 0.15:
            damaged += _damage(folder, chance)
    digests = _digests(folder)
    unlike = sorted(name for name in digests.keys() | whole.keys() if digests.get(name) != whole.get(name))
    return {
        "processes": world,
        "kills": sum(moments.values()),
        "moments": dict(moments),
        "attempts": attempts,
        "damaged": damaged,
        "refused": refused,
        "unlike": unlike,
        "equal": not unlike,
    }


def _killed(processes: list[BaseProcess], folder: Path, chance: random.Random) -> Iterator[str]:
    """Kill one of the processes at a random moment, if it still runs; yield where it was.

    One in ten is killed as it starts; the others at a moment in the time that an uninterrupted run would take.
    """
    victim, begun = chance.choice(processes), time.time()
    wait = chance.uniform(0, 1.0) if chance.random() < 0.1 else None
    later = chance.uniform(0, _TRAINING)
    while victim.is_alive():
        session = folder / "environment.json"  # is written anew when a session begins
        if wait is not None and time.time() > begun + wait:
            break
        if wait is None and session.exists() and begun < session.stat().st_mtime < time.time() - later:
            break
        time.sleep(0.002)
    if victim.is_alive():
        moment = _moment(folder)
        victim.kill()
        yield moment


def _moment(folder: Path) -> str:
    """Return the stage of a run, judged by the files in its folder."""
    if any(folder.rglob("*.part")):
        return "writing"
    if (folder / "export").exists():
        return "export"
    return "training or measuring" if (folder / "config.json").exists() else "starting"


def _ended(processes: list[BaseProcess]) -> None:
    """Wait for the processes; where one died the others get a moment, as a launcher gives them, and are killed.

    Raises:
        RuntimeError: they hang.
    """
    end = time.monotonic() + _SECONDS
    while any(process.is_alive() for process in processes):
        if any(not process.is_alive() and process.exitcode for process in processes):
            for process in processes:
                process.kill()
        if time.monotonic() > end:
            raise RuntimeError("an attempt hangs")
        time.sleep(0.01)
    for process in processes:
        process.join()


def _damage(folder: Path, chance: random.Random) -> int:
    """Change a byte in a file of the newest checkpoint, if there is an older one; return whether that was done."""
    kept = sorted((folder / "checkpoints").glob("step-*[0-9]"))
    if len(kept) < 2 or is_finished(folder):
        return 0
    path = chance.choice(sorted(file for file in kept[-1].iterdir() if file.stat().st_size))
    content = bytearray(path.read_bytes())
    content[chance.randrange(len(content))] ^= 0xFF
    path.write_bytes(content)
    return 1


def _digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file that two equal runs have in common, and the names of all others.

    Checkpoints set aside as damaged are left out, and so are the clock's numbers in a checkpoint's state.
    """
    digests: dict[str, str] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir() or ".damaged" in name or name == ".lock":
            continue
        if path.name == "state.json" or name in _BY_CHANCE or path.name in ("README.md", "immiscible.json"):
            digests[name] = ""
        else:
            digests[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return digests
