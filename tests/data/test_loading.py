"""Decoding in worker processes: the same batches, a bound on the work ahead, and nothing left behind."""

import dataclasses
import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.utils.data

from immiscible_diffusion import Images
from immiscible_diffusion.data._decode import Decoder
from immiscible_diffusion.data._loading import AHEAD, decoded
from pictures import Deadly, Shades, encoded, folder

pytestmark = [
    pytest.mark.medium,
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),  # more workers than cores
]


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    return folder(tmp_path / "pets", {f"{i % 3}/{i:02d}.png": encoded(5 * i) for i in range(40)})


def decoder(read: Any) -> Decoder:
    return Decoder(read, 4, 0, "lanczos", 10**6)


def ended(pids: set[int], within: float = 20.0) -> bool:
    """Return whether none of these processes runs any more; torch's workers look for their parent every 5 seconds."""
    until = time.monotonic() + within
    while time.monotonic() < until:
        if not any(Path(f"/proc/{pid}").exists() and "Z" not in state(pid) for pid in pids):
            return True
        time.sleep(0.02)
    return False


def state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def children() -> set[int]:
    return {process.pid for process in multiprocessing.active_children() if process.pid is not None}


def same(a: Any, b: Any) -> bool:
    return all(x is y is None or torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("workers", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_batches_do_not_depend_on_the_number_of_workers(pets: Path, workers: int) -> None:
    options: dict[str, Any] = {"size": 8, "held_out_rows": 7, "flip": True}
    expected = list(itertools.islice(Images(str(pets), **options).batches(6, 3), 12))
    source = Images(str(pets), memory=False, workers=workers, **options)
    batches = source.batches(6, 3, start=4)  # in mid-epoch; an epoch has 5
    assert all(same(a, b) for a, b in itertools.islice(zip(batches, expected[4:], strict=False), 8))
    workers_seen = children()
    assert len(workers_seen) == workers
    batches.close()  # type: ignore[attr-defined]
    assert ended(workers_seen)
    assert not same(expected[4], expected[5])


@pytest.mark.slow
def test_workers_decode_what_is_kept_in_memory(pets: Path) -> None:
    options: dict[str, Any] = {"size": 8, "held_out_rows": 7}
    assert same(
        next(Images(str(pets), workers=2, **options).batches(6, 3)), next(Images(str(pets), **options).batches(6, 3))
    )
    assert not children()


@pytest.mark.slow
def test_bad_rows_are_told_by_their_place_and_the_work_ahead_is_bounded() -> None:
    taken = 0

    def jobs() -> Iterator[torch.Tensor]:
        nonlocal taken
        for i in range(50):
            taken = i + 1
            yield torch.tensor([9, 2, 5, 2, 7, 30 + i])

    faults = {0: "row 9 is at fault", 1: "row 2 is at fault", 3: "row 2 is at fault"}
    with (
        closing(decoded(decoder(Shades((9, 2))), jobs(), 2)) as ahead,
        closing(decoded(decoder(Shades((9, 2))), jobs(), 0)) as here,
    ):
        for i in range(6):
            made = next(ahead)
            assert i + 1 <= taken <= i + 1 + AHEAD + 1
            assert made.bad == faults
            assert made.pixels[:, 0, 0, 0].tolist() == [0, 0, 5, 0, 7, 30 + i]
            assert made.rows.tolist()[-1] == 30 + i
        assert next(here).bad == faults


@pytest.mark.slow
@pytest.mark.parametrize("way", ["exception", "exhaustion", "garbage"])
def test_workers_end_with_the_iterator(way: str) -> None:
    made = decoded(decoder(Shades()), iter([torch.arange(4)] * 4), 2)
    next(made)
    workers = children()
    assert len(workers) == 2
    if way == "exception":
        with pytest.raises(KeyboardInterrupt):
            made.throw(KeyboardInterrupt())
    elif way == "exhaustion":
        assert len(list(made)) == 3
    else:
        del made
    assert ended(workers)


def test_a_worker_that_is_ended_is_one_error() -> None:
    with pytest.raises(RuntimeError, match=r"^DataLoader worker .*(killed|exited).*: it ran out of memory, ") as failed:
        list(decoded(decoder(Deadly()), iter([torch.arange(4), torch.arange(4, 8), torch.arange(4)]), 1))
    assert "\n" not in str(failed.value)
    assert not children()


@pytest.mark.slow
def test_a_failure_that_is_no_images_surfaces_with_its_message() -> None:
    """In a worker, with the worker's own lines; the pixels of one decoder do not fit its size."""
    with (
        closing(decoded(dataclasses.replace(decoder(Shades()), size=-1), iter([torch.arange(4)]), 1)) as made,
        pytest.raises(ValueError, match=r"negative dimensions are not allowed") as failed,
    ):
        next(made)
    assert not children(), failed  # while the error is held


def test_the_global_generator_is_left_alone() -> None:
    """Initial weights and dropout are drawn from it; torch's loader draws a seed there unless it has a generator."""
    before = torch.get_rng_state()
    assert len(list(decoded(decoder(Shades()), iter([torch.arange(4)]), 0))) == 1
    assert torch.equal(torch.get_rng_state(), before)
    next(iter(torch.utils.data.DataLoader(range(2))))  # type: ignore[arg-type]
    assert not torch.equal(torch.get_rng_state(), before)


PROGRAM = """
    import multiprocessing, os, signal, sys, time
    from immiscible_diffusion import Images

    if __name__ == "__main__":
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run in the background
        batches = Images(sys.argv[1], size=8, held_out_rows=1, memory=False, workers=1).batches(4, 0)
        next(batches)
        try:
            print(*[p.pid for p in multiprocessing.active_children()], flush=True)
            while True:
                next(batches)
        except KeyboardInterrupt:
            sys.exit(7)
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
def test_workers_end_with_the_program_and_say_nothing(tmp_path: Path, pets: Path, number: signal.Signals) -> None:
    """Ctrl-C reaches the whole process group, as in a terminal; kill -9 the program alone."""
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(PROGRAM))
    with subprocess.Popen(
        [sys.executable, str(program), str(pets)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as running:
        assert running.stdout is not None
        workers = set(map(int, running.stdout.readline().split()))
        assert len(workers) == 1
        if number == signal.SIGINT:
            os.killpg(running.pid, number)
        else:
            running.send_signal(number)
        try:
            _, said = running.communicate(timeout=120)  # a busy machine takes its time to end a process
        finally:
            running.kill()
    assert running.returncode == (7 if number == signal.SIGINT else -9)
    assert ended(workers)
    assert "Traceback" not in said
