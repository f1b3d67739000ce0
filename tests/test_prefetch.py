"""The iterator that works one item ahead, in other people's loops; test_train.py has it in ours."""

import gc
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import torch

from immiscible_diffusion.couplings import Assignment
from immiscible_diffusion.prefetch import ahead
from immiscible_diffusion.streams import stream

pytestmark = pytest.mark.medium

SOON = 10.0
"""Seconds after which what should have happened is held to have failed."""


def workers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]


@pytest.fixture(autouse=True)
def _nothing_leaks() -> Iterator[None]:
    assert workers() == []
    yield
    assert workers() == []


def eventually(holds: Callable[[], bool]) -> bool:
    end = time.monotonic() + SOON
    while not holds() and time.monotonic() < end:
        time.sleep(0.001)
    return holds()


def recorded(made: list[int], n: int = 10) -> Iterator[int]:
    for i in range(n):
        made.append(i)
        yield i


@pytest.mark.parametrize("depth", [1, 2, 7])
@pytest.mark.parametrize("n", [0, 1, 2, 5])
def test_items_come_unchanged_and_in_order(n: int, depth: int) -> None:
    assert list(ahead(range(n), depth)) == list(range(n))
    items = [object() for _ in range(n)]
    assert all(item is other for item, other in zip(ahead(iter(items), depth), items, strict=True))


@pytest.mark.parametrize("depth", [1, 3])
def test_it_is_ahead_by_its_depth_and_no_further(depth: int) -> None:
    made: list[int] = []
    items = ahead(recorded(made), depth)
    time.sleep(0.02)
    assert made == []
    for i in range(4):
        assert next(items) == i
        assert eventually(lambda: len(made) == i + 1 + depth)  # noqa: B023
        time.sleep(0.02)
        assert len(made) == i + 1 + depth
    items.close()


def overlaps(wrap: Callable[[Iterator[int]], Iterator[int]]) -> bool:
    """Return whether the second item is made while the loop is busy with the first."""
    second = threading.Event()

    def items() -> Iterator[int]:
        yield 0
        second.set()
        yield 1

    iterator = wrap(items())
    next(iterator)
    happened = second.wait(0.3)
    assert next(iterator) == 1
    assert next(iterator, None) is None
    return happened


def test_the_next_item_is_made_while_the_loop_is_busy() -> None:
    assert overlaps(ahead)
    assert not overlaps(iter)


def test_all_items_are_made_in_one_other_thread() -> None:
    class Source:
        def __iter__(self) -> Iterator[int]:
            yield from (threading.get_ident() for _ in range(5))

    threads = set(ahead(Source()))
    assert len(threads) == 1
    assert threading.get_ident() not in threads


def failing(at: int) -> Iterator[int]:
    yield from range(at)
    raise RuntimeError(f"no item {at}")


@pytest.mark.parametrize("depth", [1, 4])
@pytest.mark.parametrize("at", [0, 1, 3])
def test_an_error_comes_at_the_item_that_failed(at: int, depth: int) -> None:
    items = ahead(failing(at), depth)
    assert [next(items) for _ in range(at)] == list(range(at))
    with pytest.raises(RuntimeError, match=f"no item {at}") as caught:
        next(items)
    assert caught.traceback[-1].name == "failing"
    assert next(items, None) is None


@pytest.mark.usefixtures("unchecked")
def test_what_is_no_iterable_is_an_error_too() -> None:
    with pytest.raises(TypeError, match="not iterable"):
        next(ahead(3))  # type: ignore[arg-type]


@pytest.mark.parametrize("depth", [0, -1])
def test_a_depth_below_one_is_refused_at_once(depth: int) -> None:
    with pytest.raises(ValueError, match=f"depth is {depth}; it must be a whole number >= 1"):
        ahead([], depth)


def test_leaving_early_ends_the_thread_and_the_iterable() -> None:
    made: list[int] = []
    ended: list[int] = []

    def items() -> Iterator[int]:
        try:
            yield from recorded(made)
        finally:
            ended.append(len(made))

    for _ in ahead(items()):
        assert len(workers()) == 1
        break
    gc.collect()
    assert workers() == []
    assert ended == [len(made)]
    assert len(made) <= 2


def test_an_error_in_the_loop_ends_the_thread() -> None:
    def loop() -> None:
        for _ in ahead(range(10)):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        loop()
    gc.collect()
    assert workers() == []


def test_close_waits_for_the_item_in_the_making() -> None:
    finished = threading.Event()

    def items() -> Iterator[int]:
        yield 0
        time.sleep(0.05)
        finished.set()
        yield 1

    iterator = ahead(items())
    next(iterator)
    time.sleep(0.01)
    iterator.close()
    assert finished.is_set()
    assert next(iterator, None) is None


def test_one_that_is_never_started_has_no_thread() -> None:
    iterator = ahead(range(3))
    assert workers() == []
    del iterator


@pytest.mark.slow
def test_the_garbage_collector_may_close_it_from_its_own_thread() -> None:
    """A warning of an exception that nobody catches would be an error here."""
    forgotten, collected = threading.Event(), threading.Event()

    def items() -> Iterator[int]:
        yield 0
        forgotten.wait(SOON)
        gc.collect()
        collected.set()
        yield 1

    def forget() -> None:
        cycle: list[object] = [ahead(items())]
        cycle.append(cycle)
        next(cycle[0])  # type: ignore[call-overload]

    gc.disable()
    try:
        forget()
        forgotten.set()
        assert collected.wait(SOON)
    finally:
        gc.enable()
    assert eventually(lambda: workers() == [])


@pytest.mark.slow
def test_a_program_may_end_with_one_half_read() -> None:
    program = "from immiscible_diffusion.prefetch import ahead\nitems = ahead(iter(int, 1))\nnext(items)"
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_two_may_be_stacked() -> None:
    assert list(ahead(ahead(range(5)))) == list(range(5))


def test_pairs_are_those_of_a_plain_loop() -> None:
    couple = Assignment()

    def pairs() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for i in range(6):
            x = torch.randn(16, 3, generator=stream(0, i, "data"))
            yield x, couple(x, generator=stream(0, i, "noise"))

    for (x, noise), (other_x, other_noise) in zip(ahead(pairs()), pairs(), strict=True):
        torch.rand(3)  # what the loop draws does no harm
        assert torch.equal(x, other_x)
        assert torch.equal(noise, other_noise)
