"""Decoding in worker processes: the same batches, a bound on the work ahead, and nothing left behind."""

import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

from immiscible_diffusion import Images
from immiscible_diffusion.data._decode import Decoder
from immiscible_diffusion.data._workers import AHEAD, _work, decoded
from pictures import Deadly, Shades, encoded, folder


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    return folder(tmp_path / "pets", {f"{i % 3}/{i:02d}.png": encoded(5 * i) for i in range(40)})


def decoder(read: Any) -> Decoder:
    return Decoder(read, 4, 0, "lanczos", 10**6)


def ended(pids: set[int], within: float = 5.0) -> bool:
    """Return whether none of these processes runs any more."""
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


def test_bad_rows_are_told_by_their_place_and_the_work_ahead_is_bounded() -> None:
    asked = 0

    def jobs() -> Iterator[torch.Tensor]:
        nonlocal asked
        for i in range(50):
            asked = i + 1
            yield torch.tensor([9, 2, 5, 2, 7, 30 + i])

    faults = {0: "row 9 is at fault", 1: "row 2 is at fault", 3: "row 2 is at fault"}
    with (
        closing(decoded(decoder(Shades((9, 2))), jobs(), 2)) as ahead,
        closing(decoded(decoder(Shades((9, 2))), jobs(), 0)) as here,
    ):
        for i in range(6):
            made = next(ahead)
            assert i + 1 <= asked <= i + 1 + AHEAD + 1
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
    made = decoded(decoder(Deadly()), iter([torch.arange(4), torch.arange(4, 8), torch.arange(4)]), 1)
    next(made)
    with pytest.raises(RuntimeError, match=r"decoding worker 0 ended with exit code -9: it ran out of memory"):
        list(made)
    assert not children()


def test_a_failure_that_is_no_images_surfaces_with_its_message(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker's own loop, run here: what it sends back is what is raised."""
    mine, its = multiprocessing.Pipe()
    mine.send((0, 0, 2))
    mine.send((9, 0, 2))  # a slot that is not there
    context = multiprocessing.get_context("spawn")
    pixels, numbers = context.RawArray("B", 2 * 48), context.RawArray("q", [4, 5])
    before = signal.getsignal(signal.SIGINT)
    worker = threading.Thread(target=_work, args=(its, decoder(Shades()), (1, 2, 3, 4, 4), pixels, numbers))
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # a thread may not
    worker.start()
    assert mine.recv() == {}
    assert set(pixels) == {4, 5}
    assert mine.recv().startswith("IndexError: index 9 is out of bounds")
    mine.close()
    worker.join(5)
    assert not worker.is_alive()
    assert signal.getsignal(signal.SIGINT) == before


PROGRAM = """
    import multiprocessing, os, sys, time
    from immiscible_diffusion import Images

    if __name__ == "__main__":
        batches = Images(sys.argv[1], size=8, held_out_rows=1, memory=False, workers=1).batches(4, 0)
        next(batches)
        try:
            print(*[p.pid for p in multiprocessing.active_children()], flush=True)
            while True:
                next(batches)
        except KeyboardInterrupt:
            sys.exit(7)
"""


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
